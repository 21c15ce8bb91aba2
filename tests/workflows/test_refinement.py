"""Refinement: closer to exact posteriors with every further effort, and honest about how much closer."""

import json
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae as pv
from benchmarks.refinement import BUDGETS, digits, examined, table
from pyro_vae.errors import ConfigError, DataError, PairError
from pyro_vae.ops import hmc
from pyro_vae.pairs.density import Density
from pyro_vae.pairs.pair import Pair
from pyro_vae.samplers import chains as moves
from pyro_vae.samplers.gaussian_fit import gaussian_of_guide
from pyro_vae.samplers.tempering import TemperedPath
from pyro_vae.workflows.refinement import convergence as mixing
from tests.diagnostics.test_inference_gaps import positive_pair
from tests.objectives.test_objectives import conv, two_layer
from tests.statistics import assert_mean, assert_not_mean
from tests.test_benchmarks import RESULTS
from tests.test_exams import linear

BAD = {"shift": (0.5, -0.4), "scale": (0.5, 0.3)}  # off, too narrow, and without the correlation


def divergence(problem, x, z):
    """KL(Gaussian of the draws || exact posterior), per datapoint; 2.5 / K for K exact draws."""
    mean, covariance = z.mean(0), torch.einsum("kbi,kbj->bij", z - z.mean(0), z - z.mean(0)) / (len(z) - 1)
    return kl_divergence(MultivariateNormal(mean, covariance), problem.posterior(x))


def of_guide(problem, x, **options):
    """KL(q || exact posterior), which is log p(x) - ELBO."""
    loc = problem.posterior(x).mean + torch.tensor(options["shift"])
    return kl_divergence(MultivariateNormal(loc, torch.diag(torch.tensor(options["scale"])) ** 2), problem.posterior(x))


