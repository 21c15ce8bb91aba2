"""Exam E4: what every gradient estimator is in expectation, against quadrature and enumeration in float64.

The expectations are exact: log-weights on a grid of quadrature nodes (or of all values of a discrete latent variable),
differentiated through. Beside them, what is known draw by draw, and known-wrong variants that must fail.
"""

import contextlib
import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.objectives import CIWAE, CUBO, ELBO, IWAE, JVI, MIWAE, PIWAE, TVO, Renyi, ReweightedWakeSleep
from pyro_vae.objectives.gradients import attached_apart, leave_one_out, sensitivity
from pyro_vae.pairs import pathwise
from pyro_vae.pairs.sites import Sites, Vectorized
from tests.statistics import assert_mean, assert_not_mean
from tests.test_exams import (
    E1_Q_LOC,
    E1_Q_LOG_SCALE,
    E5_ELBO,
    E5_LOG_P,
    E5_X,
    E6_X,
    Replicates,
    Scaled,
    e1_bound,
    scaled_pair,
    tanh_vae,
)

pytestmark = pytest.mark.usefixtures("float64")


def log_normal(value, loc, scale):
    return -0.5 * math.log(2 * math.pi) - torch.as_tensor(scale).log() - 0.5 * ((value - loc) / scale) ** 2


