"""A mode that no draw has met: draws from the prior meet it, and leave alone what is right."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import ais, importance, jackknife, psis, recommend, smc
from pyro_vae.evidence.prior_check import prior_check
from pyro_vae.pairs.pair import Pair
from tests.ops.test_verdicts import three_latents
from tests.test_exams import linear

pytestmark = pytest.mark.usefixtures("float64")

FAR = 1.5
ESTIMATORS = {
    "importance": lambda *pair: importance(*pair, num_particles=1000),
    "refined": lambda *pair: importance(*pair, num_particles=1000, proposal="refined"),
    "psis": lambda *pair: psis(*pair, num_particles=1000),
    "jackknife": lambda *pair: jackknife(*pair, num_particles=1000),
    "ais": lambda *pair: ais(*pair, num_temperatures=20),
    "smc": lambda *pair: smc(*pair, num_temperatures=5),
}


def two_modes(dim=1):
    """|z_1| is seen with little noise, so that both signs are possible; the guide knows of one."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0].abs(), 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.cat([x[:, None], torch.zeros(len(x), dim - 1)], 1)
            scale = torch.tensor([0.1] + [1.0] * (dim - 1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide, torch.full((30,), FAR)


def exact():
    """Both signs: x is the absolute value of a normal variable, with noise."""
    z = torch.linspace(-6, 6, 200_001)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.abs(), 0.1).log_prob(torch.tensor(FAR))
    return (log_p.logsumexp(0) + math.log(12 / 200_000)).item()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_mode_that_no_draw_has_met_is_overlooked(name):
    model, guide, x = two_modes()
    found = ESTIMATORS[name](model, guide, x)
    torch.testing.assert_close(found.value.mean().item(), exact() - math.log(2), rtol=0, atol=0.05)
    assert found.share("unreliable") == 1
    assert found.reason[0].startswith("draws from the prior find 0.")


@pytest.mark.parametrize("dim", [10, 11])
def test_up_to_ten_dimensions(dim):
    model, guide, x = two_modes(dim)
    found = importance(model, guide, x, num_particles=3000)
    assert (found.share("unreliable") == 1) == (dim <= 10)


@pytest.mark.parametrize("inflate", [1.0, 1.2, 2.0])
@pytest.mark.parametrize("problem", [linear, three_latents])
def test_what_is_right_stays_ok(problem, inflate):
    problem = problem()
    x = problem.sample(500, seed=0)
    found = importance(problem.model, problem.guide(inflate=inflate), x, num_particles=1000)
    assert found.share("ok") == 1


@pytest.mark.parametrize("mass", [0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
def test_hits_by_luck_are_not_clearly_more(mass):
    """Weights of 1 / share for a share of the prior draws, of which there are ``mass`` on average: by no number of them
    is a right value called wrong in more than one of a thousand."""
    num, share = 1000, mass / 1000
    hits = torch.poisson(torch.full((100_000,), mass), generator=torch.Generator().manual_seed(0))
    more = (hits / mass).log()
    stderr = (1 / hits - 1 / num).clamp(min=0).sqrt()
    assert ((hits > 0) & (more > 4 * stderr + 3 / hits)).double().mean() < 0.001
    assert share < 1


def test_the_numbers_are_those_without_it(request):
    problem = linear()
    x = problem.sample(20, seed=0)
    found = importance(problem.model, problem.guide(inflate=1.3), x, num_particles=100, seed=3)
    request.getfixturevalue("first_opinion")
    alone = importance(problem.model, problem.guide(inflate=1.3), x, num_particles=100, seed=3)
    assert torch.equal(found.value, alone.value)
    assert torch.equal(found.num_evaluations, alone.num_evaluations)
    assert np.array_equal(found.verdict, alone.verdict)


def test_a_pair_that_knows_its_datapoints_gets_none():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.linspace(-1, 1, len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1))

    found = importance(model, guide, torch.full((30,), FAR), num_particles=1000)
    assert found.share("ok") == 1


def test_it_does_not_depend_on_blocks():
    model, guide, x = two_modes()
    found = importance(model, guide, x, num_particles=300)
    whole, pieces = (prior_check(found, Pair.of(model, guide, x), seed=0, max_bytes=size) for size in (2**26, 2**12))
    assert np.array_equal(whole.verdict, pieces.verdict)


def test_a_recommendation_hears_of_it():
    model, guide, x = two_modes(3)
    assert recommend(model, guide, x).estimator == "ais"


def test_a_trained_pair_stays_as_it_is():
    torch.set_default_dtype(torch.float32)
    vae = pv.presets.mlp_vae(data_shape=(8,), latent_dim=3, hidden=(16,))
    x = (torch.rand(12, 8) < 0.3).float()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    importance(vae.model, vae.guide, x, num_particles=100)
    assert vae.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not list(pyro.get_param_store().keys())
