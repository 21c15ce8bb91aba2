"""Inference gaps: exact parts of known guides, and an optimum that is judged on draws it has not seen."""

import math
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.diagnostics import inference_gaps
from pyro_vae.errors import ConfigError, DataError, PairError
from pyro_vae.pairs.density import Density
from pyro_vae.pairs.pair import Pair
from pyro_vae.samplers.families import FAMILIES
from pyro_vae.samplers.gaussian_fit import gaussian_of_guide
from pyro_vae.samplers.local_svi import Plan, best_member, compared
from tests.objectives.test_objectives import conv, hand_written, two_layer
from tests.statistics import assert_mean, assert_not_mean
from tests.test_exams import E5_ELBO, E5_LOG_P, E5_X, linear, tanh_vae

APPROXIMATION, AMORTISATION, E2_ELBO = 0.2534841692, 0.2259613537, -7.7047331116
E2_GUIDE = {"shift": (0.1, -0.2), "scale": (0.2**0.5, 0.3**0.5)}


def e2(num=1):
    return torch.tensor([[1.0, -0.5, 0.3, 0.8, -1.2]]).expand(num, 5)


def gaps_of(problem, guide, x, **options):
    return inference_gaps(problem.model, guide, x, log_evidence=problem.log_evidence(x), **options)


@pytest.fixture(scope="module")
def diagonal():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    problem = linear()
    found = gaps_of(problem, problem.guide(**E2_GUIDE), e2(100), num_steps=300)
    torch.set_default_dtype(before)
    return found