def quadrature(num_particles, num_sites, num_nodes):
    """Standard normal draws ``[particles, sites, node]`` and their masses."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(num_nodes)
    dimensions = num_particles * num_sites
    eps = torch.cartesian_prod(*[torch.tensor(nodes)] * dimensions).reshape(-1, dimensions).T
    mass = torch.cartesian_prod(*[torch.tensor(masses / masses.sum())] * dimensions).reshape(-1, dimensions).prod(1)
    return eps.reshape(num_particles, num_sites, -1), mass


def slopes(value, parameters):
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


# E1, where every datapoint has a guide and a prior of its own, so that one backward pass gives independent replicates


E1_START = {"prior_loc": 0.0, "loc": E1_Q_LOC, "log_scale": E1_Q_LOG_SCALE}
E1_X = 1.3


def e1_draws(parameters, num_particles, num_nodes):
    eps, mass = quadrature(num_particles, 1, num_nodes)
    return parameters["loc"] + parameters["log_scale"].exp() * eps[:, 0], mass


def e1_log_w(z, parameters):
    log_p = log_normal(z, parameters["prior_loc"], torch.ones(())) + log_normal(E1_X, z, torch.tensor(0.5).sqrt())
    return log_p - log_normal(z, parameters["loc"], parameters["log_scale"].exp())


def e1_parameters():
    return {name: torch.tensor(value, requires_grad=True) for name, value in E1_START.items()}


def e1_slopes(bound, num_particles, num_nodes=None):
    """Derivatives of the expectation of a bound, a function of log-weights."""
    parameters = e1_parameters()
    z, mass = e1_draws(parameters, num_particles, num_nodes or {1: 60, 2: 60, 3: 60, 4: 30}[num_particles])
    return slopes((mass * bound(e1_log_w(z, parameters))).sum(), parameters)


def e1_wake(power, num_particles):
    """Expectation of the normalised w^power, times the score of the guide, by its two parameters."""
    parameters = e1_parameters()
    z, mass = e1_draws({name: value.detach() for name, value in parameters.items()}, num_particles, 60)
    weights = torch.softmax(power * e1_log_w(z, parameters).detach(), 0)
    log_q = log_normal(z, parameters["loc"], parameters["log_scale"].exp())
    return slopes((mass * (weights * log_q).sum(0)).sum(), {name: parameters[name] for name in ("loc", "log_scale")})


def replicated(objective, num=20_000):
    pair = Replicates(num)
    objective(pair.model, pair.guide)(torch.full((num,), E1_X)).backward()
    return pair.gradients()


def test_quadrature_agrees_with_that_of_the_exams():
    found = e1_slopes(IWAE().bound, 3)
    for name, slope in found.items():
        up, down = (e1_bound(3, **{**E1_START, name: E1_START[name] + step}) for step in (1e-4, -1e-4))
        assert slope.item() == pytest.approx((up - down) / 2e-4, abs=1e-6)


FOLLOWS_ITS_BOUND = {
    "ELBO-path": (ELBO(num_particles=2, gradient="path"), 2),
    "ELBO-dreg": (ELBO(num_particles=2, gradient="dreg"), 2),
    "ELBO-reinforce": (ELBO(gradient="reinforce"), 1),
    "ELBO-reinforce-2": (ELBO(num_particles=2, gradient="reinforce"), 2),
    "ELBO-reinforce_baseline": (ELBO(num_particles=2, gradient="reinforce_baseline"), 2),
    "ELBO-rloo": (ELBO(num_particles=3, gradient="rloo"), 3),
    "IWAE-total": (IWAE(num_particles=3), 3),
    "IWAE-dreg-1": (IWAE(gradient="dreg"), 1),
    "IWAE-dreg": (IWAE(num_particles=3, gradient="dreg"), 3),
    "IWAE-reinforce": (IWAE(num_particles=3, gradient="reinforce"), 3),
    "IWAE-reinforce_baseline": (IWAE(num_particles=3, gradient="reinforce_baseline"), 3),
    "IWAE-vimco": (IWAE(num_particles=3, gradient="vimco"), 3),
    "IWAE-resampled": (IWAE(num_particles=3, resampled=True), 3),
    "IWAE-resampled-dreg": (IWAE(num_particles=3, gradient="dreg", resampled=True), 3),
    "Renyi-total": (Renyi(alpha=0.5, num_particles=3), 3),
    "Renyi-dreg": (Renyi(alpha=0.5, num_particles=3, gradient="dreg"), 3),
    "Renyi-vimco": (Renyi(alpha=0.5, num_particles=3, gradient="vimco"), 3),
    "Renyi-negative-dreg": (Renyi(alpha=-0.5, num_particles=3, gradient="dreg"), 3),
    "Renyi-above-1-dreg": (Renyi(alpha=2.0, num_particles=3, gradient="dreg"), 3),
    "MIWAE-total": (MIWAE(num_groups=2, num_particles=2), 4),
    "MIWAE-dreg": (MIWAE(num_groups=2, num_particles=2, gradient="dreg"), 4),
    "CIWAE-total": (CIWAE(beta=0.3, num_particles=3), 3),
    "CIWAE-dreg": (CIWAE(beta=0.3, num_particles=3, gradient="dreg"), 3),
    "TVO-total": (TVO(num_pieces=3, num_particles=3), 3),
    "TVO-vimco": (TVO(num_pieces=3, num_particles=3, gradient="vimco"), 3),
}


@pytest.mark.parametrize(("objective", "draws"), FOLLOWS_ITS_BOUND.values(), ids=list(FOLLOWS_ITS_BOUND))
def test_the_gradient_is_unbiased_for_the_bound(objective, draws):
    exact = e1_slopes(objective.bound, draws)
    other = e1_slopes(lambda log_w: (log_w**2).mean(0), draws)
    for name, gradient in replicated(objective).items():
        assert_mean(gradient, exact[name].item())
        assert_not_mean(gradient, other[name].item())


@pytest.mark.parametrize(("objective", "draws"), FOLLOWS_ITS_BOUND.values(), ids=list(FOLLOWS_ITS_BOUND))
def test_the_value_is_that_of_the_bound(objective, draws):
    parameters = e1_parameters()
    z, mass = e1_draws(parameters, draws, 30)
    exact = (mass * objective.bound(e1_log_w(z, parameters))).sum().item()
    pair = Replicates(20_000)
    with torch.no_grad():
        found = objective(pair.model, pair.guide).estimate(torch.full((20_000,), E1_X))
    assert_mean(found.bound, exact)
    assert_not_mean(found.bound, exact + 0.05)
    assert_mean(found.elbo, -1.8389385332)


def test_miwae_has_the_gradient_of_the_bound_of_one_group():
    exact, of_all = e1_slopes(IWAE().bound, 2), e1_slopes(IWAE().bound, 4)
    for name, gradient in replicated(MIWAE(num_groups=2, num_particles=2, gradient="dreg")).items():
        assert_mean(gradient, exact[name].item())
        assert_not_mean(gradient, of_all[name].item())


@pytest.mark.parametrize("gradient", ["total", "dreg"])
def test_piwae_follows_one_bound_with_the_model_and_another_with_the_guide(gradient):
    of_group, of_all = e1_slopes(IWAE().bound, 2), e1_slopes(IWAE().bound, 4)
    found = replicated(PIWAE(num_groups=2, num_particles=2, gradient=gradient))
    for name, samples in found.items():
        right, wrong = (of_all, of_group) if name == "prior_loc" else (of_group, of_all)
        assert_mean(samples, right[name].item())
        assert_not_mean(samples, wrong[name].item())


def test_piwae_keeps_the_guides_gradient_where_a_group_has_no_weight_among_all():
    # In float32 a weight of exp(-200) among all is zero, but within its group of bad draws it may be one.
    log_w = torch.tensor([[0.0], [-1.0], [-200.0], [-300.0]], dtype=torch.float32)
    draws = torch.zeros_like(log_w).requires_grad_()
    z = draws.view_as(draws)
    sites = Sites({"z": z}, {"x": log_w}, {"z": torch.zeros_like(log_w)}, {"z": z}, {}, {}, 1.0, True, False)
    objective = PIWAE(num_groups=2, num_particles=2)
    attached_apart(objective.bound(log_w), sites, objective._coefficients(log_w)).sum().backward()
    assert draws.grad[2].item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("gradient", ["total", "dreg"])
def test_jvi_follows_the_importance_weighted_bound(gradient):
    exact, debiased = e1_slopes(IWAE().bound, 3), e1_slopes(JVI().bound, 3)
    for name, samples in replicated(JVI(num_particles=3, gradient=gradient)).items():
        assert_mean(samples, exact[name].item())
        assert_not_mean(samples, debiased[name].item())


@pytest.mark.parametrize("objective", [IWAE, partial(Renyi, alpha=0.5), partial(CIWAE, beta=0.3), MIWAE])
def test_path_is_biased_for_the_guide_and_for_nothing_else(objective):
    # The negative control of the tests above: the same comparison has to fail, and does not for the model.
    found = replicated(objective(num_particles=3 if objective is not MIWAE else 2, gradient="path"))
    exact = e1_slopes(objective().bound, 3) if objective is not MIWAE else e1_slopes(IWAE().bound, 2)
    assert_mean(found["prior_loc"], exact["prior_loc"].item())
    for name in ("loc", "log_scale"):
        assert_not_mean(found[name], exact[name].item())


def test_a_baseline_that_has_seen_its_own_particle_is_biased(monkeypatch):
    def with_itself(bound, log_w):
        return bound(log_w.mean(0, keepdim=True).expand_as(log_w)).expand_as(log_w)

    monkeypatch.setattr("pyro_vae.objectives.base.leave_one_out", with_itself)
    found, exact = replicated(IWAE(num_particles=3, gradient="vimco")), e1_slopes(IWAE().bound, 3)
    assert_not_mean(found["loc"], exact["loc"].item())


@pytest.mark.parametrize("gradient", ["score", "dreg"])
def test_reweighted_wake_sleep(gradient):
    found = replicated(ReweightedWakeSleep(num_particles=3, gradient=gradient))
    exact = {**e1_slopes(IWAE().bound, 3), **e1_wake(1.0, 3)}
    for name, samples in found.items():
        assert_mean(samples, exact[name].item())
    assert_not_mean(found["loc"], e1_slopes(IWAE().bound, 3)["loc"].item())


def test_sleep_phi_dreams_of_the_model():
    # E_p[d log q / d m] = (0 - m) / s^2 and E_p[d log q / d log s] = (1 + m^2) / s^2 - 1 at m = 0.6, s^2 = 0.5.
    found = replicated(ReweightedWakeSleep(num_particles=3, insomnia=0.0))
    sleep = {"loc": -1.2, "log_scale": 1.72}
    for name, exact in sleep.items():
        assert_mean(found[name], exact)
    assert_mean(found["prior_loc"], e1_slopes(IWAE().bound, 3)["prior_loc"].item())
    found, wake = replicated(ReweightedWakeSleep(num_particles=3, insomnia=0.25)), e1_wake(1.0, 3)
    for name, exact in sleep.items():
        assert_mean(found[name], 0.25 * wake[name].item() + 0.75 * exact)


@pytest.mark.parametrize("gradient", ["score", "dreg"])
def test_cubo_descends_with_the_guide_and_ascends_the_evidence_with_the_model(gradient):
    found = replicated(CUBO(num_particles=3, gradient=gradient))
    assert_mean(found["prior_loc"], e1_slopes(IWAE().bound, 3)["prior_loc"].item())
    for name, exact in e1_wake(2.0, 3).items():
        assert_mean(found[name], exact.item() / 2)


def test_cubo_is_consistent():
    # Half the log of E[w^2] under q, differentiated; at many particles the bias of order 1 / K is out of sight.
    parameters = e1_parameters()
    z, mass = e1_draws(parameters, 1, 100)
    limit = slopes(0.5 * (mass * (2 * e1_log_w(z, parameters)[0]).exp()).sum().log(), parameters)
    found = replicated(CUBO(num_particles=4000, gradient="dreg"), num=500)
    for name in ("loc", "log_scale"):
        assert_mean(found[name], -limit[name].item(), slack=5e-3)
        assert_not_mean(found[name], limit[name].item())


# Coefficients and bounds as functions of weights alone


WITH_DREG = {
    "ELBO": ELBO(gradient="dreg"),
    "IWAE": IWAE(gradient="dreg"),
    "Renyi": Renyi(alpha=0.3, gradient="dreg"),
    "Renyi-negative": Renyi(alpha=-1.0, gradient="dreg"),
    "MIWAE": MIWAE(num_groups=3, num_particles=2, gradient="dreg"),
    "CIWAE": CIWAE(beta=0.7, gradient="dreg"),
}


@pytest.mark.parametrize("objective", WITH_DREG.values(), ids=list(WITH_DREG))
def test_dreg_is_the_derivative_less_the_second_derivative(objective):
    log_w = torch.randn(6, 4) * 2
    hessian = torch.autograd.functional.hessian(lambda w: objective.bound(w).sum(), log_w)
    second = torch.tensor([[hessian[k, b, k, b] for b in range(4)] for k in range(6)])
    v = sensitivity(objective.bound, log_w)
    found = objective._coefficients(log_w)
    torch.testing.assert_close(found.model, v)
    torch.testing.assert_close(found.guide, v - second)


ALL = {
    **WITH_DREG,
    "JVI": JVI(num_particles=6),
    "JVI-2": JVI(order=2, num_particles=6),
    "PIWAE": PIWAE(num_groups=3, num_particles=2),
    "CUBO": CUBO(num_particles=6),
    "TVO": TVO(num_particles=6),
    "RWS": ReweightedWakeSleep(num_particles=6),
}


@pytest.mark.parametrize("objective", ALL.values(), ids=list(ALL))
def test_bounds_move_with_the_weights_and_lie_where_they_should(objective):
    log_w = torch.randn(6, 50) * 3
    bound = objective.bound(log_w)
    assert bound.shape == (50,)
    torch.testing.assert_close(objective.bound(log_w + 7.0), bound + 7.0)
    torch.testing.assert_close(sensitivity(objective.bound, log_w).sum(0), torch.ones(50))
    torch.testing.assert_close(objective.bound(torch.full((6, 1), -2.5)), torch.tensor([-2.5]))
    if objective.side == "lower":  # then below the importance-weighted bound of the same draws
        assert (bound <= pv.weights.log_mean_exp(log_w) + 1e-12).all()
        assert (bound >= log_w.mean(0) - 1e-12).all()


def test_members_of_the_family_meet():
    log_w = torch.randn(6, 50) * 3
    iwae, elbo = IWAE().bound(log_w), ELBO().bound(log_w)
    for other, expected in (
        (Renyi(alpha=0.0), iwae),
        (Renyi(alpha=1.0), elbo),
        (CIWAE(beta=0.0), iwae),
        (CIWAE(beta=1.0), elbo),
        (MIWAE(num_groups=1), iwae),
        (MIWAE(num_groups=6), elbo),
        (TVO(num_pieces=1), elbo),
        (JVI(order=0), iwae),
        (PIWAE(), iwae),
        (CUBO(order=3.0), pv.weights.renyi(log_w, -2.0)),
    ):
        torch.testing.assert_close(other.bound(log_w), expected)
    torch.testing.assert_close(TVO(num_pieces=2000).bound(log_w), iwae, atol=0.02, rtol=0)
    pieces = torch.stack([TVO(num_pieces=num).bound(log_w) for num in (1, 2, 4, 8)])
    assert (pieces.diff(dim=0) >= 0).all()


def test_m_and_k_are_not_swapped():
    log_w = torch.tensor([0.0, 0.0, 5.0, 5.0])[:, None]  # equal within a group of two, so each is its own mean
    assert MIWAE(num_groups=2, num_particles=2).bound(log_w).item() == pytest.approx(2.5)
    with pytest.raises(ConfigError, match="multiple of num_groups=3"):
        MIWAE(num_groups=3).bound(log_w)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(gradient="rloo"), "at least 2"),
        (lambda: IWAE(gradient="vimco"), "at least 2"),
        (lambda: IWAE(gradient="vimco", num_particles=2, resampled=True), "resampled"),
        (lambda: ELBO(gradient="path", analytic_kl=True), "analytic_kl"),
        (lambda: Renyi(alpha=math.inf), "alpha=inf"),
        (lambda: CIWAE(beta=1.5), "beta=1.5"),
        (lambda: CUBO(order=1.0), "order=1.0"),
        (lambda: JVI(order=3, num_particles=3), "order=3"),
        (lambda: TVO(num_pieces=0), "num_pieces=0"),
        (lambda: MIWAE(num_groups=0), "num_groups=0"),
        (lambda: ReweightedWakeSleep(insomnia=2.0), "insomnia=2.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# Layered guides: z1, then z2 given z1, then z3 given both


LAYERED_START = {
    "top": 0.2,  # the model's: the mean of its highest layer
    "slope1": 0.5, "loc1": 0.1, "log_scale1": -0.3,
    "slope2": 0.7, "loc2": -0.2, "log_scale2": -0.4,
    "slope3": 0.4, "skip3": 0.3, "loc3": 0.3, "log_scale3": -0.2,
}  # fmt: skip
LAYERED_X = 0.8


class Strict(nn.Module):
    """A function that takes one dimension only, so that what calls it has to be run particle by particle."""

    def forward(self, z):
        if z.ndim != 1:
            raise RuntimeError(f"expected one dimension, got {z.ndim}")
        return z


class Layered(nn.Module):
    """A Gaussian chain x <- z1 <- z2 (<- z3) and a bottom-up guide, with parameters for each datapoint."""

    def __init__(self, layers, num, start=None, strict=False):
        super().__init__()
        self.layers = layers
        for name, value in (start or LAYERED_START).items():
            if not name[-1].isdigit() or int(name[-1]) <= layers:
                self.register_parameter(name, nn.Parameter(torch.full((num,), value)))
        self.through = Strict() if strict else nn.Identity()

    def model(self, x):
        with pyro.plate("data", len(x)):
            loc = self.top
            for layer in range(self.layers, 0, -1):
                loc = pyro.sample(f"z{layer}", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.slope1 * x + self.loc1, self.log_scale1.exp()))
            z2 = pyro.sample("z2", dist.Normal(self.slope2 * self.through(z1) + self.loc2, self.log_scale2.exp()))
            if self.layers == 3:
                loc = self.slope3 * self.through(z2) + self.skip3 * self.through(z1) + self.loc3
                pyro.sample("z3", dist.Normal(loc, self.log_scale3.exp()))


def layered_slopes(bound, layers, num_particles, num_nodes):
    p = {name: torch.tensor(value, requires_grad=True) for name, value in LAYERED_START.items()}
    p = {name: value for name, value in p.items() if not name[-1].isdigit() or int(name[-1]) <= layers}
    eps, mass = quadrature(num_particles, layers, num_nodes)
    locs, scales = [], [p[f"log_scale{layer}"].exp() for layer in range(1, layers + 1)]
    z = []
    for layer in range(layers):
        loc = (
            p["slope1"] * torch.tensor(LAYERED_X) + p["loc1"]
            if layer == 0
            else p[f"slope{layer + 1}"] * z[-1] + p[f"loc{layer + 1}"]
        )
        if layer == 2:
            loc = loc + p["skip3"] * z[0]
        locs.append(loc)
        z.append(loc + scales[layer] * eps[:, layer])
    one = torch.ones(())
    log_p = log_normal(LAYERED_X, z[0], one) + log_normal(z[-1], p["top"], one)
    log_p = log_p + sum(log_normal(z[layer], z[layer + 1], one) for layer in range(layers - 1))
    log_q = sum(log_normal(z[layer], locs[layer], scales[layer]) for layer in range(layers))
    return slopes((mass * bound(log_p - log_q)).sum(), p)


def layered_gradients(objective, layers, num=20_000, **options):
    pair = Layered(layers, num, **options)
    objective(pair.model, pair.guide)(torch.full((num,), LAYERED_X)).backward()
    return {name: -parameter.grad for name, parameter in pair.named_parameters()}


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize(
    ("objective", "particles"),
    [
        (ELBO(), 1),
        (ELBO(gradient="path"), 1),
        (ELBO(num_particles=2, gradient="rloo"), 2),
        (IWAE(num_particles=2), 2),
        (IWAE(num_particles=2, gradient="dreg"), 2),
        (IWAE(num_particles=2, gradient="vimco"), 2),
        (IWAE(num_particles=2, resampled=True), 2),
        (IWAE(num_particles=2, gradient="dreg", resampled=True), 2),
        (Renyi(alpha=0.5, num_particles=2, gradient="dreg"), 2),
    ],
    ids=lambda part: f"{type(part).__name__}-{part.gradient}" if hasattr(part, "gradient") else str(part),
)
def test_gradients_of_layered_guides_are_unbiased(objective, particles, layers):
    nodes = {1: 40, 2: 30, 3: 20, 4: 20, 6: 9}[particles * layers]
    exact = layered_slopes(objective.bound, layers, particles, nodes)
    for name, samples in layered_gradients(objective, layers).items():
        assert_mean(samples, exact[name].item(), slack=1e-5)  # of the quadrature


def test_a_layered_guide_whose_lower_path_is_cut_is_biased(monkeypatch):
    # What detaching each site's distribution would do: z1 then reaches the density of z2 no longer.
    monkeypatch.setattr(pathwise, "_slope_through", lambda values, densities, place: torch.zeros_like(values[place]))
    exact = layered_slopes(IWAE().bound, 2, 2, 20)
    found = layered_gradients(IWAE(num_particles=2, gradient="dreg"), 2)
    assert_not_mean(found["loc1"], exact["loc1"].item())
    assert_mean(found["loc2"], exact["loc2"].item(), slack=1e-5)


def test_a_path_that_is_counted_twice_is_biased(monkeypatch):
    monkeypatch.setattr(pathwise, "_held", lambda values: contextlib.nullcontext())
    exact = layered_slopes(IWAE().bound, 3, 2, 9)
    found = layered_gradients(IWAE(num_particles=2, gradient="dreg"), 3, num=200_000)
    assert_not_mean(found["loc1"], exact["loc1"].item())


LAYERED_POSTERIOR = {
    "top": 0.0,
    "slope1": 2 / 3, "loc1": 0.0, "log_scale1": 0.5 * math.log(2 / 3),
    "slope2": 0.5, "loc2": 0.0, "log_scale2": 0.5 * math.log(0.5),
}  # fmt: skip
VANISHING = {
    "ELBO-path": ELBO(num_particles=3, gradient="path"),
    "ELBO-rloo": ELBO(num_particles=3, gradient="rloo"),
    "IWAE-path": IWAE(num_particles=3, gradient="path"),
    "IWAE-dreg": IWAE(num_particles=3, gradient="dreg"),
    "IWAE-vimco": IWAE(num_particles=3, gradient="vimco"),
    "IWAE-resampled-dreg": IWAE(num_particles=3, gradient="dreg", resampled=True),
    "Renyi-dreg": Renyi(alpha=0.5, num_particles=3, gradient="dreg"),
    "MIWAE-dreg": MIWAE(num_groups=2, num_particles=3, gradient="dreg"),
    "CIWAE-dreg": CIWAE(num_particles=3, gradient="dreg"),
    "PIWAE-dreg": PIWAE(num_groups=2, num_particles=3, gradient="dreg"),
    "JVI-dreg": JVI(num_particles=3, gradient="dreg"),
    "CUBO-dreg": CUBO(num_particles=3, gradient="dreg"),
    "RWS-dreg": ReweightedWakeSleep(num_particles=3, gradient="dreg"),
}


@pytest.mark.parametrize("strict", [False, True], ids=["together", "one by one"])
@pytest.mark.parametrize("objective", VANISHING.values(), ids=list(VANISHING))
def test_at_the_exact_posterior_of_a_layered_model_every_draw_of_the_guides_gradient_is_zero(objective, strict):
    for name, samples in layered_gradients(objective, 2, 50, start=LAYERED_POSTERIOR, strict=strict).items():
        if name != "top":
            assert samples.abs().max() < 1e-10


# E2 at its exact posterior, in float32


class Posterior(nn.Module):
    """E2 with a learnable guide that starts at the exact posterior."""

    def __init__(self):
        super().__init__()
        self.problem = pv.problems.linear_gaussian(W=torch.tensor(E2_W, dtype=torch.float64), scale=0.5**0.5)
        exact = self.problem.posterior(torch.eye(5, dtype=torch.float64))
        self.gain = nn.Parameter(exact.mean.clone())
        self.factor = nn.Parameter(torch.linalg.cholesky(self.problem.posterior_covariance))

    def model(self, x):
        return self.problem.model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.MultivariateNormal(x @ self.gain, scale_tril=self.factor.tril()))

    def in_float32(self):
        for name in ("W", "scale", "loc"):
            setattr(self.problem, name, getattr(self.problem, name).float())
        return self.float()


E2_W = [[1.0, 0.8], [0.5, 1.0], [0.4, 1.0], [1.0, 0.2], [0.3, 0.2]]


def guide_gradients(loss, x):
    pair = Posterior().in_float32()
    pyro.clear_param_store()
    loss(pair)(x).backward()
    return torch.cat([pair.gain.grad.flatten(), pair.factor.grad.flatten()]) / len(x)


@pytest.mark.parametrize("objective", [*VANISHING.values(), *ALL.values()], ids=lambda o: f"{type(o).__name__}")
def test_at_the_exact_posterior_every_bound_is_log_p_draw_by_draw(objective):
    pair = Posterior()
    x = pair.problem.sample(7, seed=1)
    with torch.no_grad():
        found = objective(pair.model, pair.guide).estimate(x)
    torch.testing.assert_close(found.bound, pair.problem.log_evidence(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.elbo, pair.problem.log_evidence(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("objective", VANISHING.values(), ids=list(VANISHING))
def test_at_the_exact_posterior_the_guides_gradient_vanishes_and_pyros_does_not(objective):
    x = Posterior().problem.sample(200, seed=0).float()
    size = guide_gradients(lambda pair: objective(pair.model, pair.guide), x).abs().max()
    assert size < 1e-6
    for theirs in (ELBO(), IWAE(num_particles=3)):
        assert guide_gradients(lambda pair, o=theirs: o(pair.model, pair.guide), x).abs().max() > 1e-3


def test_at_the_exact_posterior_pyros_gradient_is_noise():
    one = torch.tensor([[1.0, -0.5, 0.3, 0.8, -1.2]], dtype=torch.float32)

    def trace_elbo(pair):
        return lambda x: Trace_ELBO().differentiable_loss(pair.model, pair.guide, x)

    sizes = [guide_gradients(trace_elbo, one).norm() for _ in range(200)]
    assert torch.stack(sizes).mean() > 1.0
    ours = [guide_gradients(lambda pair: ELBO(gradient="path")(pair.model, pair.guide), one).norm() for _ in range(20)]
    assert torch.stack(ours).max() < 1e-5


# Guides whose density knows its own draws only by memory


class Transformed(Replicates):
    """E1 with the same guide, as a flow: its density is a cache's unless it is asked at another value."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x)), 1.0)
            affine = dist.transforms.AffineTransform(self.loc, self.log_scale.exp())
            pyro.sample("z", dist.TransformedDistribution(base, [affine]))


