"""Streaming summaries that keep the largest weights: whatever the blocks are, they are those of all weights at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_vae.ops import weights
from pyro_vae.ops.streaming import LogMoments, TailMoments
from tests.ops.test_weights import exactly, log_weights, split

pytestmark = pytest.mark.usefixtures("float64")


def by_blocks(parts, capacity):
    found = TailMoments.of(parts[0], capacity=capacity)
    for part in parts[1:]:
        found = found.merge(TailMoments.of(part, capacity=capacity))
    return found


def assert_same(found, expected, atol=1e-12):
    torch.testing.assert_close(found.tail, expected.tail, rtol=0, atol=0)
    torch.testing.assert_close(found.body, expected.body, rtol=1e-12, atol=atol)
    assert torch.equal(found.num_particles, expected.num_particles)


def assert_summarises(found, log_w):
    """By the definition: the largest, and the power sums of the others."""
    capacity = len(found.tail)
    ordered = log_w.sort(0, descending=True).values
    kept = min(capacity, len(log_w))
    assert torch.equal(found.tail[:kept], ordered[:kept])
    assert (found.tail[kept:] == -torch.inf).all()
    for m in range(1, 5):
        powers = torch.logsumexp(m * ordered[kept:], 0) if len(log_w) > kept else torch.full_like(log_w[0], -torch.inf)
        torch.testing.assert_close(found.body[m - 1], powers, rtol=1e-12, atol=1e-9)
    assert (found.num_particles == len(log_w)).all()


@pytest.mark.parametrize("capacity", [1, 5, 12, 40])
def test_a_block_is_its_largest_weights_and_the_power_sums_of_the_others(capacity):
    log_w = 10 * torch.randn(12, 3)
    assert_summarises(TailMoments.of(log_w, capacity=capacity), log_w)
    assert_summarises(TailMoments.of(log_w[:, 0], capacity=capacity), log_w[:, 0])


@exactly
@given(log_weights(least=2, most=12), st.lists(st.integers(0, 11), max_size=4), st.integers(1, 15))
def test_merged_blocks_are_one_block(lw, cuts, capacity):
    found = by_blocks(split(lw, cuts), capacity)
    assert_summarises(found, lw)
    whole = LogMoments.of(lw)
    torch.testing.assert_close(found.log_moments.log_mean, whole.log_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.log_moments.ess, whole.ess, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_moments.stderr, whole.stderr, rtol=1e-9, atol=1e-6)


def test_the_order_of_blocks_means_nothing():
    parts = (3 * torch.randn(300, 4)).split(70)
    found = by_blocks(parts, 20)
    assert_same(by_blocks(parts[::-1], 20), found)
    halves = by_blocks(parts[:2], 20).merge(by_blocks(parts[2:], 20))
    assert_same(halves, found)


def test_a_summary_that_forgets_the_body_fails_the_same_check():
    parts = torch.randn(300, 4).split(70)
    found = by_blocks(parts, 20)._replace(body=TailMoments.of(parts[-1], capacity=20).body)
    with pytest.raises(AssertionError):
        assert_summarises(found, torch.cat(parts))


def test_some_datapoints_and_several_summaries():
    log_w = torch.randn(100, 5)
    whole = TailMoments.of(log_w, capacity=10)
    for rows in (torch.tensor([3, 1]), torch.tensor([True, False, False, True, True]), torch.arange(5)):
        assert_same(whole.at(rows), TailMoments.of(log_w[:, rows], capacity=10))
    assert len(whole.at(torch.zeros(5, dtype=torch.bool)).num_particles) == 0
    assert_same(TailMoments.joined([whole.at(torch.tensor([row])) for row in range(5)]), whole)


def test_datapoints_may_have_different_numbers_of_draws():
    log_w = torch.randn(500, 3)
    counts = [500, 120, 8]
    parts = [by_blocks(log_w[:count, row : row + 1].split(50), 10) for row, count in enumerate(counts)]
    joined = TailMoments.joined(parts)
    assert joined.num_particles.tolist() == counts
    moments = joined.log_moments
    for row, count in enumerate(counts):
        one = log_w[:count, row]
        torch.testing.assert_close(moments.log_mean[row], weights.log_mean_exp(one))
        torch.testing.assert_close(moments.stderr[row], weights.log_mean_exp_stderr(one))
        torch.testing.assert_close(moments.ess[row], weights.ess(one))
    assert moments.log_mean[2] != pytest.approx(weights.log_mean_exp(log_w[:, 2]).item(), abs=1e-3)
    more = torch.randn(50, 3)
    merged = joined.merge(TailMoments.of(more, capacity=10))
    assert merged.num_particles.tolist() == [550, 170, 58]
    for row, count in enumerate(counts):
        one = torch.cat([log_w[:count, row], more[:, row]])
        torch.testing.assert_close(merged.log_moments.log_mean[row], weights.log_mean_exp(one))


def test_single_precision_is_summed_in_double():
    log_w = torch.randn(1000, 3, dtype=torch.float32) - 300
    found = by_blocks(log_w.split(100), 30)
    assert found.tail.dtype == found.body.dtype == torch.float64
    assert_summarises(found, log_w.double())


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_nothing_overflows_or_vanishes(shift):
    log_w = torch.randn(300, 3)
    found, moved = (by_blocks(part.split(70), 20) for part in (log_w, log_w + shift))
    m = torch.arange(1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(moved.body, found.body + m * shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.log_moments.ess, found.log_moments.ess, rtol=1e-9, atol=0)
    spread = 1000 * torch.randn(300, 3)
    assert_summarises(by_blocks(spread.split(70), 20), spread)


def test_weights_of_zero_are_counted():
    nothing = torch.full((50, 2), -torch.inf)
    found = by_blocks([nothing, nothing], 10)
    assert (found.log_moments.log_mean == -torch.inf).all()
    assert (found.log_moments.ess == 0).all()
    assert (found.log_moments.stderr == torch.inf).all()
    found = found.merge(TailMoments.of(torch.zeros(100, 2), capacity=10))
    torch.testing.assert_close(found.log_moments.log_mean, torch.full((2,), -math.log(2)))
    torch.testing.assert_close(found.log_moments.ess, torch.full((2,), 100.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_weight_is_not_forgotten(bad):
    log_w = torch.randn(300, 3)
    log_w[120, 1] = bad
    found = by_blocks(log_w.split(70), 20).log_moments.log_mean
    assert found.isfinite().tolist() == [True, False, True]
