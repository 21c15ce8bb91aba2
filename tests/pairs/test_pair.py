"""A pair as an object: what can only be found out by running it is found out once, and holds for its parts."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.pairs import pair as module
from pyro_vae.pairs.pair import Pair


class Foreign(nn.Module):
    """A pair that the library knows nothing of; it counts its runs."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5))
        self.encoder = nn.Linear(5, 4)
        self.runs = {"model": 0, "guide": 0}

    def model(self, x):
        self.runs["model"] += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        self.runs["guide"] += 1
        params = self.encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(params[..., :2], params[..., 2:].exp()).to_event(1))


def data(num):
    return torch.bernoulli(torch.full((num, 5), 0.5))


@pytest.fixture
def asked(monkeypatch):
    """How often each question was put to a pair by running it."""
    counts = {}
    for name in ("rows_are_independent", "takes_particles", "measured"):
        ask = getattr(module, name)

        def counted(*args, _name=name, _ask=ask, **kwargs):
            counts[_name] = counts.get(_name, 0) + 1
            return _ask(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return counts


ONCE = {"rows_are_independent": 1, "takes_particles": 1, "measured": 1}
CALLS = {
    "importance": lambda pair, x: pv.evidence.importance(pair.model, pair.guide, x, num_particles=100),
    "psis, refined": lambda pair, x: pv.evidence.psis(pair.model, pair.guide, x, num_particles=100, proposal="refined"),
    "ais": lambda pair, x: pv.evidence.ais(pair.model, pair.guide, x, num_temperatures=3),
    "grid": lambda pair, x: pv.evidence.quadrature(pair.model, pair.guide, x, tolerance=1e-2),
    "evaluate": lambda pair, x: pv.evaluate(pair, x, estimator="is", num_particles=100),
    "refine": lambda pair, x: pv.refine(pair.model, pair.guide, x, num_particles=100, num_draws=10),
    "predict": lambda pair, x: pv.predict(pair.model, pair.guide, x, lambda z: z["z"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_call_asks_a_foreign_pair_once(asked, call):
    CALLS[call](Foreign(), data(30))
    chains = call in ("ais", "refine")  # one row alone shows what a chain takes
    assert asked == ONCE | ({"takes_particles": 2} if chains else {})


def test_one_importance_call_runs_a_foreign_model_this_often():
    pair = Foreign()
    pv.evidence.importance(pair.model, pair.guide, data(30), num_particles=100)
    rows, particles, memory, weights, prior_check = 3, 3, 1, 1, 6
    assert pair.runs["model"] == rows + particles + memory + weights + prior_check


def test_a_second_block_of_another_size_is_asked_about_particles_again(asked):
    pair = Foreign()
    pv.evidence.importance(pair.model, pair.guide, data(300), num_particles=10)  # blocks of 256 and 44 rows
    assert asked == ONCE | {"takes_particles": 2}


def test_a_pair_in_the_place_of_data_is_not_asked_again(asked):
    foreign = Foreign()
    pair = Pair.of(foreign.model, foreign.guide, data(30))
    first = pv.evidence.importance(foreign.model, foreign.guide, pair, num_particles=100)
    again = pv.evidence.importance(foreign.model, foreign.guide, pair.x, num_particles=100)
    other = pv.evidence.importance(foreign.model, foreign.guide, pair, num_particles=100)
    assert asked == dict.fromkeys(ONCE, 2)
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.value, other.value)


def test_rows_are_cut_into_blocks_that_fit():
    foreign = Foreign()
    pair = Pair.of(foreign.model, foreign.guide, data(10))
    size = pair.footprint.bytes
    assert size == 4 * 16  # of the hidden layer
    assert pair.capacity(8 * size * 12) == 12
    spans, parts, most = zip(*pair.blocks(8 * size * 12, num_particles=3), strict=True)
    assert [(span.start, span.stop) for span in spans] == [(0, 4), (4, 8), (8, 10)]
    assert torch.equal(torch.cat([part.x for part in parts]), pair.x)
    assert most == (3, 3, 6)
    assert [len(part) for part in pair.split(7)] == [7, 3]


def test_rows_that_depend_on_each_other_stay_together():
    problem = pv.problems.linear_gaussian(W=[[1.0]], scale=1.0)
    x = problem.sample(6, seed=0)
    loc = problem.posterior(x).mean

    def guide(x):
        with pyro.plate("data", len(x)) as rows:
            pyro.sample("z", dist.Normal(loc[rows], 0.7).to_event(1))

    pair = Pair.of(problem.model, guide, x)
    assert not pair.independent_rows
    ((span, whole, most),) = pair.blocks(1, num_particles=100)
    assert (span, whole is pair, most) == (slice(0, 6), True, 1)
    assert pair.split(2) == [pair]
    assert pair.first(1) is pair


def test_the_door_checks_data_and_a_call_does_not():
    foreign, x = Foreign(), torch.tensor([[torch.nan] * 5])
    with pytest.raises(DataError, match="non-finite"):
        Pair.of(foreign.model, foreign.guide, x)
    assert Pair(foreign.model, foreign.guide, (x,), {}).x is x