@pytest.mark.parametrize(
    "objective",
    [
        IWAE(num_particles=2),
        IWAE(num_particles=2, gradient="dreg"),
        IWAE(num_particles=2, gradient="vimco"),
        ReweightedWakeSleep(num_particles=2),
        ReweightedWakeSleep(num_particles=2, insomnia=0.0),
    ],
    ids=["total", "dreg", "vimco", "wake", "sleep"],
)
def test_a_flow_has_the_gradient_of_the_distribution_it_is(objective):
    plain, flow = Replicates(20_000), Transformed(20_000)
    for pair in (plain, flow):
        objective(pair.model, pair.guide)(torch.full((20_000,), E1_X)).backward()
    expected, found = plain.gradients(), flow.gradients()
    for name in E1_START:
        assert_mean(found[name] - expected[name], 0.0, slack=1e-9)


@pytest.mark.parametrize("gradient", ["dreg", "vimco"])
def test_a_flow_that_cannot_be_inverted_is_refused(gradient):
    planar = dist.transforms.Planar(2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("planar", planar)
        with pyro.plate("data", len(x)):
            base = dist.Normal(x, torch.ones(2)).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar]))

    x = torch.zeros(3, 2)
    IWAE(num_particles=2)(model, guide)(x).backward()
    with pytest.raises(PairError, match="'z': TransformedDistribution gives the density of its own draws only"):
        IWAE(num_particles=2, gradient=gradient)(model, guide)(x)