@pytest.mark.usefixtures("float64")
class TestLinearGaussian:
    @pytest.mark.parametrize(
        ("method", "budgets", "last"),
        [
            ("sir", [{"num_particles": num} for num in (10, 100, 1000)], 0.2),
            ("hmc", [{"num_draws": 4 * num, "num_warmup": num, "num_particles": 100} for num in (16, 40, 80)], 0.015),
        ],
        ids=["sir", "hmc"],
    )
    def test_kl_to_the_posterior_falls_with_the_budget(self, method, budgets, last):
        problem, guide = linear(), linear().guide(**BAD)
        x = problem.sample(50, seed=0)
        drawn = [pv.refine(problem.model, guide, x, method=method, **budget) for budget in budgets]
        found = [divergence(problem, x, one.z["z"]).mean().item() for one in drawn]
        assert all(less > more for less, more in pairwise(found))
        assert found[-1] < last
        gains = [one.mean_gain.value.item() for one in drawn]
        assert method == "hmc" or all(less < more for less, more in pairwise(gains))

    def test_draws_that_are_not_refined_stay_where_they_are(self):
        problem, x = linear(), linear().sample(100, seed=0)
        guide = problem.guide(**BAD)
        drawn = pv.draw_particles(problem.model, guide, x, num_particles=2000).z["z"]
        assert divergence(problem, x, drawn).mean() > 0.8

    def test_the_gain_of_svi_is_the_divergence_that_it_removes(self):
        problem, x = linear(), linear().sample(100, seed=0)
        few, more, found = (
            pv.refine(problem.model, problem.guide(**BAD), x, method="svi", num_particles=300, num_steps=num)
            for num in (0, 15, 150)
        )
        left = [divergence(problem, x, one.z["z"]).mean().item() for one in (few, more, found)]
        assert left[0] > left[1] > left[2]
        assert left[2] < 0.006
        assert few.gain.abs().max() < 1e-9
        exact = of_guide(problem, x, **BAD)
        assert_mean((found.gain - exact) / found.gain_stderr, 0.0, sd=1.0, slack=0.1)
        assert_not_mean((0.9 * found.gain - exact) / found.gain_stderr, 0.0, sd=1.0)
        assert 0.8 < ((found.gain - exact) / found.gain_stderr).std() < 1.25
        assert (found.evidence.verdict == "ok").all()
        errors = (found.evidence.value - problem.log_evidence(x)) / found.evidence.stderr
        assert 0.8 < errors.std() < 1.25

    def test_the_gain_of_sir_is_the_whole_gap_if_the_weights_are_good(self):
        problem, x = linear(), linear().sample(100, seed=0)
        wide = {"shift": (0.2, -0.1), "scale": (0.8, 0.8)}
        found = pv.refine(problem.model, problem.guide(**wide), x, num_particles=2000)
        errors = (found.gain - of_guide(problem, x, **wide)) / found.gain_stderr
        assert 0.8 < errors.std() < 1.25
        assert errors.mean().abs() < 0.5
        assert (found.gain_stderr < 0.9 * torch.hypot(found.evidence.stderr, found.elbo_stderr)).all()  # the same draws
        assert (found.verdict == "ok").all()
        assert ((found.ess > 100) & (found.ess < 2000 / 2 + 1)).all()
        assert divergence(problem, x, found.z["z"]).mean() < 0.02

    def test_weights_that_a_few_draws_decide_are_said_to_be_so(self):
        problem, x = linear(), linear().sample(50, seed=0)
        found = pv.refine(problem.model, problem.guide(**BAD), x, num_particles=2000)
        assert (found.verdict != "ok").mean() > 0.9

    def test_draws_of_svi_can_be_weighed(self):
        problem, x = linear(), linear().sample(50, seed=0)
        wide = problem.guide(scale=(0.9, 0.9))
        found = pv.refine(problem.model, wide, x, method="svi", num_steps=0, num_particles=2)
        weights = torch.softmax(found.log_w, 0)[..., None]
        mean = (weights * found.z["z"]).sum(0)
        spread = (weights * (found.z["z"] - mean).square()).sum(0)
        exact = problem.posterior_covariance.diagonal()
        assert ((mean - problem.posterior(x).mean).abs() < 5 * (exact / found.ess[:, None]).sqrt() * 1.5).all()
        assert_mean(spread, exact)
        assert_not_mean(found.z["z"].var(0), exact)

    def test_constrained_latents_come_back_where_they_live(self):
        model, guide = positive_pair()  # exam E1: the logarithm is N(0.8667, 1/3) in the posterior
        options = {"method": "hmc", "num_chains": 32, "num_draws": 640, "num_warmup": 18, "num_particles": 100}
        found = pv.refine(model, guide, torch.full((40,), 1.3), **options)
        assert (found.z["scale"] > 0).all()
        assert_mean(found.z["scale"].log().mean(0), 2.6 / 3)
        assert_mean(found.z["scale"].log().var(0), 1 / 3)

    def test_a_mode_that_no_draw_has_met_makes_the_draws_unreliable(self):
        model, narrow, _ = two_modes()
        found = pv.refine(model, narrow, torch.full((5,), 2.0), method="svi", num_particles=1000)
        assert (found.verdict == "unreliable").all()
        assert all("part of the posterior was overlooked" in reason for reason in found.reason)


