"""The tail of importance weights: its shape against known ones, its smoothing against a reference, and the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from pyro_vae.ops import pareto
from pyro_vae.ops.pareto import fit_generalized_pareto, pareto_k, smooth, smooth_tail, tail_size
from pyro_vae.ops.weights import log_mean_exp
from tests.ops.test_weights import exactly
from tests.statistics import SIGMAS, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def pareto_weights(k, draws=10_000, repeats=60):
    """log w for w = U^-k, whose tail has the shape k."""
    return -k * torch.rand(draws, repeats).log()


# The shape


def is_about(found, k):
    """What E0 asks of a mean over repeats; 0.03 is for the prior of the fit, which draws k towards 1/2."""
    return abs(found.mean().item() - k) <= SIGMAS * found.std().item() / math.sqrt(len(found)) + 0.03


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 0.9])
def test_e0_the_shape_of_pareto_weights(k):
    found = pareto_k(pareto_weights(k))
    assert is_about(found, k)
    assert not is_about(found, k + 0.15)
    assert found.std() == pytest.approx((1 + k) / math.sqrt(tail_size(10_000)), rel=0.4)  # as the documentation says


def test_e0_a_fit_to_weights_that_are_not_measured_from_a_threshold_fails():
    largest = pareto_weights(0.5).exp().sort(0).values[-tail_size(10_000) :]
    assert not is_about(fit_generalized_pareto(largest).k, 0.5)
    assert is_about(fit_generalized_pareto(largest - largest[0]).k, 0.5)


@pytest.mark.parametrize(("k", "sigma"), [(-0.5, 2.0), (0.3, 1.0), (0.8, 1e-6)])
def test_the_fit_finds_shape_and_scale(k, sigma):
    p = (torch.arange(20_000) + 0.5) / 20_000
    fit = fit_generalized_pareto(sigma * ((1 - p) ** -k - 1) / k)
    assert fit.k.item() == pytest.approx(k, abs=0.01)
    assert fit.sigma.item() == pytest.approx(sigma, rel=0.01)


def test_an_exponential_tail_has_shape_zero():
    p = (torch.arange(20_000) + 0.5) / 20_000
    fit = fit_generalized_pareto(-torch.log1p(-p))
    assert fit.k.item() == pytest.approx(0, abs=0.005)
    assert fit.sigma.item() == pytest.approx(1, rel=0.01)


# Smoothing


def quantiles(name, draws):
    """Weights at the quantiles (i + 1/2) / S of a distribution: the same for everybody, without a generator."""
    p = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    weights = {
        "pareto": lambda: -0.6 * p.log(),
        "lognormal": lambda: 1.5 * torch.from_numpy(ndtri(p.numpy())),
        "exponential": lambda: (-p.log()).log(),
        "uniform": p.log,
    }
    return weights[name]()


# By arviz 0.23: k and logsumexp(found) - log(S) of `found, k = arviz.psislw(log_w, reff=1.0, normalize=False)`. With
# its default, normalize=True, the smoothed log-weights are shifted to sum to one; for fewer than 5 exceedances its k is
# infinite, and ours nan.
REFERENCE = [
    ("pareto", 100, 0.5491435711515746, 0.8333792808051319),
    ("pareto", 1000, 0.5838651961254637, 0.8852786731393074),
    ("pareto", 10_000, 0.5944956534370086, 0.9048006975693799),
    ("lognormal", 100, 0.5148819157509475, 1.0586684480634645),
    ("lognormal", 1000, 0.4770164244352961, 1.112459823745258),
    ("lognormal", 10_000, 0.42272625531715863, 1.1233874041481418),
    ("exponential", 100, 0.203271840956968, 0.010408256323797715),
    ("exponential", 10_000, 0.021458040772823435, 0.0003735772275597071),
    ("uniform", 100, -0.40462148035522866, -0.6895849148058164),
    ("uniform", 10_000, -0.9235340185477373, -0.693136885884126),
]


@pytest.mark.parametrize(("name", "draws", "k", "log_mean"), REFERENCE)
def test_shape_and_smoothed_mean_are_those_of_the_reference(name, draws, k, log_mean):
    log_w = quantiles(name, draws)
    smoothed, found = smooth(log_w)
    assert found.item() == pytest.approx(k, abs=1e-12)
    assert log_mean_exp(smoothed).item() == pytest.approx(log_mean, abs=1e-12)
    assert log_mean_exp(log_w).item() != pytest.approx(log_mean, abs=1e-8)  # the raw mean is another one


def test_smoothing_makes_the_mean_less_noisy_where_the_tail_is_heavy():
    log_w = pareto_weights(0.7, draws=1000, repeats=2000)
    exact = -math.log1p(-0.7)  # log E[U^-k] = -log(1 - k)
    raw, smoothed = log_mean_exp(log_w), log_mean_exp(smooth(log_w)[0])
    assert (smoothed - exact).square().mean() < 0.7 * (raw - exact).square().mean()
    light = pareto_weights(0.2, draws=1000, repeats=2000)  # where there is nothing to mend, nothing is spoilt
    assert_mean(log_mean_exp(smooth(light)[0]), -math.log1p(-0.2), slack=1e-3)


def assert_smoothed(log_w):
    """Sorted as before, nowhere above the largest weight, and all but the tail as it was."""
    smoothed, k = smooth(log_w)
    by_smoothed = smoothed.argsort(dim=0, descending=True)  # among ties
    order = by_smoothed.gather(0, log_w.gather(0, by_smoothed).argsort(dim=0, descending=True, stable=True))
    ordered, before = smoothed.gather(0, order), log_w.gather(0, order)
    size = tail_size(len(log_w))
    assert not smoothed.isnan().any()
    assert (ordered[1:] <= ordered[:-1] + 1e-9).all()
    assert (smoothed <= log_w.amax(0)).all()
    assert torch.equal(ordered[size:], before[size:])
    assert (ordered[:size] >= before[size] - 1e-9).all()
    return smoothed, k


@pytest.mark.parametrize("k", [0.2, 0.9, 2.0])
def test_smoothed_weights_stay_in_order_and_below_the_largest(k):
    log_w = pareto_weights(k, draws=1000, repeats=5)
    smoothed, _ = assert_smoothed(log_w)
    changed = (smoothed != log_w).sum(0)
    assert ((changed <= tail_size(1000)) & (changed >= tail_size(1000) - 5)).all()  # the very largest may be cut off


@exactly
@given(st.integers(0, 10**6), st.integers(25, 300), st.floats(0, 4), st.integers(0, 3))
def test_smoothed_weights_stay_in_order_and_below_the_largest_whatever_they_are(seed, draws, log_scale, digits):
    log_w = 10**log_scale * torch.randn(draws, 3, generator=torch.Generator().manual_seed(seed))
    assert_smoothed(log_w)
    assert_smoothed(log_w.round(decimals=digits))  # with ties


@pytest.mark.parametrize("name", ["pareto", "lognormal", "exponential"])
@pytest.mark.parametrize("shift", [-1e4, -0.3, 7.0, 1e4])
def test_shifting_the_weights_shifts_the_smoothed_ones(name, shift):
    log_w = quantiles(name, 1000)
    smoothed, k = smooth(log_w)
    moved, same = smooth(log_w + shift)
    torch.testing.assert_close(moved, smoothed + shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(same, k, rtol=0, atol=1e-9)


def test_each_column_is_a_datapoint_and_the_order_of_rows_means_nothing():
    log_w = pareto_weights(0.6, draws=500, repeats=6).reshape(500, 2, 3)
    smoothed, k = smooth(log_w)
    assert k.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone, one = smooth(log_w[:, i, j])
            torch.testing.assert_close(alone, smoothed[:, i, j], rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(one, k[i, j], rtol=1e-13, atol=1e-13)
    order = torch.randperm(500)
    shuffled, again = smooth(log_w[order])
    torch.testing.assert_close(shuffled, smoothed[order], rtol=0, atol=0)
    torch.testing.assert_close(again, k)


def test_a_fit_in_parts_is_the_fit(monkeypatch):
    exceedances = pareto_weights(0.6, draws=300, repeats=7).exp().sub(1).sort(0).values
    whole = fit_generalized_pareto(exceedances)
    for most in (1, 300 * 47 * 2, 300 * 47 * 7):
        monkeypatch.setattr(pareto, "_MOST_ELEMENTS", most)
        part = fit_generalized_pareto(exceedances)
        torch.testing.assert_close(part.k, whole.k, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(part.sigma, whole.sigma, rtol=1e-13, atol=1e-13)


# Edges


def test_the_tail_is_a_fifth_at_first_and_then_grows_like_a_root():
    assert [tail_size(draws) for draws in (1, 2, 5, 24, 25, 225, 10_000, 1_000_000)] == [1, 1, 1, 5, 5, 45, 300, 3000]


@pytest.mark.parametrize("draws", [1, 2, 5, 20])
def test_few_draws_have_no_tail_and_stay_as_they_are(draws):
    log_w = torch.randn(draws, 3)
    smoothed, k = smooth(log_w)
    assert torch.equal(smoothed, log_w)
    assert k.isnan().all()


def test_five_exceedances_are_enough():
    assert pareto_k(torch.randn(25, 3)).isfinite().all()
    assert pareto_k(torch.randn(20, 3)).isnan().all()
    assert fit_generalized_pareto(torch.ones(4, 3)).k.isnan().all()
    assert fit_generalized_pareto(torch.ones(0, 3)).k.shape == (3,)


@pytest.mark.parametrize("value", [0.0, -1e5, 1e5])
def test_equal_weights_have_the_lightest_tail_there_is(value):
    log_w = torch.full((1000, 2), value)
    smoothed, k = smooth(log_w)
    assert torch.equal(smoothed, log_w)
    assert (k == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_tail(dtype):
    # An exact guide: log w is the same number for every draw, up to the rounding of numbers of that size.
    log_w = (torch.full((1000, 3), -90.0, dtype=dtype) + 90.0 * torch.finfo(dtype).eps * torch.randn(1000, 3)).to(dtype)
    assert log_w.unique().numel() > 3
    smoothed, k = smooth(log_w)
    assert smoothed.dtype == dtype
    assert torch.equal(smoothed, log_w)
    assert (k == -torch.inf).all()


@pytest.mark.parametrize("zeros", [10, 500, 900, 960, 995])
def test_weights_of_zero_are_below_every_tail(zeros):
    log_w = torch.cat([torch.full((zeros, 1), -torch.inf), quantiles("pareto", 1000 - zeros)[:, None]])
    smoothed, k = assert_smoothed(log_w)
    assert (smoothed[:zeros] == -torch.inf).all()
    assert k.isfinite().all()
    if zeros > 900:  # all others exceed nothing at all: the fit is to the weights themselves
        weights = log_w[zeros:].exp().sort(0).values
        assert k.item() == pytest.approx(fit_generalized_pareto(weights).k.item(), abs=0.01)


def test_too_few_weights_that_are_not_zero():
    log_w = torch.full((1000, 2), -torch.inf)
    log_w[:4] = torch.randn(4, 2)
    smoothed, k = smooth(log_w)
    assert torch.equal(smoothed, log_w)
    assert k.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_weight_has_no_tail_and_does_not_reach_its_neighbours(bad):
    log_w = pareto_weights(0.6, draws=1000, repeats=3)
    fine, expected = smooth(log_w)
    log_w[17, 1] = bad
    smoothed, k = smooth(log_w)
    assert k.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(smoothed[:, 1], log_w[:, 1], equal_nan=True)
    assert torch.equal(smoothed[:, ::2], fine[:, ::2])
    torch.testing.assert_close(k[::2], expected[::2])


def test_weights_that_are_all_zero_have_no_tail():
    smoothed, k = smooth(torch.full((100, 2), -torch.inf))
    assert (smoothed == -torch.inf).all()
    assert k.isnan().all()


@pytest.mark.parametrize("spread", [30.0, 1000.0, 1e4, 1e5, 1e6])
def test_huge_spreads_are_finite(spread):
    smoothed, k = assert_smoothed(spread * torch.randn(1000, 20))
    assert smoothed.isfinite().all()
    assert ((k > 5) | k.isnan()).all()
    assert (k > 5).any()


@pytest.mark.parametrize("gap", [15.0, 100.0, 700.0, 740.0, 760.0, 1000.0, 1e5])
def test_one_weight_that_outweighs_all_others(gap):
    log_w = torch.randn(1000, 20)
    log_w[500] = gap  # below some 745 nats the others' weights are zero next to it
    smoothed, k = assert_smoothed(log_w)
    assert (k > 0.7).all()
    assert smoothed.isfinite().all()
    log_w = torch.zeros(1000, 1)
    log_w[500] = gap  # one exceedance is no tail
    smoothed, k = smooth(log_w)
    assert k.isnan().all()
    assert torch.equal(smoothed, log_w)


@pytest.mark.parametrize("levels", [2, 5, 40])
def test_ties(levels):
    _, k = assert_smoothed(torch.randint(levels, (1000, 4)).double().log())
    assert not k.isnan().any()


def test_what_is_tied_with_the_threshold_does_not_exceed_it():
    excess = pareto_weights(0.6, draws=200, repeats=3).exp().sub(1).sort(0).values
    tied = torch.cat([torch.zeros(100, 3), excess])
    torch.testing.assert_close(fit_generalized_pareto(tied).k, fit_generalized_pareto(excess).k, rtol=0, atol=1e-3)
    assert (fit_generalized_pareto(torch.zeros(300, 2)).k == -torch.inf).all()
    assert (fit_generalized_pareto(torch.zeros(300, 2)).sigma == 0).all()


def test_a_tail_of_no_weights():
    tail, k = smooth_tail(torch.zeros(0, 3), torch.zeros(3))
    assert tail.shape == (0, 3)
    assert k.isnan().all()


def test_single_precision_stays_and_agrees_with_double():
    log_w = pareto_weights(0.6, draws=1000, repeats=4).float() - 100
    smoothed, k = smooth(log_w)
    exact, expected = smooth(log_w.double())
    assert smoothed.dtype == torch.float32
    assert k.dtype == torch.float64
    torch.testing.assert_close(smoothed.double(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(k, expected)


def test_the_rounding_of_large_numbers_is_at_worst_a_light_tail():
    # Of a likelihood of ten thousand nats single precision leaves steps of a thousandth.
    log_w = (torch.full((5000, 20), -10_000.0) + 5e-4 * torch.randn(5000, 20)).float()
    assert log_w.unique().numel() < 20
    assert not (pareto_k(log_w) > 0.3).any()


def test_the_fewest_draws_that_are_smoothed_are_as_many_as_said():
    """Twenty-one, of whose tail five are left."""
    log_w = torch.linspace(0, 3, 21, dtype=torch.float64)[:, None]
    assert pareto_k(log_w).isfinite().all()
    assert pareto_k(log_w[:20]).isnan().all()
