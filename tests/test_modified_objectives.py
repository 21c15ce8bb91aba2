"""Objectives that are not the bound itself, and the bound in parts: closed forms, and what each is labelled."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError
from pyro_vae.objectives import ELBO, BetaTCVAE, BetaVAE, FreeBits, InfoVAE
from pyro_vae.objectives.beta_tcvae import log_aggregate
from pyro_vae.objectives.info_vae import mmd
from pyro_vae.schedules import CyclicalWarmup, LinearWarmup
from tests.statistics import assert_mean, assert_not_mean
from tests.test_exams import E2_ELBO, E2_SCALE, e2_data, linear
from tests.test_gradients import LAYERED_X, Layered, layered_slopes

pytestmark = pytest.mark.usefixtures("float64")


def e2_guide(problem):
    return problem.guide(shift=(0.1, -0.2), scale=E2_SCALE)


def e2_kl(problem):
    loc = problem.posterior(e2_data()).mean[0] + torch.tensor([0.1, -0.2])
    q = dist.Normal(loc, torch.tensor(E2_SCALE)).to_event(1)
    return torch.distributions.kl_divergence(q, dist.Normal(torch.zeros(2), 1.0).to_event(1)).item()


def small_vae(latent_dim=2):
    torch.manual_seed(3)
    return pv.presets.mlp_vae(data_shape=(6,), latent_dim=latent_dim, hidden=(8,)).double()


def pixels(num):
    return torch.bernoulli(torch.full((num, 6), 0.4))


# beta-VAE and its warm-up


@pytest.mark.parametrize("analytic_kl", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_kl_term(beta, analytic_kl):
    problem = linear()
    objective = BetaVAE(beta=beta, analytic_kl=analytic_kl)
    bound = objective.estimate(problem.model, e2_guide(problem), e2_data(20_000)).bound
    assert_mean(bound, E2_ELBO + (1 - beta) * e2_kl(problem))
    assert_not_mean(bound, E2_ELBO)
    assert objective.side == ("lower" if beta >= 1 else "not a bound")


def test_beta_one_is_the_elbo_draw_by_draw():
    problem = linear()
    found = []
    for objective in (ELBO(), BetaVAE(beta=1.0)):
        torch.manual_seed(0)
        found.append(objective.estimate(problem.model, e2_guide(problem), e2_data(9)).bound)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("beta", [-1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(beta):
    with pytest.raises(ConfigError, match="beta="):
        BetaVAE(beta=beta)
    with pytest.raises(ConfigError, match="beta="):
        BetaTCVAE(beta=beta, num_data=10)


def test_a_warm_up_counts_the_steps_of_svi_and_of_a_torch_optimiser():
    vae, x = small_vae(), pixels(4)
    objective = BetaVAE(beta=LinearWarmup(num_steps=4, end=2.0))
    assert objective.side == "not a bound"
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    weights = []
    for _ in range(3):
        weights.append(objective.weight)
        svi.step(x)
        svi.evaluate_loss(x)  # which is no step
    loss = objective(vae.model, vae.guide)
    for _ in range(3):
        weights.append(objective.weight)
        loss(x).backward()
    assert weights == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_warm_ups_rise_as_they_say():
    linear_, cyclical = LinearWarmup(num_steps=4), CyclicalWarmup(period=4, num_cycles=2, ramp=0.5, end=2.0)
    assert [linear_(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [cyclical(step) for step in range(10)] == [0, 1, 2, 2, 0, 1, 2, 2, 2, 2]
    for make in (
        lambda: LinearWarmup(num_steps=0),
        lambda: CyclicalWarmup(period=0),
        lambda: CyclicalWarmup(period=4, num_cycles=0),
        lambda: CyclicalWarmup(period=4, ramp=0.0),
    ):
        with pytest.raises(ConfigError):
            make()


# Free bits


def test_free_bits_charge_the_mean_of_the_batch_and_no_less_than_the_threshold():
    vae, x = small_vae(), pixels(20)
    q, p = vae.encode(x), dist.Normal(torch.zeros(2), 1.0)
    kl = torch.distributions.kl_divergence(q.base_dist, p).mean(0)
    threshold = kl.mean().item()  # between the two dimensions
    assert kl.min() < threshold < kl.max()
    charged = kl.max() + threshold
    torch.manual_seed(0)
    found = FreeBits(threshold=threshold).estimate(vae.model, vae.guide, x)
    torch.manual_seed(0)
    exact = ELBO(analytic_kl=True).estimate(vae.model, vae.guide, x).bound
    per_datapoint = torch.distributions.kl_divergence(q.base_dist, p).sum(-1)
    torch.testing.assert_close(found.bound, exact + per_datapoint - charged)
    assert found.bound.mean() <= exact.mean()
    with pytest.raises(ConfigError, match="threshold=-1"):
        FreeBits(threshold=-1.0)


def test_below_its_threshold_a_dimension_feels_no_kl_term():
    vae, x = small_vae(), pixels(20)

    def gradient(objective):
        vae.zero_grad()
        torch.manual_seed(0)
        objective(vae.model, vae.guide)(x).backward()
        return torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])

    torch.testing.assert_close(gradient(FreeBits(threshold=100.0)), gradient(BetaVAE(beta=0.0)))
    torch.testing.assert_close(gradient(FreeBits(threshold=0.0)), gradient(ELBO(analytic_kl=True)))


# Total correlation


def test_the_aggregate_posterior_is_estimated_without_bias():
    # Over all minibatches of three that hold datapoint 0, with a latent value that was drawn for it.
    log_q = torch.randn(7)
    found = []
    for others in itertools.combinations(range(1, 7), 2):
        rows = [0, *others]
        found.append(log_aggregate(log_q[rows].expand(3, 3), num_data=7)[0].exp())
    torch.testing.assert_close(torch.stack(found).mean(), log_q.exp().mean())
    equal_shares = torch.stack([log_q[[0, *o]].exp().mean() for o in itertools.combinations(range(1, 7), 2)]).mean()
    assert (equal_shares - log_q.exp().mean()).abs() > 1e-2  # the negative control


class Spread(nn.Module):
    """q(z | x) = N(x, s^2 I) and a likelihood of one value: the aggregate posterior is that of x, a little wider."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1e3).to_event(1), obs=0 * x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, self.scale).to_event(1))