def two_modes():
    """A posterior of z or -z, a guide that knows one of them, and one that covers both."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.square(), 0.5), obs=x)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.1))

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.5))

    return model, narrow, wide


# Chains


def simulated(num):
    """Data of the model, and the latent values that made them: of the posterior one exact draw each."""
    problem = linear()
    x, z = pv.simulation.simulate(problem.model, torch.zeros(num, 5))
    return problem, x, z["z"]


def interval(found):
    """Of 90%, from draws ``[draws, batch, latent]``."""
    return found.quantile(0.05, 0), found.quantile(0.95, 0)


def coverage(problem, x, draws):
    """The posterior's mass within the draws' intervals, averaged."""
    low, high = (problem.posterior(x).mean - end for end in interval(draws))
    marginal = dist.Normal(0.0, problem.posterior_covariance.diagonal().sqrt())
    return (marginal.cdf(low) - marginal.cdf(high)).mean().item()


@pytest.fixture(scope="module")
def chains():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    problem, x, z = simulated(500)
    options = {"method": "hmc", "num_chains": 32, "num_draws": 3200, "num_warmup": 45, "num_particles": 500}
    found = pv.refine(problem.model, problem.guide(**BAD), x, **options)
    torch.set_default_dtype(before)
    return problem, x, z, found


@pytest.mark.usefixtures("float64")
class TestChains:
    def test_90_percent_intervals_hold_90_percent(self, chains):
        problem, x, z, found = chains
        assert 0.895 < coverage(problem, x, found.z["z"]) < 0.905
        low, high = interval(found.z["z"])
        assert 0.88 <= ((low < z) & (z < high)).double().mean() <= 0.92
        unrefined = pv.draw_particles(problem.model, problem.guide(**BAD), x, num_particles=1000).z["z"]
        low, high = interval(unrefined)
        assert ((low < z) & (z < high)).double().mean() < 0.75

    def test_chains_agree_everywhere(self, chains):
        *_, found = chains
        assert found.num_chains == 32
        assert found.z["z"].shape == (3200, 500, 2)
        assert found.r_hat.max() < 1.01
        assert found.ess.min() > 1000
        assert (found.verdict == "ok").all()

    def test_their_mean_and_covariance_are_those_of_the_posterior(self, chains):
        problem, x, _, found = chains
        assert divergence(problem, x, found.z["z"]).mean() < 1.5 * 2.5 / 3200  # 2.5 / 3200 of exact draws

    def test_the_evidence_that_they_imply_is_log_p(self, chains):
        problem, x, _, found = chains
        errors = (found.evidence.value - problem.log_evidence(x)) / found.evidence.stderr
        assert_mean(errors, 0.0, sd=1.0, slack=0.1)
        assert 0.85 < errors.std() < 1.15
        errors = (found.gain - of_guide(problem, x, **BAD)) / found.gain_stderr
        assert_mean(errors, 0.0, sd=1.0, slack=0.1)
        assert 0.85 < errors.std() < 1.15
        assert (found.evidence.verdict == "ok").all()
        assert found.evidence.num_evaluations.min() > 32 * (45 + 100)

    def test_without_the_accept_step_they_are_too_wide(self, monkeypatch):
        def lax(log_density_fn):
            exact = hmc.kernel(log_density_fn)

            def transition(state, **options):
                momentum = torch.randn_like(state.position)
                stride = options["step_size"][..., None] * options["scale"]
                end, _ = hmc.leapfrog(log_density_fn, state, momentum, stride=stride, num_steps=options["num_steps"])
                return end, exact(state, **options)[1]

            return transition

        problem, x, _ = simulated(50)
        monkeypatch.setattr(moves, "kernel", lax)
        monkeypatch.setattr(moves, "jump", lambda _, state, *where: state)  # they would mend most of it
        options = {"method": "hmc", "num_chains": 32, "num_draws": 1280, "num_warmup": 18, "num_particles": 100}
        found = pv.refine(problem.model, problem.guide(**BAD), x, **options)
        assert coverage(problem, x, found.z["z"]) > 0.905

    def test_chains_change_modes_by_jumps_alone(self, monkeypatch):
        model, _, wide = two_modes()
        options = {"method": "hmc", "num_chains": 32, "num_draws": 1280, "num_warmup": 18, "num_particles": 100}
        found = pv.refine(model, wide, torch.full((5,), 2.0), **options)
        assert_mean((found.z["z"] > 0).double().mean(0), 0.5, slack=0.05)
        assert found.r_hat.max() < 1.3
        monkeypatch.setattr(moves, "jump", lambda _, state, *where: state)
        found = pv.refine(model, wide, torch.full((5,), 2.0), **options | {"num_draws": 320})
        assert found.r_hat.min() > 1.5
        assert (found.verdict == "unreliable").all()

    def test_jumps_leave_a_posterior_with_a_mode_that_only_the_prior_reaches_unchanged(self, monkeypatch):
        # p(x = 0 | z) is that of z, or of z - 12: two Gaussian modes, whose shares are known.
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 10.0).to_event(1))[..., 0]
                means, scale = torch.stack([z, z - 12], -1), torch.tensor(1.0)
                parts = dist.Categorical(torch.tensor([0.7, 0.3])), dist.Normal(means, scale)
                pyro.sample("x", dist.MixtureSameFamily(*parts), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

        means = torch.tensor([0.0, 12.0])
        log_share = torch.tensor([0.7, 0.3]).log() + dist.Normal(0.0, 101**0.5).log_prob(means)
        posterior = dist.MixtureSameFamily(
            dist.Categorical(logits=log_share), dist.Normal(100 / 101 * means, (100 / 101) ** 0.5)
        )
        num = 200_000
        path = TemperedPath(Density(Pair.of(model, guide, torch.zeros(1))), "guide")
        whitened = moves.Whitened(path, gaussian_of_guide(path.density, num), num)

        def in_the_second():
            torch.manual_seed(0)
            state = whitened.begin(posterior.sample((num, 1, 1)))
            for _ in range(6):
                state = whitened.jumped(state)
            return whitened.points(state.position) > 6

        share = 1 - posterior.cdf(torch.tensor(6.0))
        assert_mean(in_the_second(), share)
        monkeypatch.setattr(
            moves, "_either", lambda near, far: torch.cat([near[: len(near) // 2], far[len(far) // 2 :]])
        )
        assert_not_mean(in_the_second(), share)

    def test_step_sizes_are_frozen_after_the_warm_up(self, monkeypatch):
        seen = []

        def noted(log_density_fn):
            seen.append(log_density_fn.start)
            return hmc.kernel(log_density_fn)

        problem, x, _ = simulated(3)
        monkeypatch.setattr(moves, "kernel", noted)
        options = {"method": "hmc", "num_chains": 2, "num_draws": 20, "num_warmup": 30, "num_particles": 10}
        pv.refine(problem.model, problem.guide(**BAD), x, **options)
        assert len(seen) == 40
        assert all(start is seen[-1] for start in seen[20:])
        assert not torch.equal(seen[0].scale_tril, seen[-1].scale_tril)


@pytest.mark.usefixtures("float64")
def test_nuts_draws_from_the_posterior_of_one_datapoint():
    problem, x, _ = simulated(1)
    far = problem.guide(shift=(1.5, -1.0), scale=(0.3, 0.2))
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = pv.refine(
        problem.model, far, x, method="nuts", num_draws=120, num_chains=2, num_warmup=20, num_particles=500
    )
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()
    assert found.z["z"].shape == (120, 1, 2)
    assert found.num_chains == 2
    exact = problem.posterior(x)
    allowed = 5 * problem.posterior_covariance.diagonal().sqrt() / found.ess.sqrt()
    assert found.ess > 10
    assert ((found.z["z"].mean(0) - exact.mean).abs() < allowed).all()
    assert divergence(problem, x, found.z["z"]) < 0.3 < 4 < of_guide(problem, x, shift=(1.5, -1.0), scale=(0.3, 0.2))
    assert (found.evidence.value - problem.log_evidence(x)).abs() < 5 * found.evidence.stderr
    two = problem.sample(2, seed=0)
    with pytest.raises(ConfigError, match=r"method='nuts': found 2 datapoints, expected one.*or use method='hmc'"):
        pv.refine(problem.model, far, two, method="nuts")


def test_chains_that_have_not_met_are_found_out():
    u = torch.randn(4, 100, 3, 2)
    u[0, :, 1, 0] += 3  # in another place
    u[0, :, 2, 1] *= 4  # as wide as no other
    r = mixing.r_hat(u)
    assert r[0] < 1.05 < min(r[1], r[2])
    found = mixing.judged(r, mixing.effective_draws(u))
    assert found.verdict[0] != "unreliable"
    assert found.verdict.tolist()[1:] == ["unreliable", "unreliable"]
    assert "the chains have not met" in found.reason[1]
    slow = torch.randn(4, 100, 1, 1).cumsum(1)
    assert mixing.effective_draws(slow) < 40
    u[0, 0, 0, 0] = torch.nan
    assert mixing.judged(mixing.r_hat(u), mixing.effective_draws(u)).verdict[0] == "unreliable"


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (conv, {"method": "svi", "num_steps": 2}),
        (two_layer, {"method": "sir"}),
        (two_layer, {"method": "hmc", "num_chains": 2, "num_warmup": 6}),
    ],
    ids=["conv, svi", "two_layer, sir", "two_layer, hmc"],
)
def test_foreign_pairs(build, options):
    model, guide, modules, x = build(num=6)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    found = pv.refine(model, guide, x, num_draws=20, num_particles=40, **options)
    assert {name: value.shape[:2] for name, value in found.z.items()} == dict.fromkeys(found.z, (20, 6))
    assert found.gain.shape == found.ess.shape == (6,)
    assert all(value.isfinite().all() for value in [*found.z.values(), found.gain, found.gain_stderr])
    assert found.elbo.dtype == found.gain.dtype == torch.float64
    assert not pyro.get_param_store().keys()
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"method": "svi", "num_steps": 2}], ids=["sir", "svi"])
def test_blocks_keep_the_order_of_rows(options):
    problem, x = linear(), linear().sample(5, seed=4)
    options = {**options, "num_draws": 20, "num_particles": 20}
    found = pv.refine(problem.model, problem.guide(), x, max_bytes=2**12, **options)
    torch.testing.assert_close(found.elbo, problem.log_evidence(x).double(), atol=1e-4, rtol=0)
    assert found.z["z"].shape == (20, 5, 2)


def test_what_it_says_of_itself():
    problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
    x = problem.sample(3, seed=0)
    found = pv.refine(problem.model, problem.guide(scale=[0.4]), x, method="svi", num_draws=100, num_particles=1000)
    gain = found.mean_gain
    start = f"Refinement by svi: gained {gain.value:.2f} ± {gain.monte_carlo_error:.2g} nats per datapoint over"
    assert repr(found).startswith(start)
    assert "z [100, 3, 1]; ESS at least 100; 100% ok" in repr(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "vi"}, "method='vi': expected one of 'hmc', 'nuts', 'sir', 'svi'"),
        ({"method": "svi", "family": "planar"}, "family='planar': expected one of 'diagonal', 'full', 'flow'"),
        ({"num_steps": 3}, "num_steps=3: method='sir' has no such option; leave it out"),
        ({"method": "hmc", "num_draws": 10, "num_chains": 4}, "num_draws=10: expected at least 16, 4 of each chain"),
        ({"method": "hmc", "num_chains": 0}, "num_chains=0: expected at least 1"),
        ({"num_draws": 0}, "num_draws=0: expected at least 1"),
        ({"num_particles": 1}, "num_particles=1: expected at least 2, since one draw has no error bar"),
        ({"method": "svi", "num_steps": -1}, "num_steps=-1: expected at least 0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    problem = pv.problems.linear_gaussian(W=[[1.0]])
    with pytest.raises(ConfigError, match=message):
        pv.refine(problem.model, problem.guide(), torch.zeros(2, 1), **options)


def test_unusable_data_and_pairs_are_refused():
    problem = pv.problems.linear_gaussian(W=[[1.0]])
    with pytest.raises(DataError, match="at least one datapoint"):
        pv.refine(problem.model, problem.guide(), torch.zeros(0, 1))

    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 1)).to_event(1))

    with pytest.raises(PairError, match="point mass"):
        pv.refine(problem.model, point, torch.zeros(2, 1))


# Digits, whose posteriors are known from a grid


def test_draws_for_digits_come_closer_to_their_posteriors_on_a_grid():
    problem = digits(20, 10, nodes=201)
    budgets = {
        "guide": {"method": "svi", "family": "diagonal", "num_steps": 0},
        "svi": {"method": "svi", "num_steps": 30},
        "hmc": {"method": "hmc", "num_chains": 32, "num_draws": 1280, "num_warmup": 18},
    }
    rows = [examined(problem, name, {"num_particles": 200, **options}, seed=0) for name, options in budgets.items()]
    guide, svi, hmc = (row["kl"] - row["kl_of_exact_draws"] for row in rows)
    assert guide > 1.5 * svi > 3 * hmc
    assert 0.88 < rows[2]["coverage_90"] < 0.92
    assert all(abs(row["evidence_minus_exact"]) < 5 * row["evidence_error"] for row in rows)
    assert len(table(rows).splitlines()) == 5


def test_the_record_shows_what_refinement_is_judged_by():
    rows = json.loads((RESULTS / "refinement.json").read_text())["rows"]
    for problem in ("linear-Gaussian", "digits"):
        kinds = {name: [row for row in rows if (row["problem"], row["method"]) == (problem, name)] for name in BUDGETS}
        for name, budgets in kinds.items():
            assert len(budgets) == len(BUDGETS[name])
            assert all(less["kl"] < more["kl"] for more, less in pairwise(budgets))
        assert all(row["datapoints"] >= 500 for name in ("SIR", "SVI, full", "HMC") for row in kinds[name])
        assert 0.88 < kinds["HMC"][-1]["coverage_90"] < 0.92
        assert not 0.88 < kinds["guide"][0]["coverage_90"] < 0.92
        assert kinds["HMC"][-1]["largest_r_hat"] < 1.01
        assert kinds["HMC"][-1]["ok"] == 1
