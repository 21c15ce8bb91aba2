"""The jackknife by streaming: the sum over all subsets, without going through them."""

import math

import pytest
import torch
from scipy.special import digamma

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.evidence import importance, jackknife
from pyro_vae.evidence.jackknife import _first_order, _second_order
from pyro_vae.ops import weights
from pyro_vae.ops.streaming import TailMoments
from pyro_vae.pairs.pair import Pair
from pyro_vae.pairs.particles import particle_blocks
from tests.ops.test_weights import gamma_weights, iwae_of_gamma, jackknife_coefficients
from tests.statistics import assert_mean, assert_not_mean

pytestmark = pytest.mark.usefixtures("float64")

ORDERS = {1: _first_order, 2: _second_order}
orders = pytest.mark.parametrize("order", ORDERS)


def streamed(log_w, order, *, block=10_000, capacity=300):
    parts = [TailMoments.of(part, capacity=min(capacity, len(log_w))) for part in log_w.split(block)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return ORDERS[order](whole, whole.tail[:0]).value


def direct(log_w, order):
    """By its definition, all pairs at once; the two largest weights are added to a sum of the others, never removed."""
    w = (log_w - log_w.sort().values[-3]).exp().sort(descending=True).values
    count, small = len(w), w.clone()
    small[:2] = 0
    large = w - small
    alone = small.sum() - small + large.sum()
    alone[:2] = small.sum() + large[:2].flip(0)
    first, second = torch.triu_indices(count, count, 1)
    pairs = small.sum() - small[first] - small[second]
    pairs = pairs + torch.where(first != 0, large[0], 0.0) + torch.where((first != 1) & (second != 1), large[1], 0.0)
    bounds = [w.sum().log() - math.log(count), (alone.log() - math.log(count - 1)).mean()]
    bounds.append((pairs.log() - math.log(count - 2)).mean())
    coefficients = jackknife_coefficients(count, order) if count < 50 else _coefficients(count, order)
    return sum(c * bound for c, bound in zip(coefficients, bounds, strict=False)) + log_w.sort().values[-3]


def _coefficients(count, order):
    """In closed form, since the equations that they solve become singular."""
    if order == 1:
        return [count, -(count - 1)]
    return [count**2 / 2, -((count - 1) ** 2), (count - 2) ** 2 / 2]


# The same number


@orders
@pytest.mark.parametrize("particles", [3, 4, 7, 20])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_few_particles_meet_the_enumeration(particles, order, spread):
    log_w = spread * torch.randn(particles, 10)
    exact = weights.jackknife(log_w, order)
    torch.testing.assert_close(streamed(log_w, order), exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(streamed(log_w, order, block=2), exact, rtol=1e-9, atol=1e-9)


def test_two_particles_meet_the_enumeration():
    log_w = 3 * torch.randn(2, 10)
    torch.testing.assert_close(streamed(log_w, 1), weights.jackknife(log_w, 1), rtol=1e-12, atol=1e-12)


MANY = {
    "light tail": lambda: torch.rand(600).log(),
    "heavy tail": lambda: -0.9 * torch.rand(600).log(),
    "lognormal": lambda: 3 * torch.randn(600),
    "all alike": lambda: torch.full((600,), -90.0),
    "one dominates": lambda: torch.cat([torch.randn(599), torch.tensor([12.0])]),
    "one is all": lambda: torch.cat([torch.randn(599), torch.tensor([200.0])]),
    "two dominate": lambda: torch.cat([torch.randn(598), torch.tensor([9.0, 15.0])]),
    "two are all": lambda: torch.cat([torch.randn(598), torch.tensor([100.0, 200.0])]),
    "zeros": lambda: torch.cat([torch.randn(200), torch.full((400,), -torch.inf)]),
    "few are not zero": lambda: torch.cat([torch.randn(20), torch.full((580,), -torch.inf)]),
}


@orders
@pytest.mark.parametrize("kind", MANY)
def test_many_particles_meet_the_sum_over_pairs(kind, order):
    log_w = MANY[kind]()
    exact = direct(log_w, order).item()
    for block in (600, 100, 7):
        found = streamed(log_w[:, None].clone(), order, block=block)
        assert found.item() == pytest.approx(exact, rel=1e-6, abs=1e-6)
    if kind in ("heavy tail", "lognormal", "one dominates", "two dominate"):
        assert weights.log_mean_exp(log_w).item() != pytest.approx(exact, abs=1e-3)


@orders
def test_the_direct_sum_is_the_enumeration(order):
    for log_w in (3 * torch.randn(12), torch.cat([torch.randn(10), torch.tensor([40.0, 80.0])])):
        assert direct(log_w, order).item() == pytest.approx(weights.jackknife(log_w, order).item(), abs=1e-9)


@orders
def test_many_datapoints_at_once(order):
    log_w = 2 * torch.randn(300, 70)
    found = streamed(log_w, order, block=100)
    expected = torch.stack([direct(column, order) for column in log_w.T])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@orders
def test_how_many_weights_enter_exactly_does_not_show(order):
    log_w = 2 * torch.randn(5000, 5)
    torch.testing.assert_close(
        streamed(log_w, order, capacity=256), streamed(log_w, order, capacity=3000), rtol=0, atol=1e-7
    )


@orders
def test_shifting_the_weights_shifts_the_estimate(order):
    log_w = 2 * torch.randn(400, 5)
    torch.testing.assert_close(streamed(log_w - 1e4, order), streamed(log_w, order) - 1e4, rtol=0, atol=1e-6)


@orders
def test_what_cannot_be_known_is_not_finite(order):
    nothing = torch.full((50, 1), -torch.inf)
    assert not streamed(nothing, order).isfinite().any()
    one = nothing.clone()
    one[7] = 0.0  # without it, nothing is left: log 0
    assert not streamed(one, order).isfinite().any()
    assert streamed(torch.zeros(50, 1), order).isfinite().all()


# E0


@pytest.mark.parametrize(("particles", "exact"), [(2, 0.0364899740), (5, 0.0041055507)])
def test_e0_first_order_of_gamma_weights(particles, exact):
    found = streamed(gamma_weights(particles), 1)
    assert_mean(found, exact)
    assert_not_mean(found, iwae_of_gamma(particles))
    if particles == 2:
        assert_not_mean(found, 0.0)  # above log p(x) = 0, and no bound


def test_e0_second_order_of_gamma_weights():
    coefficients = jackknife_coefficients(6, 2)
    exact = sum(c * (digamma(6 - j) - math.log(6 - j)) for j, c in enumerate(coefficients))
    found = streamed(gamma_weights(6, 50_000), 2)
    assert_mean(found, exact)
    assert_not_mean(found, iwae_of_gamma(6))


def test_e0_many_gamma_weights_are_debiased():
    found = gamma_weights(400, 1000)
    control = torch.expm1(weights.log_mean_exp(found))  # of mean zero, and nearly the same noise
    assert_mean(streamed(found, 1) - control, 0.0, slack=1e-5)
    assert_mean(streamed(found, 2) - control, 0.0, slack=1e-6)
    assert_not_mean(weights.log_mean_exp(found) - control, 0.0)  # the bias of 1/800 that is removed


# As an estimator


def e1():
    problem = pv.problems.linear_gaussian(W=[[1.0]], scale=0.5**0.5)
    return problem, problem.guide(shift=0.6 - 1.3 / 1.5, scale=[0.5**0.5])


E1_BOUNDS = {1: -1.8389385332, 2: -1.7429762143, 3: -1.7201650608}


@pytest.mark.parametrize(("order", "particles"), [(1, 2), (1, 3), (2, 3)])
def test_e1(order, particles):
    problem, guide = e1()
    x = torch.full((20_000, 1), 1.3)
    found = jackknife(problem.model, guide, x, order=order, num_particles=particles)
    coefficients = jackknife_coefficients(particles, order)
    exact = sum(c * E1_BOUNDS[particles - j] for j, c in enumerate(coefficients))
    assert found.side == "point"
    assert_mean(found.value, exact)
    assert_not_mean(found.value, E1_BOUNDS[particles])
    if (order, particles) == (1, 2):
        assert_not_mean(found.value, problem.log_evidence(x[:1]).item())  # which is below


@orders
@pytest.mark.parametrize("proposal", ["guide", "defensive"])
def test_it_is_the_jackknife_of_the_weights_that_were_drawn(order, proposal):
    problem, guide = e1()
    x, options = problem.sample(9, seed=0), {"num_particles": 40, "max_bytes": 2**12}
    found = jackknife(problem.model, guide, x, order=order, proposal=proposal, **options)
    plain = importance(problem.model, guide, x, proposal=proposal, **options)
    assert torch.equal(found.stderr, plain.stderr)
    assert torch.equal(found.ess, plain.ess)
    assert torch.equal(found.num_evaluations, plain.num_evaluations)
    assert ((found.value - plain.value).abs() < plain.stderr.square() * 5).all()
    if proposal == "guide":
        pair = Pair.of(problem.model, guide, x)
        with pair.evaluation(0, "evidence"):
            blocks = list(particle_blocks(pair, **options))
        log_w = torch.cat([torch.cat([part for rows, part in blocks if rows == span]) for span in spans(blocks)], 1)
        torch.testing.assert_close(found.value, weights.jackknife(log_w, order), rtol=1e-8, atol=1e-8)


def spans(blocks):
    found = []
    for rows, _ in blocks:
        if rows not in found:
            found.append(rows)
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "order=3: expected 1 or 2"),
        ({"order": 0}, "order=0: expected 1 or 2"),
        ({"order": 2, "num_particles": 2}, "num_particles=2: expected at least 3 for order 2"),
        ({"order": 1, "num_particles": 1}, "num_particles=1: expected at least 2 for order 1"),
    ],
    ids=["order 3", "order 0", "two for order 2", "one for order 1"],
)
def test_what_cannot_be_is_refused(options, message):
    problem, guide = e1()
    with pytest.raises(ConfigError, match=message) as caught:
        jackknife(problem.model, guide, problem.sample(2, seed=0), **options)
    assert "\n" not in str(caught.value)


def test_by_default_it_draws_as_many_as_importance_sampling():
    problem, guide = e1()
    x = problem.sample(3, seed=0)
    found = jackknife(problem.model, guide, x)
    assert (found.num_particles == 5000).all()
    assert ((found.value - problem.log_evidence(x)).abs() < 5 * found.stderr).all()