def test_dropout_in_a_layered_guide_is_the_one_that_drew():
    # A second run of the guide would drop other units, and its density would not be that of the draws.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 1))

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x, 1.0))
            pyro.sample("z2", dist.Normal(net(z1[..., None])[..., 0], 1.0))

    x = torch.randn(10)
    values = {}
    for gradient in ("total", "path", "dreg"):
        torch.manual_seed(1)
        values[gradient] = IWAE(num_particles=3, gradient=gradient)(model, guide)(x).item()
    assert values["path"] == values["dreg"] == pytest.approx(values["total"], rel=1e-12)


WITHOUT_WEIGHT = {
    **{f"IWAE-{gradient}": IWAE(num_particles=20, gradient=gradient) for gradient in IWAE.gradients},
    "IWAE-resampled": IWAE(num_particles=20, resampled=True),
    "Renyi": Renyi(alpha=0.5, num_particles=20),
    "Renyi-dreg": Renyi(alpha=0.5, num_particles=20, gradient="dreg"),
    "MIWAE": MIWAE(num_groups=2, num_particles=10, gradient="dreg"),
    "PIWAE": PIWAE(num_groups=2, num_particles=10),
    "CIWAE": CIWAE(beta=0.0, num_particles=20),
    "CUBO": CUBO(num_particles=20),
    "RWS": ReweightedWakeSleep(num_particles=20),
}