@pytest.mark.usefixtures("float64")
class TestExact:
    def test_e2_parts(self, diagonal):
        assert_mean(diagonal.approximation, APPROXIMATION)
        assert_mean(diagonal.amortisation, AMORTISATION)
        assert_mean(diagonal.elbo, E2_ELBO)
        assert_not_mean(diagonal.approximation, AMORTISATION)
        torch.testing.assert_close(diagonal.approximation + diagonal.amortisation, diagonal.total)
        torch.testing.assert_close(diagonal.total, diagonal.log_evidence - diagonal.elbo)

    def test_e2_best_mean_field_is_its_closed_form(self):
        problem = linear()
        density = Density(Pair.of(problem.model, problem.guide(**E2_GUIDE), e2()))
        start = gaussian_of_guide(density, 1000)
        assert start.exact
        torch.testing.assert_close(start.loc, problem.posterior(e2()).mean + torch.tensor([0.1, -0.2]))
        torch.testing.assert_close(start.scale_tril[0], torch.diag(torch.tensor(E2_GUIDE["scale"])))
        member = FAMILIES["diagonal"](start.loc, start.scale_tril)
        best = best_member(density, member, Plan(500, 100, 0.05, 40, 1000), lambda _: None)
        u, _ = member.forward(torch.eye(2)[:, None], best)
        loc, _ = member.forward(torch.zeros(1, 1, 2), best)
        scale = torch.linalg.inv(problem.posterior_covariance).diagonal().rsqrt()
        assert (loc[0] - problem.posterior(e2()).mean).abs().max() < 0.01
        assert ((u - loc)[[0, 1], 0, [0, 1]] / scale - 1).abs().max() < 0.02

    def test_errors_are_those_that_repeats_show(self, diagonal):
        for name in ("elbo", "local_elbo", "approximation", "amortisation"):
            found = getattr(diagonal, name).std().item() / getattr(diagonal, f"{name}_stderr").mean().item()
            assert 0.75 < found < 1.3, name
        apart = torch.hypot(diagonal.elbo_stderr, diagonal.local_elbo_stderr)
        assert (diagonal.amortisation_stderr < 0.9 * apart).all()  # on the same noise

    def test_means_have_two_errors(self, diagonal):
        mean = diagonal.mean_approximation
        assert mean.value.item() == pytest.approx(diagonal.approximation.mean().item())
        assert mean.monte_carlo_error.item() == pytest.approx(diagonal.approximation_stderr.norm().item() / 100)
        assert mean.test_set_error.item() == pytest.approx(diagonal.approximation.std().item() / 10)
        assert diagonal.mean_total.value.item() == pytest.approx(
            mean.value.item() + diagonal.mean_amortisation.value.item()
        )

    @pytest.mark.parametrize(("family", "slack"), [("full", 2e-5), ("flow", 1e-2)])
    def test_a_family_that_holds_the_posterior_closes_the_gap(self, family, slack):
        problem = linear()
        x = problem.sample(20, seed=0)
        found = gaps_of(problem, problem.guide(**E2_GUIDE), x, family=family, num_steps=200)
        assert found.approximation.abs().max() < slack
        assert_mean(found.amortisation, APPROXIMATION + AMORTISATION)

    def test_the_best_guide_has_nothing_to_amortise(self):
        problem = linear()
        x = problem.sample(50, seed=1)
        found = gaps_of(problem, problem.guide(mean_field=True), x, num_steps=100)
        assert_mean(found.approximation, APPROXIMATION)
        assert (found.amortisation.abs() <= 5 * found.amortisation_stderr + 2e-3).all()
        found = gaps_of(problem, problem.guide(), x, family="full", num_steps=50)
        assert found.approximation.abs().max() < 1e-6
        assert found.amortisation.abs().max() < 1e-6

    def test_a_guide_richer_than_the_family_has_a_negative_part(self):
        problem = linear()
        found = gaps_of(problem, problem.guide(), problem.sample(50, seed=2), num_steps=200)
        assert_mean(found.amortisation, -APPROXIMATION)
        assert_mean(found.approximation, APPROXIMATION)

    def test_without_a_step_all_of_a_member_is_amortised(self):
        problem = linear()
        found = gaps_of(problem, problem.guide(**E2_GUIDE), e2(50), num_steps=0)
        assert found.amortisation.abs().max() < 1e-6
        assert_mean(found.approximation, APPROXIMATION + AMORTISATION)

    def test_steps_that_do_harm_are_not_taken(self):
        problem = linear()
        x = problem.sample(20, seed=3)
        found = gaps_of(problem, problem.guide(mean_field=True), x, num_steps=3, learning_rate=2.0)
        assert (found.amortisation > -5 * found.amortisation_stderr - 1e-9).all()
        density = Density(Pair.of(problem.model, problem.guide(mean_field=True), x))
        start = gaussian_of_guide(density, 1000)
        member = FAMILIES["diagonal"](start.loc, start.scale_tril)
        harmed = [torch.full_like(parameter, 2.0) for parameter in member.parameters]
        guide, local, _ = compared(density, start, member, harmed, Plan(0, 1000, 0.1, 10, 1000))
        assert (local.mean < guide.mean - 1).all()  # what the choice is there for


# Not Gaussian


def e5_best(full):
    """The largest ELBO of a Gaussian on E5, by quadrature and a deterministic optimiser."""
    from scipy.optimize import minimize

    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    noise = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    mass = torch.tensor(np.outer(weights, weights).reshape(-1) / weights.sum() ** 2)
    vae = tanh_vae()

    def loss(numbers):
        loc, log_scale, tilt = numbers[:2], numbers[2:4], numbers[4] * full
        z = loc + noise * log_scale.exp() + torch.stack([0 * noise[:, 0], tilt * noise[:, 0]], -1)
        entropy = 1 + math.log(2 * math.pi) + log_scale.sum()
        return -(mass * (vae.prior().log_prob(z) + vae.decode(z).log_prob(E5_X))).sum() - entropy

    def with_slope(numbers):
        numbers = torch.tensor(numbers, requires_grad=True)
        value = loss(numbers)
        return value.item(), torch.autograd.grad(value, numbers)[0].numpy()

    return -minimize(with_slope, np.zeros(5), jac=True).fun


