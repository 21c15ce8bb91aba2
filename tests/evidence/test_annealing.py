"""Annealing: exam question E3, unbiased weights, both sides of log p(x) (E9), and what must not work."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError, ShapeError, require_one_of
from pyro_vae.evidence import ais, sandwich, smc
from pyro_vae.ops.hmc import init, leapfrog
from pyro_vae.ops.streaming import LogMoments
from pyro_vae.pairs.density import Density
from pyro_vae.pairs.pair import Pair
from pyro_vae.pairs.simulation import simulate
from pyro_vae.samplers.chunks import chain_bytes
from pyro_vae.samplers.tempering import TemperedPath, anneal, temperatures
from pyro_vae.samplers.tuning import tune
from tests.objectives.test_objectives import conv, hand_written, perceptron, pixels, standard_normal, two_layer
from tests.statistics import assert_mean, assert_not_mean

both_starts = pytest.mark.parametrize("start", ["guide", "prior"])
both_estimators = pytest.mark.parametrize("estimate", [ais, smc])

far_guides = pytest.mark.parametrize(
    ("start", "options"),
    [("guide", {"inflate": 2.0}), ("guide", {"inflate": 0.7}), ("guide", {"shift": 0.5}), ("prior", {"inflate": 2.0})],
    ids=["wide", "narrow", "shifted", "prior"],
)


def linear():
    W = torch.tensor([[1.0, 0.8], [0.5, 1.0], [0.4, 1.0], [1.0, 0.2], [0.3, 0.2]], dtype=torch.float64)
    return pv.problems.linear_gaussian(W=W, scale=0.5**0.5)


def small_vae():
    return pv.presets.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))


# E3: with exact draws at every temperature the gap is known


E3_X, E3_LOG_P, E3_GAP = (1.0, -0.5, 0.3, 0.8, -1.2), -7.2252875887, 5.2835914598


def e3(num):
    problem = linear()
    x = torch.tensor(E3_X, dtype=torch.float64).expand(num, 5)
    return problem, x, TemperedPath(Density(Pair.of(problem.model, problem.guide(), x)), "prior")


def tempered(beta):
    """The posterior of E3 under a likelihood to the power beta."""
    W, x = linear().W, torch.tensor(E3_X, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(2) + beta / 0.5 * W.T @ W)
    return torch.distributions.MultivariateNormal(covariance @ W.T @ x * beta / 0.5, covariance)


def exact_transition(path, betas):
    def transition(t, state):
        beta = betas[t].item()
        return path.begin(tempered(beta).sample(state.position.shape[:2]), beta)

    return transition


def both_ways(path, betas, transition, num_chains):
    """Single log-weights from below and from above."""
    up = anneal(path.begin(path.draw(num_chains), 0.0), betas, transition)
    posterior = tempered(1.0).sample((num_chains, len(path.density)))
    return up.flatten(), anneal(path.begin(posterior, 1.0), betas, transition, reverse=True).flatten()


@pytest.mark.usefixtures("float64")
def test_e3_answers_agree_with_the_closed_form():
    prior, posterior = tempered(0.0), tempered(1.0)
    kl = torch.distributions.kl_divergence
    assert (kl(prior, posterior) + kl(posterior, prior)).item() == pytest.approx(E3_GAP, abs=1e-9)
    assert linear().log_evidence(torch.tensor([E3_X])).item() == pytest.approx(E3_LOG_P, abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num", [1, 2, 10])
def test_e3_the_gap_of_exact_transitions(num):
    _, _, path = e3(4000)
    betas = temperatures(num, "linear")
    lower, upper = both_ways(path, betas, exact_transition(path, betas), 10)
    assert_mean(upper - lower, E3_GAP / num)
    assert_mean((lower - E3_LOG_P).exp(), 1)
    assert_not_mean(upper - lower, E3_GAP / (1.3 * num))
    if num > 2:  # with less, the variance of one over a weight is infinite
        assert_mean((E3_LOG_P - upper).exp(), 1)


@pytest.mark.usefixtures("float64")
def test_e3_the_gap_of_chains_is_larger_and_closes():
    _, _, path = e3(200)
    gaps = []
    for num in (1, 4, 16):
        betas = temperatures(num, "linear")
        lower, upper = both_ways(path, betas, tune(path, betas, num_steps=2, most=8), 4)
        gap = (upper - lower).view(4, -1).mean(0)  # the chains of one datapoint share step sizes
        error = gap.std() / math.sqrt(len(gap))
        assert gap.mean() > E3_GAP / num - 5 * error
        assert lower.mean() <= E3_LOG_P + 5 * lower.std() / len(lower) ** 0.5
        assert upper.mean() >= E3_LOG_P - 5 * upper.std() / len(upper) ** 0.5
        gaps.append(gap.mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.8


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_temperatures_rise_from_0_to_1(schedule):
    for num in (1, 2, 7, 1000):
        betas = temperatures(num, schedule)
        assert len(betas) == num + 1
        assert betas[0] == 0
        assert betas[-1] == 1
        assert (betas.diff() > 0).all()
        torch.testing.assert_close(betas + betas.flip(0), torch.ones_like(betas))
    steps = betas.diff()
    assert (steps[0] / steps[500]).item() == pytest.approx(1 if schedule == "linear" else 0.0707, rel=0.01)


# Unbiased, with an error bar that holds


def assert_unbiased(found, exact):
    assert_mean((found.value - exact).exp(), 1)


@far_guides
@pytest.mark.usefixtures("float64")
def test_ais_meets_the_closed_form(start, options):
    problem = linear()
    x = problem.sample(400, seed=0)
    exact = problem.log_evidence(x)
    found = ais(problem.model, problem.guide(**options), x, num_particles=60, num_temperatures=10, start=start)
    assert found.side == "lower"
    assert_unbiased(found, exact)
    assert_not_mean((found.value - exact + 0.1).exp(), 1)
    covered = ((found.value - exact).abs() < 1.96 * found.stderr).double().mean()
    assert 0.89 <= covered <= 0.98  # the delta method is optimistic where few weights are large
    assert (found.num_particles == 60).all()
    assert 5 < found.ess.mean() < 60
    assert found.pareto_k.isnan().all()
    assert found.share("ok") > 0.7
    assert not found.simulated


@far_guides
@pytest.mark.usefixtures("float64")
def test_smc_meets_the_closed_form(start, options):
    problem = linear()
    x = problem.sample(200, seed=1)
    exact = problem.log_evidence(x)
    number = {"num_particles": 8, "num_populations": 30, "num_temperatures": 8}
    found = smc(problem.model, problem.guide(**options), x, start=start, **number)
    assert found.side == "lower"
    assert_unbiased(found, exact)
    covered = ((found.value - exact).abs() < 1.96 * found.stderr).double().mean()
    assert 0.88 <= covered <= 0.99
    assert (found.num_particles == 240).all()
    assert found.ess.max() <= 30


@pytest.mark.usefixtures("float64")
def test_resampling_happens_and_pays():
    # With one leapfrog step from a prior that is far away, chains lag behind, and those that do are worth nothing.
    W = torch.randn(20, 6, dtype=torch.float64)
    problem = pv.problems.linear_gaussian(W=W, scale=0.3)
    x = problem.sample(20, seed=2)
    options = {"num_temperatures": 30, "num_steps": 1, "start": "prior"}
    chains = ais(problem.model, problem.guide(), x, num_particles=64, **options)
    found = smc(problem.model, problem.guide(), x, num_particles=16, num_populations=4, **options)
    exact = problem.log_evidence(x)
    assert (found.value - exact).square().mean() < 0.5 * (chains.value - exact).square().mean()


@both_estimators
@both_starts
def test_exact_guide_leaves_neither_gap_nor_error(estimate, start):
    problem = linear()
    x = problem.sample(5, seed=3)
    found = estimate(problem.model, problem.guide(), x, num_particles=4, num_temperatures=5, start=start)
    if start == "guide":
        torch.testing.assert_close(found.value, problem.log_evidence(x), atol=1e-9, rtol=0)
        assert found.stderr.max() < 1e-6
    else:
        assert found.stderr.min() > 1e-3


def test_one_temperature_is_importance_sampling():
    problem = linear()
    x, guide = problem.sample(300, seed=4), problem.guide(inflate=1.2)
    found = ais(problem.model, guide, x, num_particles=100, num_temperatures=1)
    assert (found.num_evaluations == 100).all()
    chi2 = 1.2**4 / (2 * 1.2**2 - 1) - 1
    assert_mean(found.value - problem.log_evidence(x), -chi2 / 2 / 100, sd=math.sqrt(chi2 / 100))
    assert_mean(found.stderr**2, chi2 / 100, sd=found.stderr.square().std() + chi2 / 100)


@pytest.mark.parametrize(("num_temperatures", "verdict"), [(1, "doubtful"), (2, "ok")])
def test_and_is_judged_like_it(num_temperatures, verdict):
    problem = linear()
    x, guide = problem.sample(20, seed=4), problem.guide(inflate=1.2)
    found = ais(problem.model, guide, x, num_temperatures=num_temperatures)
    assert set(found.verdict) == {verdict}


# Any pair


@functools.cache
def foreign(build):
    """A pair, and what importance sampling of very many draws says of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, guide, _, x = build(num=6)
        with torch.no_grad():
            density = Density(Pair.of(model, guide, x))
            found = LogMoments.of(torch.cat([density.terms(density.draw(1000)).log_w for _ in range(20)]))
    return model, guide, x, found.log_mean, found.stderr


