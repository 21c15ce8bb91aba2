"""Whether a number may be believed: verdicts that are right about the error, and what they are given for."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import LogEvidence, ais, elbo, importance, jackknife, psis
from pyro_vae.ops.verdicts import Judgement, judge, largest_pareto_k
from tests.test_exams import E5_LOG_P, E5_X, tanh_vae

pytestmark = pytest.mark.usefixtures("float64")

estimators = pytest.mark.parametrize("estimate", [importance, psis, jackknife])


def three_latents(dtype=torch.float64):
    W = [[1.0, 0.3, 0.2], [0.5, -1.0, 0.1], [0.2, 0.8, 0.7], [0.1, 0.4, -0.9]]
    return pv.problems.linear_gaussian(W=torch.tensor(W, dtype=dtype), scale=0.6)


@pytest.fixture(scope="module")
def judged():
    """Answers for 500 datapoints by guides whose widths are multiples of the right one, and the truth."""
    problem = three_latents()
    x = problem.sample(500, seed=0)
    found = {
        inflate: importance(problem.model, problem.guide(inflate=inflate), x, num_particles=num_particles)
        for inflate, num_particles in ((1 / 3, 10_000), (0.6, 2000), (1.2, 10_000))
    }
    return found, problem.log_evidence(x)


def covered(found, exact):
    return ((found.value - exact).abs() <= 1.96 * found.stderr).double().mean().item()


# Right about the error


def test_a_guide_of_a_third_of_the_right_width_is_flagged(judged):
    found, exact = judged
    narrow = found[1 / 3]
    assert narrow.share("ok") < 0.05
    assert narrow.share("unreliable") > 0.9
    assert covered(narrow, exact) < 0.5  # and rightly so


def test_a_guide_that_is_rather_wide_is_not_flagged(judged):
    found, exact = judged
    assert found[1.2].share("ok") > 0.98
    assert 0.92 <= covered(found[1.2], exact) <= 0.98


def test_in_between_the_verdict_follows_the_coverage(judged):
    found, exact = judged
    between = found[0.6]  # k = 0.64
    assert between.share("ok") < 0.3
    assert covered(between, exact) < 0.92


@pytest.mark.parametrize("estimate", [psis, jackknife])
def test_intervals_of_other_estimators_cover(estimate):
    problem = three_latents()
    x = problem.sample(500, seed=1)
    found = estimate(problem.model, problem.guide(inflate=1.2), x, num_particles=2000)
    assert 0.92 <= covered(found, problem.log_evidence(x)) <= 0.98
    assert found.share("ok") > 0.98


def test_flagged_datapoints_have_the_larger_errors():
    problem = three_latents()
    x = problem.sample(400, seed=2)
    factor = torch.linalg.cholesky(problem.posterior_covariance)
    width = torch.linspace(0.3, 1.2, 400)[torch.randperm(400)]

    def guide(x):  # all of x at once, as it is looked up by the row
        with pyro.plate("data", len(x)) as rows:
            scale = width[rows, None, None] * factor
            pyro.sample("z", dist.MultivariateNormal(problem.posterior(x).mean, scale_tril=scale))

    found = importance(problem.model, guide, x, num_particles=5000)
    error = (found.value - problem.log_evidence(x)).abs()
    mean = {verdict: error[torch.from_numpy(found.verdict == verdict)].mean() for verdict in ("ok", "doubtful")}
    mean["unreliable"] = error[torch.from_numpy(found.verdict == "unreliable")].mean()
    assert mean["ok"] < 0.4 * mean["doubtful"]
    assert mean["doubtful"] < 0.4 * mean["unreliable"]
    assert min(found.share(verdict) for verdict in mean) > 0.1
    # Of the stated errors, too: those that are not flagged hold, those that are unreliable do not.
    ratio = error / found.stderr
    assert ratio[torch.from_numpy(found.verdict == "ok")].square().mean() < 2
    assert ratio[torch.from_numpy(found.verdict == "unreliable")].square().mean() > 3


@pytest.mark.parametrize("num_particles", [5000, 10_000])
def test_e5_a_guide_that_understates_its_error_is_flagged(num_particles):
    x = E5_X.expand(100, 4)
    for variance, share in (((0.59, 0.54), 0.0), ((0.9, 0.9), 1.0)):
        vae = tanh_vae(variance)
        found = importance(vae.model, vae.guide, x, num_particles=num_particles)
        assert found.share("ok") == share
        if share:
            assert ((found.value - E5_LOG_P).abs() <= 5 * found.stderr).all()


# Exact guides


@estimators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_an_exact_guide_is_ok(estimate, dtype):
    problem = three_latents(dtype)
    x = problem.sample(50, seed=3)
    found = estimate(problem.model, problem.guide(), x, num_particles=2000)
    exact = problem.log_evidence(x).double()
    assert found.share("ok") == 1, set(found.reason)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-10)
    assert found.stderr.max() < 1e-6
    assert ((found.ess - 2000).abs() < 1e-3).all()


def test_a_wide_guide_in_single_precision_is_ok():
    problem = three_latents(torch.float32)
    found = importance(problem.model, problem.guide(inflate=1.2), problem.sample(100, seed=3), num_particles=2000)
    assert found.share("ok") == 1


# Reasons


@estimators
def test_reasons_are_one_line_where_there_is_one(estimate):
    problem = three_latents()
    found = estimate(problem.model, problem.guide(inflate=0.6), problem.sample(100, seed=4), num_particles=500)
    assert {"ok", "doubtful", "unreliable"} >= set(found.verdict)
    assert len(set(found.verdict)) > 1
    for verdict, reason in zip(found.verdict, found.reason, strict=True):
        assert (reason == "") == (verdict == "ok")
        assert "\n" not in reason
        assert len(reason) < 90
        assert isinstance(reason, str)
    assert sum(found.share(verdict) for verdict in ("ok", "doubtful", "unreliable")) == pytest.approx(1)


def one(value=-10.0, stderr=0.01, ess=None, k=None, num_particles=None):
    """The verdict on a single datapoint, and why."""
    ess, k = (None if part is None else torch.tensor([part]) for part in (ess, k))
    found = judge(
        value=torch.tensor([value]), stderr=torch.tensor([stderr]), ess=ess, pareto_k=k, num_particles=num_particles
    )
    assert found.verdict.shape == found.reason.shape == (1,)
    return found.verdict[0], found.reason[0]


EDGES = [
    ({}, "ok", ""),
    ({"stderr": 0.0}, "ok", ""),
    ({"ess": 1000.0, "k": 0.1, "num_particles": 2000}, "ok", ""),
    # what is not known is not judged by
    ({"ess": math.nan, "k": math.nan, "num_particles": 2000}, "ok", ""),
    ({"ess": 1000.0, "k": -math.inf, "num_particles": 2000}, "ok", ""),
    # the value
    ({"value": math.nan}, "unreliable", "value is nan"),
    ({"value": -math.inf}, "unreliable", "value is -inf"),
    ({"value": math.inf}, "unreliable", "value is inf"),
    ({"stderr": math.nan}, "unreliable", "error nan"),
    # the error
    ({"stderr": 0.5}, "ok", ""),
    ({"stderr": 0.51}, "doubtful", "a standard error of 0.51 nats"),
    ({"stderr": math.inf}, "doubtful", "a standard error of inf nats"),
    # the tail
    ({"k": 0.5, "num_particles": 10_000}, "ok", ""),
    ({"k": 0.51, "num_particles": 10_000}, "doubtful", "k-hat 0.51 above 0.5"),
    ({"k": 0.69, "num_particles": 10_000}, "doubtful", "k-hat 0.69"),
    ({"k": 0.71, "num_particles": 10_000}, "unreliable", "k-hat 0.71 above 0.70"),
    ({"k": 0.71, "num_particles": 10**9}, "unreliable", "above 0.70"),
    ({"k": 0.69, "num_particles": 1000}, "unreliable", "k-hat 0.69 above 0.67"),
    ({"k": 0.49, "num_particles": 100}, "ok", ""),
    ({"k": 0.4, "num_particles": 30}, "unreliable", "k-hat 0.40 above 0.32"),
    ({"k": math.inf, "num_particles": 1000}, "unreliable", "k-hat inf"),
    ({"k": 0.71}, "doubtful", "k-hat 0.71 above 0.5"),  # of how many draws is not said
    # the effective draws
    ({"ess": 4.9, "num_particles": 1000}, "unreliable", "4.9 effective draws"),
    ({"ess": 5.0, "num_particles": 1000}, "doubtful", "5.0 effective draws"),
    ({"ess": 19.9, "num_particles": 1000}, "doubtful", "19.9 effective draws"),
    ({"ess": 20.0, "num_particles": 1000}, "ok", ""),
    ({"ess": 10.0, "num_particles": 20}, "ok", ""),  # half of all
    ({"ess": 9.9, "num_particles": 20}, "doubtful", "9.9 effective draws"),
    ({"ess": 0.0, "num_particles": 1000}, "unreliable", "0.0 effective draws"),
    ({"ess": 10.0}, "doubtful", "10.0 effective draws"),
    # few draws: their largest do not yet tell the tail, unless all are as good as equal
    ({"ess": 80.0, "k": 0.1, "num_particles": 99}, "doubtful", "99 draws, fewer than 100: too few to know the tail"),
    ({"ess": 80.0, "k": 0.1, "num_particles": 100}, "ok", ""),
    ({"ess": 80.0, "k": math.nan, "num_particles": 99}, "doubtful", "99 draws"),  # too few for a k-hat, too
    ({"ess": 2.9, "k": math.nan, "num_particles": 3}, "unreliable", "2.9 effective draws"),
    ({"ess": 98.0, "k": -math.inf, "num_particles": 99}, "doubtful", "99 draws"),
    ({"ess": 98.1, "k": -math.inf, "num_particles": 99}, "ok", ""),
    ({"ess": 80.0, "num_particles": 99}, "ok", ""),  # chains
    ({"ess": 9.0, "num_particles": 16}, "ok", ""),
    ({"k": 0.1, "num_particles": 99}, "ok", ""),  # of weights that are not known
    ({"stderr": 0.6, "ess": 80.0, "k": 0.1, "num_particles": 99}, "doubtful", "99 draws"),
    # the worst counts
    ({"stderr": 0.6, "ess": 3.0, "k": 0.6, "num_particles": 10_000}, "unreliable", "3.0 effective draws"),
    ({"stderr": 0.6, "ess": 10.0, "k": 0.6, "num_particles": 10_000}, "doubtful", "k-hat 0.60"),
    ({"value": math.nan, "ess": 3.0, "k": 0.9, "num_particles": 10_000}, "unreliable", "value is nan"),
]


@pytest.mark.parametrize(("numbers", "verdict", "reason"), EDGES, ids=[str(case[0]) for case in EDGES])
def test_every_edge(numbers, verdict, reason):
    found = one(**numbers)
    assert found[0] == verdict
    assert reason in found[1]
    assert (found[1] == "") == (verdict == "ok")


def test_each_datapoint_is_judged_by_its_own_numbers():
    found = judge(
        value=torch.tensor([-1.0, -2.0, math.nan, -4.0]),
        stderr=torch.tensor([0.1, 0.1, 0.1, 0.6]),
        ess=torch.tensor([900.0, 900.0, 900.0, 900.0]),
        pareto_k=torch.tensor([0.4, 0.4, 0.1, 0.1]),
        num_particles=torch.tensor([10_000, 30, 10_000, 10_000]),
    )
    assert found.verdict.tolist() == ["ok", "unreliable", "unreliable", "doubtful"]
    assert found.reason[0] == ""


def test_each_datapoint_has_a_number_of_draws_of_its_own():
    found = judge(
        value=torch.zeros(3),
        stderr=torch.zeros(3),
        ess=torch.tensor([40.0, 80.0, 400.0]),
        pareto_k=torch.full((3,), torch.nan),
        num_particles=torch.tensor([50, 80, 500]),
    )
    assert found.verdict.tolist() == ["doubtful", "ok", "ok"]


@estimators
def test_few_draws_are_doubtful_unless_their_weights_are_equal(estimate):
    problem = three_latents()
    x = problem.sample(50, seed=7)
    uneven, equal = (
        estimate(problem.model, problem.guide(inflate=inflate), x, num_particles=99) for inflate in (1.2, 1.0)
    )
    assert "ok" not in uneven.verdict
    assert any(reason.startswith("99 draws, fewer than 100") for reason in uneven.reason)
    assert equal.share("ok") == 1


def test_few_chains_are_no_fault():
    problem = three_latents()
    found = ais(problem.model, problem.guide(inflate=1.2), problem.sample(50, seed=7), num_temperatures=50)
    assert (found.num_particles == 16).all()
    assert found.pareto_k.isnan().all()
    assert found.share("ok") == 1


def test_verdicts_of_none():
    assert len(judge(value=torch.zeros(0), stderr=torch.zeros(0)).verdict) == 0


def test_the_largest_shape_grows_with_the_draws():
    found = [largest_pareto_k(draws) for draws in (10, 100, 1000, 2154, 10_000, 10**6)]
    assert found == sorted(found)
    assert found[:2] == pytest.approx([0.0, 0.5])
    assert found[-2:] == [0.7, 0.7]
    assert largest_pareto_k(1) <= largest_pareto_k(2) < 0


def test_the_elbo_has_neither_weights_nor_a_tail():
    problem = three_latents()
    found = elbo(problem.model, problem.guide(inflate=0.3), problem.sample(20, seed=5), num_particles=100)
    assert found.pareto_k.isnan().all()
    assert found.share("ok") == 1  # a lower bound it is, however far


# The answer


def test_answers_are_joined_and_put_in_order():
    problem = three_latents()
    x = problem.sample(30, seed=6)
    whole = importance(problem.model, problem.guide(inflate=0.6), x, num_particles=200)
    parts = [LogEvidence(*(pick(part, rows) for part in whole)) for rows in (slice(10, 30), slice(0, 10))]
    order = torch.cat([torch.arange(20, 30), torch.arange(20)])
    joined = LogEvidence.joined(parts, order)
    for name in LogEvidence._fields:
        found, expected = getattr(joined, name), getattr(whole, name)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected), name
        elif isinstance(expected, Judgement):
            assert all(np.array_equal(*both) for both in zip(found, expected, strict=True))
        else:
            assert found == expected
    assert torch.equal(LogEvidence.joined(parts).value, torch.cat([part.value for part in parts]))


def pick(part, rows):
    if isinstance(part, torch.Tensor):
        return part[rows]
    return Judgement(*(texts[rows] for texts in part)) if isinstance(part, Judgement) else part