@pytest.mark.parametrize("objective", WITHOUT_WEIGHT.values(), ids=list(WITHOUT_WEIGHT))
def test_a_draw_outside_the_support_of_the_model_has_no_weight_and_spoils_nothing(objective):
    loc = nn.Parameter(torch.tensor(0.3))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli((z > -0.5).double()), obs=x)

    def guide(x):
        pyro.param("loc", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.ones(())))

    x = torch.ones(200)
    found = objective.estimate(model, guide, x)
    assert found.bound.isfinite().all()
    assert found.bound.mean().item() == pytest.approx(math.log(0.6914624612740131), abs=0.3)
    (slope,) = torch.autograd.grad(found.bound.mean(), [loc])
    assert slope.isfinite()
    torch.manual_seed(0)
    with_gradient = objective.estimate(model, guide, x).bound
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(objective.estimate(model, guide, x).bound, with_gradient.detach())
    assert TVO(num_particles=20).bound(torch.tensor([[0.0], [-math.inf]])).item() == -math.inf


class Normalised(nn.Module):
    """A decoder whose batch normalisation, in training mode, mixes particles and datapoints."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 4))
        nn.init.normal_(self.decoder[1].weight, std=20.0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_piwae_is_two_bounds_also_where_datapoints_are_mixed():
    torch.manual_seed(0)
    pair, x = Normalised(), torch.bernoulli(torch.full((20, 4), 0.5))

    def slopes_of(objective):
        pair.zero_grad()
        loss = objective(pair.model, pair.guide)
        torch.manual_seed(1)
        loss(x)  # asks whether the networks take particles, with draws of its own
        torch.manual_seed(2)
        pair.zero_grad()
        objective._cache.of = lambda *_: Vectorized(model=True, guide=True)
        loss(x).backward()
        return pair.encoder.weight.grad.clone(), pair.decoder[1].weight.grad.clone()

    found = slopes_of(PIWAE(num_groups=2, num_particles=2))
    torch.testing.assert_close(found[0], slopes_of(MIWAE(num_groups=2, num_particles=2))[0])
    torch.testing.assert_close(found[1], slopes_of(IWAE(num_particles=4))[1])


@pytest.mark.parametrize("objective", VANISHING.values(), ids=list(VANISHING))
def test_data_and_networks_of_different_precision(objective):
    vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,)).float()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(vae.decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(vae.encoder(x.float())[..., 0, :], 1.0).to_event(1))

    loss = objective(model, guide)(torch.randn(3, 4))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(vae.model, vae.guide)(torch.ones(3, 4, dtype=torch.float32)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


def test_leaving_out_in_parts_changes_nothing(monkeypatch):
    log_w = torch.randn(5, 3)
    whole = leave_one_out(IWAE().bound, log_w)
    monkeypatch.setattr("pyro_vae.objectives.gradients._MAX_ENTRIES", 30)
    torch.testing.assert_close(leave_one_out(IWAE().bound, log_w), whole)
    for k in range(5):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        torch.testing.assert_close(whole[k], IWAE().bound(torch.cat([others, others.mean(0, keepdim=True)])))


# Discrete latent variables, by enumeration


PATTERN = [[2.0, -1.0, 0.5], [-1.5, 1.0, 1.0]]


class Binary(nn.Module):
    """Two binary latent units, a linear decoder, and a guide, with parameters for each datapoint."""

    def __init__(self, num, share=False):
        super().__init__()
        lead = () if share else (num,)
        self.bias = nn.Parameter(torch.tensor([0.2, -0.1, 0.3]).expand(*lead, 3).clone())
        self.prior = nn.Parameter(torch.tensor([0.3, -0.2]).expand(*lead, 2).clone())
        self.logits = nn.Parameter(torch.tensor([0.4, -0.6]).expand(*lead, 2).clone())

    def decode(self, z):
        return z @ torch.tensor(PATTERN) + self.bias

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior.expand(len(x), 2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logits.expand(len(x), 2)).to_event(1))


BINARY_X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def binary_log_w():
    """Parameters, and the log-weight and log q of each of the four latent states."""
    one = Binary(1, share=True)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
    log_p = dist.Bernoulli(logits=one.prior).to_event(1).log_prob(states)
    log_p = log_p + dist.Bernoulli(logits=one.decode(states)).to_event(1).log_prob(BINARY_X)
    log_q = dist.Bernoulli(logits=one.logits).to_event(1).log_prob(states)
    return dict(one.named_parameters()), log_p - log_q, log_q


def binary_slopes(bound, num_particles):
    """Of the expectation over all 4^K draws, which is differentiable although no draw is."""
    parameters, log_w, log_q = binary_log_w()
    draws = torch.tensor(list(itertools.product(range(4), repeat=num_particles))).T
    return slopes((log_q[draws].sum(0).exp() * bound(log_w[draws])).sum(), parameters)


DISCRETE = {
    "ELBO-reinforce": (ELBO(gradient="reinforce"), 1),
    "ELBO-reinforce-3": (ELBO(num_particles=3, gradient="reinforce"), 3),
    "ELBO-reinforce_baseline": (ELBO(gradient="reinforce_baseline"), 1),
    "ELBO-rloo": (ELBO(num_particles=3, gradient="rloo"), 3),
    "IWAE-reinforce": (IWAE(num_particles=3, gradient="reinforce"), 3),
    "IWAE-reinforce_baseline": (IWAE(num_particles=3, gradient="reinforce_baseline"), 3),
    "IWAE-vimco": (IWAE(num_particles=3, gradient="vimco"), 3),
    "Renyi-vimco": (Renyi(alpha=0.5, num_particles=3, gradient="vimco"), 3),
    "TVO-vimco": (TVO(num_pieces=3, num_particles=3, gradient="vimco"), 3),
}


def binary_gradients(objective, num=20_000):
    pair = Binary(num)
    objective(pair.model, pair.guide)(BINARY_X.expand(num, 3)).backward()
    return {name: -parameter.grad for name, parameter in pair.named_parameters()}


@pytest.mark.parametrize(("objective", "draws"), DISCRETE.values(), ids=list(DISCRETE))
def test_score_function_gradients_of_discrete_sites_are_unbiased(objective, draws):
    exact = binary_slopes(objective.bound, draws)
    for name, samples in binary_gradients(objective).items():
        assert_mean(samples, exact[name].detach(), slack=1e-12)
    assert_not_mean(binary_gradients(objective)["logits"], torch.zeros(2))


def test_wake_phi_of_discrete_sites_is_unbiased():
    parameters, log_w, log_q = binary_log_w()
    draws = torch.tensor(list(itertools.product(range(4), repeat=3))).T
    weights = torch.softmax(log_w[draws], 0).detach()
    mass = log_q[draws].sum(0).exp().detach()
    (exact,) = torch.autograd.grad((mass * (weights * log_q[draws]).sum(0)).sum(), [parameters["logits"]])
    assert_mean(binary_gradients(ReweightedWakeSleep(num_particles=3))["logits"], exact)


def test_a_baseline_makes_the_gradient_less_noisy():
    noise = {
        objective.gradient: binary_gradients(objective)["logits"].var(0).sum().item()
        for objective in (
            ELBO(num_particles=4, gradient="reinforce"),
            ELBO(num_particles=4, gradient="reinforce_baseline"),
            ELBO(num_particles=4, gradient="rloo"),
        )
    }
    assert max(noise["rloo"], noise["reinforce_baseline"]) < 0.5 * noise["reinforce"]


def test_enumeration_goes_on_working_with_a_pair_that_our_objectives_take_too():
    pair = Binary(5, share=True)
    x = BINARY_X.expand(5, 3)
    exact = binary_slopes(ELBO().bound, 1)

    def model(x):
        pyro.module("pair", pair)
        with pyro.plate("data", len(x)):
            z = [pyro.sample(f"z{n}", dist.Bernoulli(logits=pair.prior[n])) for n in range(2)]
            logits = z[0][..., None] * torch.tensor(PATTERN)[0] + z[1][..., None] * torch.tensor(PATTERN)[1] + pair.bias
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @config_enumerate
    def guide(x):
        pyro.module("pair", pair)
        with pyro.plate("data", len(x)):
            for n in range(2):
                pyro.sample(f"z{n}", dist.Bernoulli(logits=pair.logits[n]))

    TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, guide, x)
    for name, parameter in pair.named_parameters():
        torch.testing.assert_close(-parameter.grad / 5, exact[name])
    many = BINARY_X.expand(20_000, 3)
    pair.zero_grad()
    ELBO(num_particles=2, gradient="rloo")(model, guide)(many).backward()
    for name, parameter in pair.named_parameters():
        torch.testing.assert_close(-parameter.grad / 20_000, exact[name], atol=0.02, rtol=0)


def test_a_guide_of_discrete_and_continuous_sites_is_trained_by_scores():
    mix, shift = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.ones(2))

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(4 * y - 2, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        pyro.param("mix", mix), pyro.param("shift", shift)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=mix * x))
            pyro.sample("z", dist.Normal(x + shift[0] + shift[1] * y, 0.5))

    torch.manual_seed(0)
    x = torch.cat([torch.randn(50) - 2, torch.randn(50) + 2])
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=IWAE(num_particles=8, gradient="vimco"))
    losses = [svi.step(x) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20]) - 20 * 20
    assert mix.item() > 0.3


# Signal and noise against the number of particles (Rainforth et al., 2018)


SNR_X = torch.tensor([1.0, -0.5], dtype=torch.float64)


class Location(nn.Module):
    """z ~ N(t, I), x ~ N(z, I), q = N(f, 2/3 I): parameters for each replicate."""

    def __init__(self, num):
        super().__init__()
        self.t = nn.Parameter(torch.zeros(num, 2))
        self.f = nn.Parameter((SNR_X / 2 + 0.3).expand(num, 2).clone())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.t, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.f, (2 / 3) ** 0.5).to_event(1))


def snr_gradients(gradient, num_particles, num=4000):
    pair = Location(num)
    IWAE(num_particles=num_particles, gradient=gradient)(pair.model, pair.guide)(SNR_X.expand(num, 2)).backward()
    return -pair.t.grad, -pair.f.grad


def test_signal_to_noise_against_the_number_of_particles():
    particles = [8, 32, 128, 512]
    total = [snr_gradients("total", k) for k in particles]
    dreg = [snr_gradients("dreg", k) for k in particles]
    signal = [f.mean(0).abs().mean() for _, f in dreg]
    ratios = {
        "model": [t.mean(0).abs().mean() / t.std(0).mean() for t, _ in total],
        "total": [size / f.std(0).mean() for size, (_, f) in zip(signal, total, strict=True)],
        "dreg": [size / f.std(0).mean() for size, (_, f) in zip(signal, dreg, strict=True)],
    }
    log_k = np.log(particles)
    for name, expected in {"model": 0.5, "total": -0.5, "dreg": 0.5}.items():
        slope = np.polyfit(log_k, np.log([ratio.item() for ratio in ratios[name]]), 1)[0]
        assert slope == pytest.approx(expected, abs=0.1), name
    last = 512 * dreg[-1][1]
    assert_mean(last, torch.full((2,), -0.47659), slack=0.01)  # of order 1 / K


# What it costs


class Counted(nn.Module):
    """A network that counts how often it is run, on how many rows, and how often with a graph."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows, self.with_graph = net, [], []

    def forward(self, x):
        self.rows.append(x.shape[:-1].numel())
        out = self.net(x)
        self.with_graph.append(out.requires_grad)
        return out