def bottom_up(num):
    return two_layer(num, top_down_guide=False)


@both_starts
@pytest.mark.parametrize(
    ("build", "estimate"),
    [(hand_written, ais), (two_layer, ais), (two_layer, smc), (bottom_up, ais), (conv, ais), (conv, smc)],
)
def test_foreign_pairs_agree_with_importance_sampling(build, estimate, start):
    model, guide, x, value, stderr = foreign(build)
    chains = {"num_particles": 40} if estimate is ais else {"num_particles": 8, "num_populations": 12}
    found = estimate(model, guide, x, num_temperatures=5, start=start, **chains)
    assert ((found.value - value).abs() < 5 * torch.hypot(found.stderr, stderr)).all()
    assert found.stderr.max() < 0.5


class Positive:
    """A latent that is positive, with a Gaussian likelihood; log p(x) by quadrature."""

    def __init__(self, prior, q):
        self.prior, self.q = prior, q

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q)

    def log_evidence(self, x):
        def density(z):
            return math.exp(self.prior.log_prob(torch.tensor(z)) + dist.Normal(z, 0.5).log_prob(torch.tensor(x)))

        return math.log(scipy.integrate.quad(density, 1e-12, 30.0, points=(0.1, 1.0, 5.0), limit=200)[0])


@both_starts
@pytest.mark.parametrize("family", ["gamma", "log-normal"])
@pytest.mark.usefixtures("float64")
def test_constrained_latents_meet_quadrature(family, start):
    one = torch.tensor(1.0)
    prior = dist.Gamma(2 * one, one) if family == "gamma" else dist.LogNormal(0 * one, one)
    pair = Positive(prior, dist.LogNormal(0 * one, 0.8 * one))
    x = torch.tensor([0.3, 1.0, 3.0]).repeat_interleave(150)
    exact = torch.tensor([pair.log_evidence(value) for value in (0.3, 1.0, 3.0)]).repeat_interleave(150)
    found = ais(pair.model, pair.guide, x, num_particles=8, num_temperatures=10, start=start)
    for rows in torch.arange(450).view(3, 150):
        assert_mean((found.value - exact)[rows].exp(), 1)
    assert_not_mean((found.value - exact + 0.2).exp(), 1)