@pytest.mark.usefixtures("float64")
def test_e5_parts_of_every_family():
    vae, x = tanh_vae(), E5_X.expand(20, 4)
    best = {"diagonal": e5_best(False), "full": e5_best(True)}
    parts = {}
    for family in FAMILIES:
        options = {"num_steps": 300 if family == "flow" else 200, "num_particles": 4000, "family": family}
        found = inference_gaps(vae.model, vae.guide, x, log_evidence=torch.full((20,), E5_LOG_P), **options)
        assert_mean(found.elbo, E5_ELBO)
        if family in best:  # the optimum is reached to a thousandth of a nat, and never passed
            assert_mean(found.local_elbo + 5e-4, best[family], sd=found.local_elbo_stderr.mean())
            assert_not_mean(found.local_elbo, E5_ELBO)
        parts[family] = found.mean_approximation
    for larger, smaller in (("diagonal", "full"), ("full", "flow")):
        error = math.hypot(parts[larger].monte_carlo_error, parts[smaller].monte_carlo_error)
        assert parts[larger].value - parts[smaller].value > 4 * error
    assert parts["flow"].value > -5 * parts["flow"].monte_carlo_error  # never above log p(x)
    assert parts["flow"].value < 0.6 * parts["full"].value


@pytest.mark.usefixtures("float64")
def test_the_draws_that_were_optimised_on_would_flatter():
    # Few draws, used again and again: the ELBO on them is above log p(x), on fresh ones it is not.
    vae, x = tanh_vae(), E5_X.expand(30, 4)
    density = Density(Pair.of(vae.model, vae.guide, x))
    start = gaussian_of_guide(density, 1000)
    member = FAMILIES["full"](start.loc, start.scale_tril)
    noise = torch.randn(5, 30, 2)
    leaf = [parameter.clone().requires_grad_() for parameter in member.parameters]
    adam = torch.optim.Adam(leaf, lr=0.05)

    def elbo(noise):
        u, log_q = member.draw(noise, leaf)
        return (density.terms(u, q=False).log_p - log_q).mean(0)

    for _ in range(100):
        adam.zero_grad()
        (-elbo(noise).sum()).backward(inputs=leaf)
        adam.step()
    with torch.no_grad():
        seen, fresh = elbo(noise), elbo(torch.randn(1000, 30, 2))
    assert seen.mean() > E5_LOG_P + 0.1
    assert fresh.mean() < E5_LOG_P
    options = {"num_steps": 150, "family": "full"}
    found = inference_gaps(vae.model, vae.guide, x, log_evidence=torch.full((30,), E5_LOG_P), **options)
    assert (found.approximation > -5 * found.approximation_stderr).all()


# Families


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_density_and_starts_where_it_is_told(family):
    loc, scale_tril = torch.randn(3, 4), torch.randn(3, 4, 4).tril(-1) + torch.eye(4)
    if family == "diagonal":
        scale_tril = torch.diag_embed(torch.rand(3, 4) + 0.5)
    member = FAMILIES[family](loc, scale_tril)
    noise = torch.randn(6, 3, 4)
    u, log_q = member.draw(noise, member.parameters)
    gaussian = dist.MultivariateNormal(loc, scale_tril=scale_tril)
    torch.testing.assert_close(log_q, gaussian.log_prob(u))
    torch.testing.assert_close(u, loc + torch.einsum("bij,kbj->kbi", scale_tril, noise))
    moved = [parameter + 0.3 * torch.randn_like(parameter) for parameter in member.parameters]
    u, log_q = member.draw(noise, moved)
    back, log_det = member.inverse(u, moved)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(log_q, member.log_density(u, moved))
    jacobian = torch.autograd.functional.jacobian(lambda point: member.forward(point, moved)[0][0], noise[:1])
    each = torch.stack([jacobian[row, :, 0, row] for row in range(3)])
    torch.testing.assert_close(log_det[0], each.det().abs().log())


# Foreign pairs


class Estimate(NamedTuple):
    value: Tensor
    stderr: Tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("build", [hand_written, conv, two_layer])
