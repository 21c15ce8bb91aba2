"""A decoder as a prior: with a linear decoder every posterior is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from tests.statistics import assert_mean

NOISE = 0.4


def linear_vae(latent_dim=2, size=6):
    vae = pv.VAE(
        encoder=pv.nn.MLP(size, (), (2, latent_dim)),
        decoder=nn.Linear(latent_dim, size),
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Gaussian((size,), scale=1.0),
    ).double()
    with torch.no_grad():
        vae.decoder.weight.copy_(torch.randn(size, latent_dim))
    return vae


class Problem:
    """Three sums of a field, measured with noise."""

    def __init__(self):
        torch.manual_seed(0)
        self.vae = linear_vae()
        self.prior = pv.decoder_prior(self.vae)
        self.sums = torch.randn(3, 6)
        design, offset = self.sums @ self.vae.decoder.weight, self.sums @ self.vae.decoder.bias
        self.known = pv.problems.linear_gaussian(W=design.detach(), scale=NOISE, loc=offset.detach())
        self.y = self.known.sample(1, seed=0)[0]
        self.posterior = self.known.posterior(self.y[None])

    def model(self, y):
        pyro.sample("y", dist.Normal(self.sums @ self.prior(), NOISE).to_event(1), obs=y)


@pytest.fixture
def problem(float64):
    return Problem()


def untouched(problem, before):
    return all(torch.equal(one, other) for one, other in zip(before, problem.vae.parameters(), strict=True))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_nuts_draws_from_the_exact_posterior(problem, jit):
    before = [part.clone() for part in problem.vae.parameters()]
    chain = MCMC(
        NUTS(problem.model, jit_compile=jit, ignore_jit_warnings=True), 300, 100, num_chains=1, disable_progbar=True
    )
    with torch.random.fork_rng(devices=[]):
        chain.run(problem.y)
    z, q = chain.get_samples()["field/z"], problem.posterior
    assert ((z.mean(0) - q.mean[0]).abs() < 0.35 * q.stddev[0]).all()  # five errors of 200 effective draws
    assert ((z.std(0) / q.stddev[0] - 1).abs() < 0.25).all()
    assert chain.diagnostics()["field/z"]["r_hat"].max() < 1.05
    assert untouched(problem, before)
    assert not list(pyro.get_param_store())


def optimised(problem, guide, num_steps, learning_rate=0.02):
    svi = SVI(problem.model, guide, pyro.optim.ClippedAdam({"lr": learning_rate, "lrd": 0.995}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(problem.y)
    return guide


def test_laplace_is_exact_for_a_linear_decoder(problem):
    guide = optimised(problem, AutoLaplaceApproximation(problem.model), 500, 0.1)
    q = guide.laplace_approximation(problem.y).get_posterior()
    torch.testing.assert_close(q.mean, problem.posterior.mean[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(q.covariance_matrix, problem.posterior.covariance_matrix[0], atol=1e-4, rtol=1e-4)


def test_svi_trains_the_users_guide_and_nothing_else(problem):
    before = [part.clone() for part in problem.vae.parameters()]
    guide = optimised(problem, AutoMultivariateNormal(problem.model), 600, 0.05)
    assert all(name.startswith("AutoMultivariateNormal") for name in pyro.get_param_store())
    assert untouched(problem, before)
    q = guide.get_posterior()
    assert ((q.mean - problem.posterior.mean[0]).abs() < 0.5 * problem.posterior.stddev[0]).all()
    # The mean-field family, the known-wrong one here, cannot have the correlation.
    exact = problem.posterior.covariance_matrix[0]
    correlation = (exact[0, 1] / (exact[0, 0] * exact[1, 1]).sqrt()).abs()
    assert correlation > 0.2
    found = q.covariance_matrix
    assert (found[0, 1] / (found[0, 0] * found[1, 1]).sqrt()).abs() > correlation / 2


def test_the_field_is_drawn_from_what_the_vae_generates(problem):
    draws = Predictive(lambda: problem.prior(), num_samples=4000)()["field"]
    weight, bias = problem.vae.decoder.weight, problem.vae.decoder.bias
    assert_mean(draws.detach().reshape(-1, 6), bias.detach(), sd=weight.square().sum(1).sqrt().detach())


def test_training_the_vae_further_changes_nothing(problem):
    noise = {"z": torch.ones(2)}
    before = problem.prior.at(noise).mean
    with torch.no_grad():
        problem.vae.decoder.weight.mul_(2)
    assert torch.equal(problem.prior.at(noise).mean, before)
    assert all(part.requires_grad for part in problem.vae.parameters())


def test_a_plate_has_a_field_for_each_member(problem):
    def model():
        with pyro.plate("patients", 5):
            return problem.prior()

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["field/z"]["value"].shape == (5, 2)
    assert trace.nodes["field"]["value"].shape == (5, 6)
    trace.compute_log_prob()
    assert trace.nodes["field/z"]["log_prob"].shape == (5,)


def test_two_priors_live_in_one_model(problem):
    other = pv.decoder_prior(linear_vae(3), name="other")
    guide = AutoNormal(model := lambda: problem.prior() + other())
    assert guide() is not None
    assert [*poutine.trace(model).get_trace().stochastic_nodes] == ["field/z", "other/z"]


@pytest.mark.parametrize("full", [False, True])
def test_layers_are_whitened_one_by_one(full, float64):
    family = pv.posteriors.FullNormal if full else pv.posteriors.DiagonalNormal
    conditional = family(2)
    vae = pv.HierarchicalVAE(
        encoders=[pv.nn.MLP(4, (8,), (2, 2)), pv.nn.MLP(2, (8,), (2, 3))],
        posteriors=[pv.posteriors.DiagonalNormal(2), pv.posteriors.DiagonalNormal(3)],
        decoders=[pv.nn.MLP(2, (8,), 4), pv.nn.MLP(3, (8,), conditional.param_shape)],
        prior=pv.priors.StandardNormal(3),
        likelihood=pv.likelihoods.Bernoulli((4,)),
        conditionals=[conditional],
    ).double()
    prior = pv.decoder_prior(vae, name="image")
    draws = Predictive(prior, num_samples=3000)()
    assert {*draws} == {"image/z1", "image/z2", "image"}
    mean = torch.stack([vae.decode(vae.sample_latents(20000)).mean.mean(0)])
    assert_mean(draws["image"].reshape(-1, 4), mean[0].detach())


def test_what_has_no_white_noise_is_one_line():
    with pytest.raises(ConfigError, match="found a GaussianMixture prior, expected a StandardNormal one"):
        pv.decoder_prior(pv.presets.mlp_vae(data_shape=(3,), prior="mixture", hidden=(4,)))
