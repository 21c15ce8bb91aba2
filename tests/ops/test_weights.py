"""Algebra of log-weights: exact expectations, invariants that hold without any tolerance, and the edges."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, polygamma

from pyro_vae.ops import weights
from pyro_vae.ops.streaming import LogMoments, Moments
from tests.statistics import assert_mean, assert_not_mean

pytestmark = pytest.mark.usefixtures("float64")

BOUNDS = {
    "log_mean_exp": weights.log_mean_exp,
    "mean": lambda lw: weights.renyi(lw, 1.0),
    "renyi 0.5": lambda lw: weights.renyi(lw, 0.5),
    "renyi 3": lambda lw: weights.renyi(lw, 3.0),
    "renyi -1": lambda lw: weights.renyi(lw, -1.0),
    "renyi inf": lambda lw: weights.renyi(lw, math.inf),
    "renyi -inf": lambda lw: weights.renyi(lw, -math.inf),
    "cubo 2": weights.cubo,
    "jackknife 0": lambda lw: weights.jackknife(lw, 0),
    "jackknife 1": weights.jackknife,
    "jackknife 2": lambda lw: weights.jackknife(lw, 2),
}


# Rows are particles, columns are datapoints. At least three particles, so that every bound above is defined.
@st.composite
def log_weights(draw, least=3, most=7, magnitude=50.0):
    particles, batch = draw(st.integers(least, most)), draw(st.integers(1, 3))
    entry = st.floats(-magnitude, magnitude, width=32)
    rows = st.lists(st.lists(entry, min_size=batch, max_size=batch), min_size=particles, max_size=particles)
    return torch.tensor(draw(rows), dtype=torch.float64)


def exactly(test):
    """The same examples in every run, and no clock."""
    return settings(derandomize=True, deadline=None, database=None, max_examples=50)(test)


def rounding(log_w):
    """What double precision may cost: the only slack in an inequality that holds without tolerance."""
    return 1e-13 * (1 + log_w.abs().max())


# E0: weights whose expectations are known


def gamma_weights(particles, replicates=100_000):
    return torch.empty(particles, replicates).exponential_().log()


def iwae_of_gamma(particles):
    return digamma(particles) - math.log(particles)


@pytest.mark.parametrize(("particles", "exact"), [(2, -0.2703628455), (5, -0.1033202440), (50, -0.0100333320)])
def test_log_mean_exp_of_gamma_weights(particles, exact):
    assert exact == pytest.approx(iwae_of_gamma(particles), abs=1e-10)
    found = weights.log_mean_exp(gamma_weights(particles, 500_000 // particles))
    assert_mean(found, exact, sd=math.sqrt(polygamma(1, particles)))
    assert_not_mean(found, 0.0)  # log E w = 0: the bound is not tight and the test can tell


@pytest.mark.parametrize(("particles", "exact"), [(2, 0.0364899740), (5, 0.0041055507)])
def test_jackknife_1_of_gamma_weights_overshoots(particles, exact):
    assert exact == pytest.approx(
        particles * iwae_of_gamma(particles) - (particles - 1) * iwae_of_gamma(particles - 1), abs=1e-10
    )
    assert_mean(weights.jackknife(gamma_weights(particles), 1), exact)


def test_jackknife_2_of_gamma_weights():
    exact = sum(
        c * iwae_of_gamma(6 - j) for j, c in enumerate(jackknife_coefficients(6, 2))
    )  # 0.0006, while the bound itself is at -0.085
    found = weights.jackknife(gamma_weights(6, 50_000), 2)
    assert_mean(found, exact)
    assert_not_mean(found, iwae_of_gamma(6))


def test_renyi_and_cubo_of_gamma_weights():
    lw = gamma_weights(100_000, 20)
    assert_mean(weights.renyi(lw, 0.5), -0.2415644753)
    assert_mean(weights.cubo(lw), 0.3465735903)
    assert 2 * math.lgamma(1.5) == pytest.approx(-0.2415644753)
    assert 0.5 * math.lgamma(3) == pytest.approx(0.3465735903)


def test_everything_of_lognormal_weights():
    m, s, particles = -3.0, 0.5, 100_000
    lw = m + s * torch.randn(particles, 20)
    assert_mean(weights.renyi(lw, 1.0), m, sd=s / math.sqrt(particles))
    assert_mean(weights.log_mean_exp(lw), m + s**2 / 2, sd=math.sqrt(math.expm1(s**2) / particles))
    for alpha in (-1.0, 0.5, 2.0):
        assert_mean(weights.renyi(lw, alpha), m + (1 - alpha) * s**2 / 2)
    for order in (1.5, 2.0, 3.0):
        assert_mean(weights.cubo(lw, order), m + order * s**2 / 2)
    assert_mean(weights.ess(lw) / particles, math.exp(-(s**2)))
    assert_mean(weights.log_mean_exp_stderr(lw), math.sqrt(math.expm1(s**2) / particles))


def test_stderr_is_what_replicates_vary_by():
    found = weights.log_mean_exp(gamma_weights(500, 20_000))
    claimed = weights.log_mean_exp_stderr(gamma_weights(500, 20_000))
    assert claimed.mean().item() == pytest.approx(found.std().item(), rel=0.03)


def test_ess_and_stderr_by_their_definitions():
    lw = torch.randn(6, 3)
    w = lw.exp()
    torch.testing.assert_close(weights.ess(lw), w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(weights.log_mean_exp_stderr(lw), w.std(0) / math.sqrt(6) / w.mean(0))


# No tolerance at all


@exactly
@given(log_weights(least=1))
def test_mean_below_log_mean_exp_below_max(lw):
    bound = weights.log_mean_exp(lw)
    assert (lw.mean(0) <= bound + rounding(lw)).all()
    assert (bound <= lw.amax(0) + rounding(lw)).all()
    assert (weights.renyi(lw, math.inf) == lw.amin(0)).all()
    assert (weights.renyi(lw, -math.inf) == lw.amax(0)).all()


@exactly
@given(log_weights(least=1), st.lists(st.floats(-20, 20), min_size=2, max_size=5))
def test_renyi_never_increases_with_alpha(lw, alphas):
    found = [weights.renyi(lw, alpha) for alpha in (-math.inf, *sorted(alphas), math.inf)]
    for small, large in pairwise(found):
        assert (large <= small + 10 * rounding(lw)).all()


@exactly
@given(log_weights(least=1))
def test_special_cases_are_the_same_number(lw):
    assert torch.equal(weights.jackknife(lw, 0), weights.log_mean_exp(lw))
    assert torch.equal(weights.renyi(lw, 1.0), lw.mean(0))
    for same in (weights.renyi(lw, 0.0), weights.cubo(lw, 1.0)):
        assert ((same - weights.log_mean_exp(lw)).abs() <= 10 * rounding(lw)).all()
    for order in (1.5, 2.0, 3.0):
        assert torch.equal(weights.cubo(lw, order), weights.renyi(lw, 1 - order))


@exactly
@given(log_weights(least=1, most=1))
def test_one_particle_is_its_own_bound(lw):
    for bound in (weights.log_mean_exp, weights.cubo, lambda lw: weights.renyi(lw, 0.5)):
        torch.testing.assert_close(bound(lw), lw[0])
    assert (weights.ess(lw) == 1).all()
    assert weights.log_mean_exp_stderr(lw).isnan().all()


@exactly
@given(log_weights(least=1, magnitude=1e4))
def test_ess_is_between_one_and_the_number_of_particles(lw):
    found = weights.ess(lw)
    assert ((found >= 1) & (found <= len(lw))).all()


@pytest.mark.parametrize("name", BOUNDS)
@exactly
@given(lw=log_weights(), shift=st.floats(-1e4, 1e4))
def test_shifting_the_weights_shifts_the_bound(name, lw, shift):
    bound = BOUNDS[name]
    torch.testing.assert_close(bound(lw + shift), bound(lw) + shift, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", BOUNDS)
@exactly
@given(lw=log_weights())
def test_each_column_is_a_datapoint_and_the_order_of_rows_means_nothing(name, lw):
    bound = BOUNDS[name]
    whole = bound(lw)
    assert whole.shape == lw.shape[1:]
    for b in range(lw.shape[1]):
        torch.testing.assert_close(bound(lw[:, b]), whole[b], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(bound(lw.flip(0)), whole, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_renyi_tends_to_the_mean(step, dtype, allowed):
    # The derivative at alpha = 1 is minus half the variance; a log-likelihood of an image is of this size.
    lw = torch.tensor([[-102.5], [-98.1], [-99.7]], dtype=dtype)
    mean, slope = lw.mean().item(), -lw.var(correction=0).item() / 2
    for sign in (-1, 1):
        assert weights.renyi(lw, 1 + sign * step).item() == pytest.approx(mean + sign * step * slope, abs=allowed)


def test_the_number_of_particles_is_read_from_the_tensor():
    lw = torch.randn(4, 3)
    torch.testing.assert_close(weights.log_mean_exp(torch.cat([lw, lw])), weights.log_mean_exp(lw))
    torch.testing.assert_close(weights.log_mean_exp(lw.T, dim=1), weights.log_mean_exp(lw))
    torch.testing.assert_close(weights.ess(torch.cat([lw, lw])), 2 * weights.ess(lw))


@exactly
@given(log_weights(least=1))
def test_normalized_weights_sum_to_one_and_favour_the_best_particle(lw):
    found = weights.normalized_weights(lw)
    torch.testing.assert_close(found.sum(0), torch.ones(lw.shape[1]))
    torch.testing.assert_close(found.amax(0), found.gather(0, lw.argmax(0, keepdim=True))[0])
    torch.testing.assert_close(1 / found.square().sum(0), weights.ess(lw))


# The jackknife against its definition


def jackknife_coefficients(particles, order):
    """The weights of L_K, L_{K-1}, ... that add up to one and cancel 1/K, ..., 1/K^order, from those conditions."""
    sizes = torch.arange(particles, particles - order - 1, -1, dtype=torch.float64)
    conditions = torch.stack([sizes**-power for power in range(order + 1)])
    wanted = torch.zeros(order + 1, dtype=torch.float64)
    wanted[0] = 1
    return torch.linalg.solve(conditions, wanted).tolist()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("particles", [4, 5, 7])
def test_jackknife_is_the_sum_over_all_subsets(particles, order):
    lw = 3 * torch.randn(particles, 2)
    exact = torch.zeros(2)
    for j, coefficient in enumerate(jackknife_coefficients(particles, order)):
        subsets = combinations(range(particles), particles - j)
        exact += coefficient * torch.stack([weights.log_mean_exp(lw[list(kept)]) for kept in subsets]).mean(0)
    torch.testing.assert_close(weights.jackknife(lw, order), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("particles", "order"), [(1, 1), (2, 2), (3, -1)])
def test_jackknife_needs_more_particles_than_its_order(particles, order):
    with pytest.raises(ValueError, match="draw more"):
        weights.jackknife(torch.zeros(particles, 1), order)


# Streaming summaries


def split(lw, cuts):
    edges = [0, *sorted({cut % len(lw) for cut in cuts} - {0}), len(lw)]
    return [lw[start:stop] for start, stop in pairwise(edges)]


def merged(summary, parts):
    total = summary.of(parts[0])
    for part in parts[1:]:
        total = total.merge(summary.of(part))
    return total


@exactly
@given(log_weights(least=2, most=12), st.lists(st.integers(0, 11), max_size=4))
def test_merged_log_moments_are_those_of_the_whole(lw, cuts):
    whole, found = LogMoments.of(lw), merged(LogMoments, split(lw, cuts))
    assert found.num_particles == whole.num_particles == len(lw)
    torch.testing.assert_close(found.log_mean, weights.log_mean_exp(lw), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.ess, whole.ess, rtol=1e-10, atol=1e-10)
    # The root of a difference: half of the digits where the weights are all alike.
    torch.testing.assert_close(found.stderr, whole.stderr, rtol=1e-9, atol=1e-6)


@exactly
@given(log_weights(least=2, most=12), st.lists(st.integers(0, 11), max_size=4))
def test_merged_moments_are_those_of_the_whole(lw, cuts):
    found = merged(Moments, split(lw, cuts))
    assert found.num_particles == len(lw)
    torch.testing.assert_close(found.mean, lw.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.stderr, lw.std(0) / math.sqrt(len(lw)), rtol=1e-10, atol=1e-10)


def test_moments_do_not_cancel_far_from_zero():
    values = 1e9 + torch.tensor([[0.0], [1.0], [2.0]])
    found = merged(Moments, [values[:1], values[1:]])
    torch.testing.assert_close(found.stderr, torch.tensor([1 / math.sqrt(3)]))


def test_merging_blocks_without_any_weight_is_as_summarising_them_at_once():
    # Data outside the support of every particle: log w = -inf, in one block or in two.
    nothing = torch.full((2, 1), -torch.inf)
    assert merged(LogMoments, [nothing, nothing]).log_mean == -torch.inf
    assert merged(LogMoments, [nothing, torch.zeros(2, 1)]).log_mean == pytest.approx(math.log(0.5))
    assert Moments.of(torch.cat([nothing, nothing])).mean == -torch.inf
    assert merged(Moments, [nothing, nothing]).mean == -torch.inf
    assert merged(Moments, [nothing, torch.zeros(2, 1)]).mean == -torch.inf


# Edges


def test_weights_that_are_all_zero():
    lw = torch.full((3, 2), -torch.inf)
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf):
        assert (weights.renyi(lw, alpha) == -torch.inf).all()
    assert (weights.ess(lw) == 0).all()
    assert (weights.log_mean_exp_stderr(lw) == torch.inf).all()


def test_one_weight_of_zero_counts_as_a_particle():
    lw = torch.tensor([[0.0], [-torch.inf]])
    assert weights.log_mean_exp(lw).item() == pytest.approx(-math.log(2))
    assert weights.ess(lw).item() == 1


@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("name", BOUNDS)
def test_equal_weights_are_their_own_bound(name, value):
    lw = torch.full((5, 2), value)
    torch.testing.assert_close(BOUNDS[name](lw), lw[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(weights.ess(lw), torch.full((2,), 5.0))
    torch.testing.assert_close(weights.log_mean_exp_stderr(lw), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_weights_neither_overflow_nor_vanish(dtype):
    lw = torch.tensor([[1e4, -1e4], [-1e4, -1e4]], dtype=dtype)
    exact = torch.tensor([1e4 - math.log(2), -1e4], dtype=dtype)
    torch.testing.assert_close(weights.log_mean_exp(lw), exact)
    torch.testing.assert_close(weights.ess(lw), torch.tensor([1.0, 2.0], dtype=dtype))
    torch.testing.assert_close(weights.log_mean_exp_stderr(lw), torch.tensor([1.0, 0.0], dtype=dtype))
    for bound in BOUNDS.values():
        assert bound(torch.cat([lw, lw])).isfinite().all()


@pytest.mark.parametrize("name", [*BOUNDS, "ess", "stderr"])
def test_single_precision_stays_and_agrees_with_double(name):
    function = {"ess": weights.ess, "stderr": weights.log_mean_exp_stderr, **BOUNDS}[name]
    lw = torch.randn(6, 4, dtype=torch.float32) - 100
    found = function(lw)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), function(lw.double()), rtol=1e-5, atol=1e-3)