def test_foreign_pairs(build, family):
    model, guide, modules, x = build(num=6)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    generator = torch.get_rng_state()
    options = {"num_steps": 15, "num_particles": 200, "family": family}
    found = inference_gaps(model, guide, x, log_evidence=Estimate(torch.zeros(6), torch.ones(6)), **options)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not pyro.get_param_store().keys()
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in modules.parameters())
    assert found.elbo.dtype == found.approximation.dtype == torch.float64
    assert (found.amortisation > -5 * found.amortisation_stderr - (0.3 if build is two_layer else 1e-5)).all()
    assert (found.approximation_stderr >= 1).all()
    torch.testing.assert_close(found.approximation, -found.local_elbo)
    again = inference_gaps(model, guide, x, log_evidence=torch.zeros(6), **options)
    torch.testing.assert_close(again.local_elbo, found.local_elbo)


def positive_pair():
    """A log-normal latent, whose logarithm has a standard normal prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(scale.log(), 0.5**0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(torch.full_like(x, 0.6), 0.5**0.5))

    return model, guide


@pytest.mark.usefixtures("float64")
def test_a_constrained_latent_is_a_gaussian_where_its_logarithm_is():
    # Exam E1 by another name.
    model, guide = positive_pair()
    x = torch.full((40,), 1.3)
    found = inference_gaps(model, guide, x, log_evidence=torch.full((40,), -1.6850044206), num_steps=200)
    assert found.approximation.abs().max() < 1e-4
    assert_mean(found.amortisation, 0.1539341126)
    assert gaussian_of_guide(Density(Pair.of(model, guide, x)), 1000).exact


@pytest.mark.usefixtures("float64")
def test_what_is_not_gaussian_is_started_from_its_draws():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(torch.tensor([0.5, -1.0]).expand(len(x), 2), 0.3).to_event(1))

    problem = linear()
    start = gaussian_of_guide(Density(Pair.of(problem.model, guide, e2(200))), 100)
    assert not start.exact
    assert_mean(start.loc, torch.tensor([0.5, -1.0]))
    assert_mean(start.scale_tril.square().sum(-1), 2 * 0.3**2)
    found = gaps_of(problem, guide, e2(20), num_steps=300)
    assert_mean(found.approximation, APPROXIMATION)
    assert (found.amortisation > 0).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("max_bytes", [1, 2**14, 2**26])
def test_blocks_keep_the_order_of_rows(max_bytes):
    problem = linear()
    x = problem.sample(3, seed=4)
    options = {"num_steps": 10, "num_particles": 20, "max_bytes": max_bytes}
    found = gaps_of(problem, problem.guide(), x, family="full", **options)
    torch.testing.assert_close(found.elbo, problem.log_evidence(x))
    torch.testing.assert_close(found.local_elbo, problem.log_evidence(x), atol=1e-6, rtol=0)


# Input


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": "planar"}, ConfigError, "family='planar': expected one of 'diagonal', 'full', 'flow'"),
        ({"num_particles": 1}, ConfigError, "num_particles=1: expected at least 2"),
        ({"num_steps": -1}, ConfigError, "num_steps=-1"),
        ({"learning_rate": -1.0}, ConfigError, "learning_rate=-1.0"),
        ({"log_evidence": torch.zeros(4)}, DataError, r"found shape \(4,\), expected one number per datapoint, \(3,\)"),
        ({"log_evidence": torch.zeros(())}, DataError, "log_evidence: found shape"),
    ],
    ids=["family", "particles", "steps", "rate", "rows", "scalar"],
)
def test_unusable_options_are_refused(options, error, message):
    problem = linear()
    x = problem.sample(3, seed=0)
    with pytest.raises(error, match=message):
        inference_gaps(problem.model, problem.guide(), x, **{"log_evidence": torch.zeros(3), **options})


def test_a_flow_needs_two_dimensions():
    problem = pv.problems.linear_gaussian(W=[[1.0]])
    with pytest.raises(ConfigError, match="two latent dimensions, found 1: use 'full'"):
        inference_gaps(problem.model, problem.guide(), torch.zeros(2, 1), log_evidence=torch.zeros(2), family="flow")


def test_discrete_latents_are_refused():
    logits = nn.Parameter(torch.zeros(2))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits[0].expand(len(x))))

    with pytest.raises(PairError, match="no reparameterised distribution"):
        inference_gaps(model, guide, torch.zeros(3), log_evidence=torch.zeros(3))