def counted_pair():
    encoder, decoder = Counted(nn.Linear(4, 4)), Counted(nn.Linear(2, 4))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, encoder, decoder


@pytest.mark.parametrize("gradient", ["total", "path", "dreg", "vimco", "reinforce"])
def test_one_pass_of_each_network_whatever_the_number_of_particles(gradient):
    model, guide, encoder, decoder = counted_pair()
    loss, x = IWAE(num_particles=10, gradient=gradient)(model, guide), torch.ones(3, 4)
    for _ in range(8):  # calls 1, 2, 4 and 8 also ask whether the networks take particles
        loss(x)
    for net in (encoder, decoder):
        net.rows.clear(), net.with_graph.clear()
    loss(x).backward()
    assert encoder.rows == [3]
    assert decoder.rows == [30]


def test_resampled_runs_all_particles_without_a_graph_and_one_with():
    model, guide, encoder, decoder = counted_pair()
    loss, x = IWAE(num_particles=10, gradient="dreg", resampled=True)(model, guide), torch.ones(3, 4)
    for _ in range(8):
        loss(x)
    for net in (encoder, decoder):
        net.rows.clear(), net.with_graph.clear()
    loss(x).backward()
    assert encoder.rows == [3]
    assert decoder.rows == [30, 3]
    assert decoder.with_graph == [False, True]