# What must not work


def adapting_online(steps):
    """A step size that follows the acceptance of the chains that it moves: those refused try again, with a smaller."""

    def transition(t, state):
        beta = steps.betas[t].item()
        tried, info = steps.move(beta, 1.2 * steps.sizes[t], state)
        again, _ = steps.move(beta, 0.3 * steps.sizes[t], state)
        return steps.path.begin(torch.where(info.accepted[..., None], tried.position, again.position), beta)

    return transition


def repeated(transition):
    def many(t, state):
        for _ in range(4):
            state = transition(t, state)
        return state

    return many


def never_refusing(steps):
    def transition(t, state):
        beta = steps.betas[t].item()
        state = init(state.position, steps.path.at(beta))
        stride = steps.sizes[t][:, None] * steps.precisions[1].rsqrt()
        return leapfrog(steps.path.at(beta), state, torch.randn_like(state.position), stride=stride, num_steps=2)[0]

    return transition


def weighing_after_the_move(steps, state):
    """The right transitions, and weights at where they led to."""
    log_w, betas = 0.0, steps.betas
    for t in range(1, len(betas)):
        state = steps(t, state)
        log_p, log_q = state.carried[1], state.carried[0]
        log_w = log_w + (betas[t] - betas[t - 1]) * (log_p - log_q)
    return log_w


