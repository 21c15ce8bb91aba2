"""Grey pixels: the continuous Bernoulli and the discretised logistic, against exact answers."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.likelihoods import ContinuousBernoulli, DiscretisedLogistic
from tests.statistics import assert_mean, assert_not_mean

LOGITS = [-100.0, -40.0, -17.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-8, 1e-3, 0.05, 0.2, 1.0, 20.0, 100.0]


def one_pixel(likelihood, *params):
    """p(x | z) of a likelihood of one pixel, from its decoder's output."""
    return likelihood(torch.tensor(params).reshape(likelihood.param_shape))


# --- continuous Bernoulli


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.usefixtures("float64")
def test_continuous_bernoulli_integrates_to_one_and_has_its_moments(logit):
    # Gauss-Legendre in pieces that get shorter towards the ends, where the density of large logits is.
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(40))
    edges = torch.tensor([0.0, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 1.0])
    half = edges.diff()[:, None] / 2
    x = (edges[:-1, None] + half + half * nodes).flatten()[:, None]
    weights = (half * weights).flatten()
    p = one_pixel(ContinuousBernoulli((1,)), logit)
    density = p.log_prob(x).exp() * weights
    torch.testing.assert_close(density.sum(), torch.tensor(1.0), rtol=1e-12, atol=0)
    mean = (density * x[:, 0]).sum()
    torch.testing.assert_close(p.mean[0], mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(p.variance[0], (density * (x[:, 0] - mean).square()).sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_in_single_precision(logit):
    x = torch.linspace(0, 1, 11)[:, None]
    single = one_pixel(ContinuousBernoulli((1,)), logit)
    double = ContinuousBernoulli((1,))(torch.tensor([logit], dtype=torch.float64))
    torch.testing.assert_close(single.log_prob(x).double(), double.log_prob(x.double()), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=2e-6, atol=0)
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=5e-4, atol=0)


@pytest.mark.usefixtures("float64")
def test_continuous_bernoulli_is_that_of_torch_where_torch_is_exact():
    logits, x = torch.tensor([-8.0, -2.0, 0.7, 5.0]), torch.tensor([0.1, 0.9, 0.3, 1.0])
    ours, theirs = ContinuousBernoulli((4,))(logits), dist.ContinuousBernoulli(logits=logits).to_event(1)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_torch_in_single_precision_is_the_negative_control():
    logits, x = torch.tensor([100.0]), torch.tensor([1.0])
    assert math.isclose(ContinuousBernoulli((1,))(logits).log_prob(x).item(), math.log(100), rel_tol=1e-6)
    assert dist.ContinuousBernoulli(logits=logits, validate_args=False).log_prob(x).item() < math.log(100) - 1.8


@pytest.mark.parametrize("logit", [-60.0, -1.0, 0.0, 1e-6, 3.0, 60.0])
def test_continuous_bernoulli_draws_from_the_density_that_it_scores_with(logit):
    p = one_pixel(ContinuousBernoulli((1,)), logit)
    x = p.rsample(torch.Size([20_000]))
    assert ((x >= 0) & (x <= 1)).all()
    assert_mean(x, p.mean)
    assert_mean((x - p.mean).square(), p.variance)
    assert_not_mean(x, p.mean + p.stddev / 10)


@pytest.mark.usefixtures("float64")
def test_a_draw_of_the_continuous_bernoulli_can_be_differentiated_by_its_logit():
    logits = torch.tensor([-30.0, -0.5, 0.0, 2.0, 30.0], requires_grad=True)
    p = ContinuousBernoulli((5,))(logits)
    draws = p.rsample(torch.Size([20_000]))
    each = (torch.autograd.grad(draw.sum(), logits, retain_graph=True)[0] for draw in draws.split(200))
    assert_mean(torch.stack(list(each)) / 200, p.variance.detach())  # d E[x] / dl = Var[x]


@pytest.mark.parametrize("logit", LOGITS)
def test_the_mean_has_a_slope_for_every_logit(logit):
    logits = torch.tensor([logit], requires_grad=True)
    p = ContinuousBernoulli((1,), max_logit=1e3)(logits)
    (slope,) = torch.autograd.grad(p.mean.sum(), logits)
    torch.testing.assert_close(slope, p.variance.detach(), rtol=2e-3, atol=0)


def test_logits_are_bounded_and_the_held_ones_counted():
    likelihood = ContinuousBernoulli((2,), max_logit=10.0)
    params = torch.tensor([[-11.0, 3.0], [10.0, 1e9]])
    assert likelihood.hits(params) == 2
    assert likelihood(params).log_prob(torch.tensor([0.0, 1.0])).max() <= 2 * math.log(10)


@pytest.mark.parametrize("mean", [0.0, 0.003, 0.2, 0.5, 0.97, 1.0])
def test_output_bias_of_the_continuous_bernoulli_has_that_mean(mean):
    likelihood = ContinuousBernoulli((1,))
    bias = likelihood.output_bias(torch.tensor([mean]))
    assert abs(likelihood(bias).mean.item() - min(max(mean, 0.02), 0.98)) < 1e-4


# --- discretised logistic


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("loc", [-5.0, 0.0, 0.3, 1.0, 40.0])
@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 0.0, 5.0])
@pytest.mark.usefixtures("float64")
def test_masses_sum_to_one_and_have_their_moments(num_levels, loc, log_scale):
    p = one_pixel(DiscretisedLogistic((1,), num_levels=num_levels), loc, log_scale)
    levels = torch.arange(num_levels)[:, None] / (num_levels - 1)
    mass = p.log_prob(levels).exp()
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0))
    mean = (mass * levels[:, 0]).sum()
    torch.testing.assert_close(p.mean[0], mean, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(p.variance[0], (mass * (levels[:, 0] - mean).square()).sum(), atol=1e-10, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_mass_is_the_difference_of_the_distribution_function():
    p = one_pixel(DiscretisedLogistic((1,)), 0.4, math.log(0.05))
    for level, (low, high) in {0: (-math.inf, 0.5), 100: (99.5, 100.5), 255: (254.5, math.inf)}.items():
        low, high = (torch.sigmoid(torch.tensor((edge / 255 - 0.4) / 0.05)) for edge in (low, high))
        torch.testing.assert_close(p.log_prob(torch.tensor([level / 255])), (high - low).log())


def test_a_mass_far_from_its_location_is_exact_in_single_precision():
    """By the difference of two sigmoids, as it is often written, there is nothing left of it."""
    far, width, scale = torch.tensor([1.0 - 1 / 255]), 1 / 255, 0.01
    exact = -(float(far) - width / 2 - 0.2) / scale + math.log(-math.expm1(-width / scale))
    found = one_pixel(DiscretisedLogistic((1,)), 0.2, math.log(scale)).log_prob(far).item()
    assert math.isclose(found, exact, rel_tol=1e-5)
    below, above = (torch.sigmoid((far + side * width / 2 - 0.2) / scale) for side in (-1, 1))
    assert (above - below).item() == 0


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.02), (-0.5, 0.4), (1.02, 0.001)])
def test_levels_are_drawn_from_the_masses_that_score_them(loc, scale):
    p = one_pixel(DiscretisedLogistic((1,), num_levels=9), loc, math.log(scale))
    x = p.sample(torch.Size([20_000]))
    assert torch.equal((x * 8).round() / 8, x)
    levels = torch.arange(9.0) / 8
    mass = p.log_prob(levels[:, None]).exp()
    assert_mean((x == levels).double(), mass, sd=(mass * (1 - mass)).sqrt())
    assert_not_mean((x == levels).double(), mass.roll(1), sd=(mass * (1 - mass)).sqrt())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([[0.0, 255.0]], "expects x in 0, 1/255, ..., 1, found 255"),
        ([[0.5, 1.0]], r"found 0\.5"),
        ([[-1 / 255, 1.0]], "divide by the largest grey level"),
        ([[math.nan, 1.0]], "non-finite"),
    ],
)
def test_data_that_are_no_grey_levels(x, words):
    with pytest.raises(DataError, match=words):
        DiscretisedLogistic((2,)).check(torch.tensor(x))


@pytest.mark.parametrize(("x", "words"), [([[0.0, 255.0]], r"\[0, 255\]"), ([[-0.1, 1.0]], r"\[-0\.1, 1\]")])
def test_data_that_are_no_continuous_bernoulli(x, words):
    with pytest.raises(DataError, match=words):
        ContinuousBernoulli((2,)).check(torch.tensor(x))


def test_all_levels_of_a_byte_are_accepted():
    half = (torch.arange(256.0)[None] / 255).half()
    DiscretisedLogistic((256,)).check(half.float())
    DiscretisedLogistic((256,)).check(torch.arange(256.0)[None] / 255)
    pixels = pv.data.Pixels(torch.arange(256, dtype=torch.uint8)[None], "none")
    DiscretisedLogistic((256,)).check(pixels[:])


@pytest.mark.parametrize("options", [{"num_levels": 1}, {"scale": 0.0}])
def test_options_of_the_discretised_logistic(options):
    with pytest.raises(ConfigError):
        DiscretisedLogistic((2,), **options)