def correlated(num):
    torch.manual_seed(0)
    return torch.randn(num, 2) @ torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]])).T


def test_total_correlation_of_a_gaussian():
    x, pair = correlated(2000), Spread()
    variance, covariance = 1 + 0.5**2, 0.8
    exact = -0.5 * math.log(1 - (covariance / variance) ** 2)
    losses = []
    for beta in (1.0, 2.0):
        torch.manual_seed(1)
        losses.append(BetaTCVAE(beta=beta, num_data=2000).estimate(pair.model, pair.guide, x).bound)
    torch.manual_seed(1)
    torch.testing.assert_close(losses[0], ELBO().estimate(pair.model, pair.guide, x).bound)
    correlation = losses[0] - losses[1]
    assert correlation.mean().item() == pytest.approx(exact, abs=0.05)
    independent = x[torch.randperm(2000)]
    independent[:, 0] = x[:, 0]
    torch.manual_seed(1)
    none = ELBO().estimate(pair.model, pair.guide, independent).bound
    torch.manual_seed(1)
    none = none - BetaTCVAE(beta=2.0, num_data=2000).estimate(pair.model, pair.guide, independent).bound
    assert none.mean().item() == pytest.approx(0, abs=0.05)


def test_total_correlation_needs_a_product():
    problem = linear()
    with pytest.raises(PairError, match="product"):
        BetaTCVAE(num_data=10).loss(problem.model, problem.guide(), e2_data(4))


# Maximum mean discrepancy


def test_mmd_of_two_gaussians_is_unbiased():
    # E k(z, y) for z - y ~ N(m, 2 I), with a kernel of variance d: (d / (d + 2))^(d / 2) exp(-m^2 / (2 (d + 2))).
    shift = torch.tensor([0.5, -1.0])
    exact = 2 * 0.5 * (1 - math.exp(-1.25 / 8))
    found = torch.stack([mmd(torch.randn(6, 2) + shift, torch.randn(6, 2)) for _ in range(20_000)])
    assert_mean(found, exact)
    same = torch.stack([mmd(torch.randn(6, 2), torch.randn(6, 2)) for _ in range(20_000)])
    assert_mean(same, 0.0)
    assert_not_mean(found, 0.0)


def test_mmd_is_of_the_aggregate_posterior_and_not_of_a_datapoints_particles():
    # Every datapoint's particles sit in one place, but together they are the prior: there is nothing to pay.
    torch.manual_seed(0)
    x, pair = torch.randn(400, 2), Spread(scale=0.01)
    plain = BetaVAE(beta=0.0).estimate(pair.model, pair.guide, x).bound
    found = [
        InfoVAE(mmd_weight=100.0, num_particles=3).estimate(pair.model, pair.guide, x).bound.mean() for _ in range(30)
    ]
    charged = plain.mean() - torch.stack(found)
    assert charged.mean().abs() < 0.5  # 100 times a discrepancy of a few thousandths, for this sample of x
    far = InfoVAE(mmd_weight=100.0).estimate(pair.model, pair.guide, 0 * x).bound.mean()
    assert plain.mean() - far > 10