@pytest.mark.usefixtures("float64")
def test_wrong_chains_are_found_out():
    problem = linear()
    x = problem.sample(1000, seed=5)
    path = TemperedPath(Density(Pair.of(problem.model, problem.guide(inflate=1.5), x)), "guide")
    steps = tune(path, temperatures(6, "sigmoid"), num_steps=2, most=8)

    def ratio(transition):
        log_w = anneal(path.begin(path.draw(40), 0.0), steps.betas, transition)
        return (log_w - problem.log_evidence(x)).exp().mean(0)

    assert_mean(ratio(repeated(steps)), 1)
    assert_not_mean(ratio(repeated(adapting_online(steps))), 1)
    assert_mean(ratio(steps), 1)
    assert_not_mean(ratio(never_refusing(steps)), 1)
    late = weighing_after_the_move(steps, path.begin(path.draw(40), 0.0))
    assert_not_mean((late - problem.log_evidence(x)).exp().mean(0), 1)


@pytest.mark.usefixtures("float64")
def test_the_pilot_finds_steps_that_are_accepted():
    problem = linear()
    x = problem.sample(40, seed=6)
    x[20:] *= 4
    for start, guide in (("guide", {"inflate": 0.3}), ("guide", {"inflate": 3.0}), ("prior", {})):
        path = TemperedPath(Density(Pair.of(problem.model, problem.guide(**guide), x)), start)
        betas = temperatures(20, "sigmoid")
        steps = tune(path, betas, num_steps=2, most=8)
        state, accepted = path.begin(path.draw(100), 0.0), []
        for t in range(1, 20):
            state, info = steps.move(betas[t].item(), steps.sizes[t], state)
            accepted.append(info.acceptance)
        assert 0.65 < torch.stack(accepted).mean() < 0.85
        assert torch.stack(accepted).mean((0, 1)).min() > 0.5


# E9: both sides


def assert_below(lower, upper):
    gap, error = upper.mean - lower.mean, math.hypot(lower.monte_carlo_error, upper.monte_carlo_error)
    assert gap > -5 * error, f"{lower.mean} above {upper.mean}"


@both_starts
@pytest.mark.usefixtures("float64")
def test_e9_bounds_are_around_the_closed_form(start):
    problem = linear()
    x, z = simulate(problem.model, torch.zeros(400, 5))
    exact = problem.log_evidence(x)
    guide = problem.guide(shift=0.3, inflate=1.3)
    for options in (
        {"num_temperatures": 2, "num_particles": 4, "start": start},
        {"method": "iwae", "num_particles": 4},
    ):
        lower, upper = sandwich(problem.model, guide, x, z, **options)
        assert (lower.side, upper.side) == ("lower", "upper")
        assert lower.simulated
        assert upper.simulated
        assert_mean((lower.value - exact).exp(), 1)
        assert_mean((exact - upper.value).exp(), 1)
        assert (lower.value - exact).mean() < 0 < (upper.value - exact).mean()
        assert_not_mean(upper.value - lower.value, 0)  # told apart
        assert lower.stderr.isfinite().all()
        assert upper.stderr.isfinite().all()