# E5 and E6 for every member


@pytest.mark.parametrize("objective", ALL.values(), ids=list(ALL))
def test_e5_no_bound_is_above_log_p_of_a_network(objective):
    vae = tanh_vae()
    with torch.no_grad():
        bound = objective(vae.model, vae.guide).bound(E5_X.expand(5000, 4))
    mean, stderr = bound.mean().item(), bound.std().item() / math.sqrt(5000)
    if objective.side == "lower":
        assert E5_ELBO - 5 * stderr <= mean <= E5_LOG_P + 5 * stderr
        assert_not_mean(bound, E5_LOG_P + 0.05)
    else:
        assert mean == pytest.approx(E5_LOG_P, abs=0.2)


@pytest.mark.parametrize("objective", ALL.values(), ids=list(ALL))
def test_e6_a_minibatch_is_unbiased_for_the_whole(objective):
    x = E6_X.repeat(20)
    whole, part = Scaled(), Scaled(subsample_size=20)
    found = [
        objective.loss(part.model, part.guide, x) - objective.loss(whole.model, whole.guide, x) for _ in range(200)
    ]
    assert_mean(torch.tensor(found), 0.0)
    scaled = [objective.loss(*scaled_pair(10.0), x) - objective.loss(whole.model, whole.guide, x) for _ in range(200)]
    assert_not_mean(torch.tensor(scaled), 0.0)
    assert_mean(torch.tensor(scaled), 9 * objective.loss(whole.model, whole.guide, E6_X.repeat(2000)) / 100, slack=5.0)