def test_mmd_of_layers_is_from_draws_of_the_whole_prior():
    chain = {"top": 0.0, "slope1": 0.0, "loc1": 0.0, "log_scale1": 0.5 * math.log(2)}
    chain |= {"slope2": 0.5, "loc2": 0.0, "log_scale2": 0.5 * math.log(0.5)}  # z1 and z2 jointly as in the prior
    pair = Layered(2, 100, start=chain)
    x = torch.full((100,), LAYERED_X)
    differences = []
    for seed in range(100):
        bounds = []
        for weight in (0.0, 1.0):
            torch.manual_seed(seed)
            bounds.append(InfoVAE(mmd_weight=weight).estimate(pair.model, pair.guide, x).bound.mean())
        differences.append(bounds[0] - bounds[1])
    assert_mean(torch.stack(differences).detach(), 0.0)


def test_a_batch_of_one_has_no_aggregate():
    vae, x = small_vae(), pixels(1)
    for objective in (BetaTCVAE(num_data=10), InfoVAE(mmd_weight=5.0), FreeBits()):
        loss = objective(vae.model, vae.guide)(x)
        loss.backward()
        assert math.isfinite(loss.item())


@pytest.mark.parametrize("weights", [{"mmd_weight": -1.0}, {"mmd_weight": 1.0, "kl_weight": math.inf}])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="weight="):
        InfoVAE(**weights)


# The ELBO in parts


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_parts_of_the_elbo(analytic_kl):
    problem = linear()
    x = e2_data(300)
    parts = pv.diagnostics.elbo_parts(problem.model, e2_guide(problem), x, num_particles=70, analytic_kl=analytic_kl)
    kl = e2_kl(problem)
    assert_mean((parts.reconstruction - (E2_ELBO + kl)) / parts.reconstruction_stderr, 0.0)
    if analytic_kl:
        torch.testing.assert_close(parts.kl["z"], torch.full((300,), kl))
        assert parts.kl_stderr["z"].max() < 1e-12
    else:
        assert_mean((parts.kl["z"] - kl) / parts.kl_stderr["z"], 0.0)
        assert ((parts.kl["z"] - kl) / parts.kl_stderr["z"]).std().item() == pytest.approx(1, abs=0.2)
    assert_mean(parts.elbo, E2_ELBO)
    torch.testing.assert_close(parts.elbo, parts.reconstruction - parts.kl["z"])


def test_parts_of_a_layered_pair_are_by_site():
    pair, x = Layered(2, 200), torch.full((200,), LAYERED_X)
    parts = pv.diagnostics.elbo_parts(pair.model, pair.guide, x, num_particles=500)
    assert list(parts.kl) == ["z1", "z2"]
    elbo = pv.evidence.elbo(pair.model, pair.guide, x, num_particles=500)
    gap = (parts.elbo - elbo.value) / (elbo.stderr * math.sqrt(2))
    assert_mean(gap, 0.0)
    # E[log q(z2 | z1) - log p(z2)] by hand: z2 is N(m, v) with the guide's moments.
    slope, loc, scale = 0.7, -0.2, math.exp(-0.4)
    z1_mean, z1_variance = 0.5 * LAYERED_X + 0.1, math.exp(-0.6)
    mean, variance = slope * z1_mean + loc, slope**2 * z1_variance + scale**2
    exact = -math.log(scale) - 0.5 + 0.5 * (variance + (mean - 0.2) ** 2)
    assert_mean((parts.kl["z2"] - exact) / parts.kl_stderr["z2"], 0.0)
    assert layered_slopes(ELBO().bound, 2, 1, 20)  # the same pair as in the exams of gradients


def test_parts_leave_everything_as_it_was_and_refuse_bad_data():
    vae, x = small_vae(), pixels(5)
    state = torch.get_rng_state()
    first, second = (pv.diagnostics.elbo_parts(vae.model, vae.guide, x, num_particles=3) for _ in range(2))
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    with pytest.raises(DataError):
        pv.diagnostics.elbo_parts(vae.model, vae.guide, x * math.nan)
    with pytest.raises(ConfigError, match="num_particles=1"):
        pv.diagnostics.elbo_parts(vae.model, vae.guide, x, num_particles=1)