@pytest.mark.parametrize("method", ["ais", "iwae"])
@pytest.mark.usefixtures("float64")
def test_the_error_of_a_bound_is_what_it_varies_by(method):
    problem = linear()
    (x, z), num = simulate(problem.model, torch.zeros(1, 5), seed=4), 400
    again = {name: value.expand(num, *value.shape[1:]) for name, value in z.items()}
    options = {"method": method, "num_temperatures": 8, "num_particles": 100}
    for bound in sandwich(problem.model, problem.guide(inflate=1.5), x.expand(num, 5), again, **options):
        assert bound.value.std().item() == pytest.approx(bound.stderr.mean().item(), rel=0.2)


@pytest.mark.parametrize("trained", [False, True])
def test_e9_every_lower_bound_is_below_every_upper_bound(trained):
    vae = small_vae()
    if trained:
        pv.fit(vae, pixels(200, 8), num_epochs=8, batch_size=50, progress=False)
    x, z = simulate(vae.model, torch.zeros(60, 8))
    options = {"num_particles": 10, "num_temperatures": 4}
    lower, upper = sandwich(vae.model, vae.guide, x, z, **options)
    narrow, wide = sandwich(vae.model, vae.guide, x, z, method="iwae", num_particles=200)
    population = smc(vae.model, vae.guide, x, num_temperatures=4, num_particles=5, num_populations=4)
    single = ais(vae.model, vae.guide, x, start="prior", **options)
    for below in (lower, narrow, population, single):
        for above in (upper, wide):
            assert_below(below, above)


# Simulated data


@pytest.mark.parametrize(
    "build", [hand_written, conv, two_layer, lambda: (small_vae().model, None, None, pixels(32, 8))]
)
def test_simulated_data_forget_what_they_were_shaped_after(build):
    model, *_, x = build()
    ones, zeros = (simulate(model, torch.full_like(x, value), seed=3) for value in (1, 0))
    assert ones.x.shape == x.shape
    assert ones.x.dtype == x.dtype
    assert set(ones.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(ones.x, zeros.x)
    assert all(torch.equal(value, zeros.z[name]) for name, value in ones.z.items())
    assert not torch.equal(ones.x, simulate(model, x, seed=4).x)
    assert all(len(value) == len(x) for value in ones.z.values())


@pytest.mark.usefixtures("float64")
def test_simulated_data_and_their_latents_belong_together():
    problem = linear()
    x, z = simulate(problem.model, torch.zeros(20_000, 5))
    noise = x - z["z"] @ problem.W.T
    assert_mean(z["z"].square(), 1)
    assert_mean(noise.square(), 0.5)
    assert_mean(noise[:, 0] * z["z"][:, 0], 0)


def test_flat_sites_get_the_shape_of_the_data():
    net = perceptron(2, 8)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x.reshape(-1, 8))

    assert simulate(model, pixels(5, 2, 4)).x.shape == (5, 2, 4)


def with_sites(*observed, factor=False):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            for name in observed:
                logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 8)
                pyro.sample(name, dist.Bernoulli(logits=logits).to_event(1), obs=x if name == "x" else 1 - x)
            if factor:
                pyro.factor("extra", z.sum(-1))

    return model


def with_masked(x):
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
        z = pyro.sample("z", standard_normal(2))
        pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 8)).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_sites(), "found 0 observed sites"),
        (with_sites("x", "y"), r"found 2 observed sites and factors \['x', 'y'\]"),
        (with_sites("x", factor=True), r"\['x', 'extra'\], expected one"),
        (with_sites("y"), "holds something else than x"),
        (with_masked, "is masked"),
    ],
    ids=["none", "two", "factor", "changed", "masked"],
)
def test_models_that_say_not_how_x_arises_are_refused(model, message):
    with pytest.raises(PairError, match=message):
        simulate(model, torch.eye(8))


# Cost


@pytest.mark.usefixtures("first_opinion")
@both_starts
def test_evaluations_are_counted(start):
    model, guide, modules, x = hand_written(num=5)
    seen = []
    modules[1].register_forward_hook(lambda module, inputs, output: seen.append(output.numel() // 8))
    options = {"num_temperatures": 4, "num_steps": 3, "start": start}
    found = ais(model, guide, x, num_particles=7, **options)
    pilot = 4 * (1 + (8 + 2 * 3) * 3)
    assert (found.num_evaluations == pilot + 7 * (1 + 3 * 3)).all()
    probes = (32 if start == "prior" else 0) + 60
    assert 0 <= sum(seen) / 5 - found.num_evaluations[0] < probes + 10
    populations = smc(model, guide, x, num_particles=7, num_populations=3, **options)
    assert (populations.num_evaluations == pilot + 21 * (1 + 3 * 3)).all()
    x, z = simulate(model, x)
    for bound in sandwich(model, guide, x, z, num_particles=7, **options):
        assert (bound.num_evaluations == pilot + 7 * (1 + 3 * 3)).all()


def test_another_temperature_costs_no_evaluation_and_the_guide_runs_once():
    model, guide, modules, x = hand_written(num=5)
    path = TemperedPath(Density(Pair.of(model, guide, x)), "guide")
    seen = []
    modules[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    steps = tune(path, temperatures(4, "linear"), num_steps=2, most=8)
    before = path.num_evaluations
    steps(3, steps(2, path.begin(path.draw(6), 0.0)))
    assert path.num_evaluations - before == 6 * (1 + 2 * 2)
    assert not seen


@pytest.mark.usefixtures("first_opinion")
def test_blocks_fit_the_memory_and_keep_the_order():
    problem = linear()
    x = problem.sample(5, seed=8)
    exact, guide = problem.log_evidence(x), problem.guide(inflate=1.2)
    assert chain_bytes(Pair.of(problem.model, guide, x), "guide") < 2000
    for max_bytes in (1, 60_000):
        for estimate in (ais, functools.partial(smc, num_populations=4, start="prior")):
            found = estimate(
                problem.model, guide, x, num_particles=6, num_temperatures=2, num_steps=1, max_bytes=max_bytes
            )
            assert ((found.value - exact).abs() < 5 * found.stderr).all()
    vae, x = small_vae(), pixels(9, 8)
    largest = []
    for max_bytes in (2**14, 2**18):
        rows = []
        hook = vae.decoder.register_forward_hook(lambda module, inputs, output, rows=rows: rows.append(output.shape[0]))
        ais(vae.model, vae.guide, x, num_temperatures=2, num_steps=1, max_bytes=max_bytes)
        hook.remove()
        largest.append(max(rows))
    assert largest[0] < 2**14 / (3 * 4 * 8)
    assert largest[1] == 9 * 16


# Nothing is changed


def run_all(model, guide, x, **options):
    x, z = simulate(model, x, seed=options.get("seed", 0))
    chains = {"num_particles": 3, "num_temperatures": 2, "num_steps": 1, **options}
    return torch.stack(
        [
            ais(model, guide, x, **chains).value,
            ais(model, guide, x, start="prior", **chains).value,
            smc(model, guide, x, num_populations=2, **chains).value,
            *(bound.value for bound in sandwich(model, guide, x, z, **chains)),
            *(bound.value for bound in sandwich(model, guide, x, z, method="iwae", **chains)),
        ]
    )


def test_the_draws_depend_on_the_seed_alone():
    vae, x = small_vae(), pixels(4, 8)
    found = []
    for caller_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(caller_seed)
        found.append(run_all(vae.model, vae.guide, x, seed=seed))
    assert torch.equal(found[0], found[1])
    assert (found[0] != found[2]).all()


class Normalised(nn.Module):
    """A VAE with layers that learn while they are looked at, unless they are told not to."""

    def __init__(self):
        super().__init__()
        self.vae = pv.VAE(
            encoder=nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)),
            decoder=nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 8)),
            prior=pv.priors.StandardNormal(2),
            likelihood=pv.likelihoods.Bernoulli((8,)),
        )
        self.model, self.guide = self.vae.model, self.vae.guide


def hand_written_modules():
    model, guide, modules, _ = hand_written()
    modules.model, modules.guide = model, guide
    return modules


@pytest.mark.parametrize("build", [Normalised, hand_written_modules])
def test_nothing_is_trained_and_nothing_is_left_behind(build):
    pair, x = build().train(), pixels(6, 8)
    loc = pyro.param("loc", torch.ones(3))  # of some other model
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    generator, numpy_generator = torch.get_rng_state(), np.random.get_state()[1].copy()
    validation = torch.distributions.Distribution._validate_args
    assert run_all(pair.model, pair.guide, x).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pair.parameters())
    assert all(module.training for module in pair.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == numpy_generator).all()
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert pyro.param("loc") is loc
    assert torch.is_grad_enabled()
    assert torch.distributions.Distribution._validate_args is validation


# What cannot be estimated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "num_particles=1: expected at least 2, since one chain has no error bar"),
        ({"num_temperatures": 0}, "num_temperatures=0: expected at least 1"),
        ({"num_steps": 0}, "num_steps=0: expected at least 1"),
    ],
)
@both_estimators
def test_bad_options_get_one_line(estimate, options, message):
    problem = linear()
    message = message.replace("one chain has no error bar", "one is not resampled" if estimate is smc else "one chain")
    with pytest.raises(ConfigError, match=message) as raised:
        estimate(problem.model, problem.guide(), problem.sample(2, seed=0), **options)
    assert "\n" not in str(raised.value)


def test_one_population_has_no_error_bar():
    problem = linear()
    with pytest.raises(ConfigError, match="num_populations=1: expected at least 2"):
        smc(problem.model, problem.guide(), problem.sample(2, seed=0), num_populations=1)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        ({}, PairError, r"z_true has sites and shapes \{\}, expected those of the pair, \{'z': \(2,\)\}"),
        ({"z": torch.zeros(3, 4)}, PairError, r"\{'z': \(4,\)\}, expected"),
        ({"z": torch.zeros(2, 2)}, ShapeError, r"z_true\['z'\]: found shape \(2, 2\), expected \(3, ...\)"),
        ({"z": torch.full((3, 2), math.nan)}, DataError, r"z_true\['z'\]: found 6 non-finite"),
    ],
    ids=["none", "wide", "few", "nan"],
)
@pytest.mark.parametrize("method", ["ais", "iwae"])
def test_latents_that_did_not_make_the_data_are_refused(method, z, error, message):
    problem = linear()
    with pytest.raises(error, match=message):
        sandwich(problem.model, problem.guide(), problem.sample(3, seed=0), z, method=method)


def test_unknown_options_and_too_few_draws_are_refused():
    problem = linear()
    x, z = simulate(problem.model, torch.zeros(3, 5))
    with pytest.raises(ConfigError, match="schedule='cosine': expected one of 'sigmoid', 'linear'"):
        temperatures(3, "cosine")
    with pytest.raises(ConfigError, match="method='smc': expected one of 'ais', 'iwae'"):
        require_one_of("method", "smc", ("ais", "iwae"))
    with pytest.raises(ConfigError, match="num_particles=2: expected at least 3"):
        sandwich(problem.model, problem.guide(), x, z, method="iwae", num_particles=2)


@both_estimators
def test_unusable_data_and_pairs_are_refused(estimate):
    problem = linear()
    with pytest.raises(DataError, match="non-finite"):
        estimate(problem.model, problem.guide(), torch.full((2, 5), math.nan))
    with pytest.raises(PairError, match="no latent site"):
        estimate(problem.model, lambda x: None, problem.sample(2, seed=0))


def point_mass(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.full((len(x), 2), 0.1, dtype=torch.float64)).to_event(1))


def test_a_point_mass_will_do_where_the_guide_has_only_to_point():
    problem = linear()
    x = problem.sample(200, seed=9)
    with pytest.raises(PairError, match="point mass"):
        ais(problem.model, point_mass, x)
    found = ais(problem.model, point_mass, x, start="prior", num_temperatures=20)
    assert_unbiased(found, problem.log_evidence(x))


def test_a_decoder_that_overflows_is_survived():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(1))
            pyro.sample("x", dist.Normal(z, (8 * z).exp()).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    found = ais(model, guide, torch.ones(5, 1), num_temperatures=10)
    assert found.value.isfinite().all()


def test_values_out_of_the_support_are_still_refused():
    model, guide, _, x = hand_written(num=4)
    with pytest.raises(ValueError, match="support"):
        ais(model, guide, x + 0.5)
