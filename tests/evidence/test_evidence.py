"""Estimators of log p(x): right on average, honest about their error, and without side effects."""

import functools
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError, ShapeError
from pyro_vae.evidence import elbo, importance
from pyro_vae.pairs.pair import Pair
from pyro_vae.pairs.particles import particle_blocks
from tests.objectives.test_objectives import (
    conv,
    hand_written,
    perceptron,
    pixels,
    seeded,
    standard_normal,
    subsampled,
    two_layer,
)
from tests.statistics import assert_mean, assert_not_mean
from tests.test_purity import python

estimators = pytest.mark.parametrize("estimate", [elbo, importance])


def linear():
    W = torch.tensor([[1.0, 0.8], [0.5, 1.0], [0.4, 1.0], [1.0, 0.2], [0.3, 0.2]], dtype=torch.float64)
    return pv.problems.linear_gaussian(W=W, scale=0.5**0.5)


def small_vae():
    return pv.presets.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))


def zscores(found, exact):
    return ((found.value - exact) / found.stderr).abs()


# Values


def test_importance_meets_the_closed_form():
    problem = linear()
    x = problem.sample(100, seed=0)
    found = importance(problem.model, problem.guide(inflate=1.2), x, num_particles=2000)
    exact = problem.log_evidence(x)
    assert found.value.shape == found.stderr.shape == found.ess.shape == (100,)
    assert found.value.dtype == torch.float64
    assert found.side == "lower"
    assert (found.num_particles == 2000).all()
    assert zscores(found, exact).max() < 5
    assert zscores(found, exact.roll(1)).max() > 100  # the datapoints differ by far more than the errors
    # chi2 of a Gaussian against itself, widened by c in d dimensions: (c^4 / (2 c^2 - 1))^(d / 2) - 1.
    chi2 = 1.2**4 / (2 * 1.2**2 - 1) - 1
    assert_mean(found.value - exact, -chi2 / 2 / 2000, sd=math.sqrt(chi2 / 2000))
    assert_mean(found.ess / 2000, 1 / (1 + chi2))
    assert_mean(found.stderr, math.sqrt(chi2 / 2000))


def test_importance_is_the_iwae_bound_when_particles_are_few():
    # At K = 2 the bound is far from log p(x), and `side` says on which side.
    problem = pv.problems.linear_gaussian(W=torch.tensor([[1.0]], dtype=torch.float64), scale=0.5**0.5)
    guide = problem.guide(shift=0.6 - 1.3 / 1.5, scale=[0.5**0.5])
    x = torch.full((20_000, 1), 1.3, dtype=torch.float64)
    found = importance(problem.model, guide, x, num_particles=2)
    assert_mean(found.value, -1.7429762143)
    assert_not_mean(found.value, -1.6850044206)
    found = elbo(problem.model, guide, x, num_particles=2)
    assert_mean(found.value, -1.8389385332)
    assert_not_mean(found.value, -1.7429762143)


def test_elbo_meets_the_closed_form():
    problem = linear()
    x = problem.sample(100, seed=1)
    found = elbo(problem.model, problem.guide(mean_field=True), x, num_particles=2000)
    exact = problem.log_evidence(x)
    assert found.side == "lower"
    assert zscores(found, exact - 0.2534841692).max() < 5
    assert (found.ess == 2000).all()
    assert_mean(found.value - exact, -0.2534841692)


def test_intervals_of_many_datapoints_cover():
    problem = linear()
    x = problem.sample(500, seed=2)
    found = importance(problem.model, problem.guide(inflate=1.2), x, num_particles=1000)
    covered = (zscores(found, problem.log_evidence(x)) < 1.96).double().mean()
    assert 0.92 <= covered <= 0.98
    found = elbo(problem.model, problem.guide(mean_field=True), x, num_particles=1000)
    covered = (zscores(found, problem.log_evidence(x) - 0.2534841692) < 1.96).double().mean()
    assert 0.92 <= covered <= 0.98


@estimators
def test_exact_guide_leaves_neither_gap_nor_error(estimate):
    problem = linear()
    x = problem.sample(9, seed=3)
    found = estimate(problem.model, problem.guide(), x, num_particles=10)
    torch.testing.assert_close(found.value, problem.log_evidence(x), atol=1e-10, rtol=0)
    assert found.stderr.max() < 1e-6


@estimators
def test_two_errors_are_kept_apart(estimate):
    problem = linear()
    x = problem.sample(50, seed=4)
    found = estimate(problem.model, problem.guide(inflate=1.2), x, num_particles=200)
    assert found.mean == pytest.approx(found.value.sum().item() / 50)
    assert found.monte_carlo_error == pytest.approx(math.sqrt((found.stderr**2).sum().item()) / 50)
    assert found.test_set_error == pytest.approx(found.value.std().item() / math.sqrt(50))
    one = estimate(problem.model, problem.guide(inflate=1.2), x[:1], num_particles=200)
    assert math.isnan(one.test_set_error)
    assert one.monte_carlo_error > 0


# Seeds


@estimators
def test_the_draws_depend_on_the_seed_alone(estimate):
    vae, x = small_vae(), pixels(5, 8)
    found = []
    for caller_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(caller_seed)
        found.append(estimate(vae.model, vae.guide, x, num_particles=20, seed=seed).value)
    assert torch.equal(found[0], found[1])
    assert (found[0] != found[2]).all()
    again = pixels(1, 8).expand(5, 8)
    repeats = estimate(vae.model, vae.guide, again, num_particles=20).value
    assert len(set(repeats.tolist())) == 5  # the same datapoint twice gets draws of its own


# Blocks


@estimators
@pytest.mark.parametrize("max_bytes", [1, 2_000, 20_000, 2**26])
def test_blocks_keep_the_order_of_rows(estimate, max_bytes):
    problem = linear()
    x = problem.sample(7, seed=5)
    found = estimate(problem.model, problem.guide(), x, num_particles=13, max_bytes=max_bytes)
    torch.testing.assert_close(found.value, problem.log_evidence(x), atol=1e-10, rtol=0)
    assert (found.num_particles == 13).all()
    assert (found.ess - 13).abs().max() < 1e-6


def test_more_rows_than_a_block_holds():
    problem = linear()
    x = problem.sample(600, seed=6)
    found = importance(problem.model, problem.guide(), x, num_particles=2)
    torch.testing.assert_close(found.value, problem.log_evidence(x), atol=1e-10, rtol=0)


@estimators
def test_the_size_of_blocks_changes_the_draws_and_nothing_else(estimate):
    problem = linear()
    x = problem.sample(40, seed=7)
    guide = problem.guide(mean_field=True, inflate=1.5)
    whole, parts = (
        estimate(problem.model, guide, x, num_particles=1000, max_bytes=size) for size in (2**26, 5 * 8 * 8 * 150)
    )
    assert (whole.value != parts.value).any()
    assert ((whole.value - parts.value).abs() <= 5 * torch.hypot(whole.stderr, parts.stderr)).all()
    torch.testing.assert_close(whole.stderr, parts.stderr, rtol=0.5, atol=0)
    torch.testing.assert_close(whole.ess, parts.ess, rtol=0.3, atol=0)


def blocks(model, guide, x, **options):
    with torch.no_grad():
        return list(particle_blocks(Pair.of(model, guide, x), **options))


@pytest.mark.parametrize("build", [hand_written, two_layer, conv])
@pytest.mark.parametrize("num_particles", [1, 3, 50])
@pytest.mark.parametrize("max_bytes", [1, 3_000, 30_000, 2**26])
def test_blocks_cover_every_particle_of_every_row_once(build, num_particles, max_bytes):
    model, guide, _, x = build(num=5)
    count = torch.zeros(5, dtype=torch.long)
    starts = []
    for rows, log_w in blocks(model, guide, x, num_particles=num_particles, max_bytes=max_bytes):
        assert log_w.shape[1] == rows.stop - rows.start
        assert log_w.numel() * x[0].numel() * 4 <= max(max_bytes, x[0].numel() * 4)
        count[rows] += len(log_w)
        starts.append(rows.start)
    assert (count == num_particles).all()
    assert starts == sorted(starts)


def test_memory_is_flat_in_the_number_of_particles():
    vae, x = small_vae(), pixels(4, 8)
    decoded = []
    hook = vae.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output.numel()))
    largest, count = [], []
    for num_particles in (1000, 100_000):
        decoded.clear()
        found = blocks(vae.model, vae.guide, x, num_particles=num_particles, max_bytes=2**19)
        largest.append((max(log_w.numel() for _, log_w in found), max(decoded)))
        count.append(len(found))
    hook.remove()
    assert largest[0] == largest[1]
    assert largest[1][0] <= 2**19 // 4
    assert count[1] >= 90 * count[0] - 1 > 1


PEAKS = """
from pathlib import Path
import torch
import pyro_vae as pv
torch.set_num_threads(1)
vae = pv.presets.mlp_vae(data_shape=(16,), latent_dim=4, hidden=(64,))
x = torch.bernoulli(torch.full((4, 16), 0.5))
def look(num_particles, max_bytes=2**21, **options):
    pv.evidence.importance(vae.model, vae.guide, x, num_particles=num_particles, max_bytes=max_bytes, **options)
def peak(num_particles):
    for proposal in ("guide", "defensive", "refined"):
        look(num_particles, proposal=proposal)
    look(num_particles, target_stderr=1e-4)
    return so_far()
def so_far():  # of this process alone, where ru_maxrss starts at that of its parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
few, many = peak(1000), peak(100_000)
look(100_000, max_bytes=2**40)
print(few, many, so_far())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the largest size of a process is read from /proc")
def test_the_memory_of_a_process_is_flat_too_unless_all_of_it_may_be_used_at_once():
    few, many, at_once = map(int, python(PEAKS).split())
    assert many < 1.1 * few < at_once


# Cost


@pytest.mark.usefixtures("first_opinion")
@pytest.mark.parametrize(("num_particles", "max_bytes"), [(2, 2**10), (50, 2**12), (3000, 2**17)])
def test_the_encoder_sees_each_datapoint_once(num_particles, max_bytes):
    vae, x = small_vae(), pixels(11, 8)
    seen = []
    vae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    importance(vae.model, vae.guide, x, num_particles=num_particles, max_bytes=max_bytes)
    assert torch.equal(torch.cat(seen)[-len(x) :], x)
    assert len(torch.cat(seen)) - len(x) <= 3 * len(x) + 3  # a few, at most 64, are tried out first, whatever K is
    seen.clear()
    pv.draw_particles(vae.model, vae.guide, x, num_particles=num_particles)
    pv.objectives.IWAE(num_particles=num_particles).loss(vae.model, vae.guide, x)
    assert len(torch.cat(seen)) == 2 * len(x)


@pytest.mark.usefixtures("first_opinion")
def test_the_decoder_sees_each_particle_once():
    vae, x = small_vae(), pixels(11, 8)
    seen = []
    vae.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel() // 2))
    importance(vae.model, vae.guide, x, num_particles=50, max_bytes=2**12)
    assert 11 * 50 <= sum(seen) <= 11 * 50 + 11 + 3  # a few are tried out first
    assert len(seen) > 1


# Nothing is changed


class Normalised(nn.Module):
    """A VAE with layers that learn while they are looked at, unless they are told not to."""

    def __init__(self):
        super().__init__()
        self.vae = pv.VAE(
            encoder=nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)),
            decoder=nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 8)),
            prior=pv.priors.StandardNormal(2),
            likelihood=pv.likelihoods.Bernoulli((8,)),
        )
        self.model, self.guide = self.vae.model, self.vae.guide


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_unchanged(module, before):
    changed = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
    assert not changed


@estimators
def test_evaluation_changes_no_parameter_no_generator_and_not_the_store(estimate):
    model, guide, modules, x = hand_written()
    loc = pyro.param("loc", torch.ones(3))  # of some other model
    before, generator, numpy_generator = state(modules), torch.get_rng_state(), np.random.get_state()[1].copy()
    estimate(model, guide, x, num_particles=5)
    assert_unchanged(modules, before)
    assert all(parameter.grad is None for parameter in modules.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == numpy_generator).all()
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert pyro.param("loc") is loc


def test_evaluation_after_svi_leaves_the_trained_parameters_and_the_optimiser():
    vae, x = small_vae(), pixels(20, 8)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=pv.objectives.ELBO())
    svi.step(x)
    before, store = state(vae), list(pyro.get_param_store().keys())
    momentum = torch.cat([s["exp_avg"].flatten() for o in svi.optim.optim_objs.values() for s in o.state.values()])
    importance(vae.model, vae.guide, x, num_particles=5)
    assert_unchanged(vae, before)
    assert list(pyro.get_param_store().keys()) == store
    after = torch.cat([s["exp_avg"].flatten() for o in svi.optim.optim_objs.values() for s in o.state.values()])
    assert torch.equal(after, momentum)


@estimators
def test_evaluation_changes_no_running_statistics(estimate):
    # A test set that moves the running mean of a BatchNorm has been trained on.
    pair, x = Normalised().train(), pixels(16, 8)
    before = state(pair)
    estimate(pair.model, pair.guide, x, num_particles=5)
    assert_unchanged(pair, before)
    assert pair.vae.training
    assert all(module.training for module in pair.modules())


def test_the_bound_of_a_datapoint_does_not_depend_on_its_neighbours():
    # In training mode BatchNorm makes q(z | x) and p(x | z) functions of the rest of the batch.
    pair, x = Normalised().train(), pixels(16, 8)
    pair.vae.encoder[3].weight.data.mul_(3)
    alone = elbo(pair.model, pair.guide, x[:1].expand(3, 8), num_particles=2000)
    among = elbo(pair.model, pair.guide, x, num_particles=2000)
    assert (alone.value - among.value[0]).abs().max() <= 5 * math.hypot(alone.stderr.max(), among.stderr[0])


# Input


def arrays():
    x = (np.arange(40).reshape(5, 8) % 3 == 0).astype(np.float64)
    return {
        "float64 array": x,
        "float32 array": x.astype(np.float32),
        "uint8 array": x.astype(np.uint8),
        "bool array": x.astype(bool),
        "list": x.tolist(),
        "float64 tensor": torch.tensor(x),
        "uint8 tensor": torch.tensor(x, dtype=torch.uint8),
        "bool tensor": torch.tensor(x, dtype=torch.bool),
        "strided tensor": torch.tensor(x.T.copy()).T,
        "tensor that requires grad": torch.tensor(x, requires_grad=True),
    }


@pytest.mark.parametrize("kind", arrays())
def test_any_array_is_data(kind):
    vae, x = small_vae(), arrays()
    found = importance(vae.model, vae.guide, x[kind], num_particles=50, max_bytes=2**12)
    expected = importance(vae.model, vae.guide, torch.tensor(x["float32 array"]), num_particles=50, max_bytes=2**12)
    torch.testing.assert_close(found.value, expected.value)
    assert found.value.dtype == torch.float64
    assert not found.value.requires_grad


@estimators
def test_one_draw_has_no_error_bar(estimate):
    problem = linear()
    with pytest.raises(ConfigError, match="num_particles=1: expected at least 2"):
        estimate(problem.model, problem.guide(), problem.sample(2, seed=0), num_particles=1)


@estimators
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 5), r"at least one datapoint, shape \(n, ...\), got shape \(0, 5\)"),
        (torch.tensor(1.0), "at least one datapoint"),
        (torch.tensor([[0.0] * 5, [0, 0, math.nan, 0, math.inf]]), r"2 non-finite.*\(1, 2\)"),
        (np.array([["a"] * 5]), "expected an array of numbers"),
    ],
    ids=["empty", "scalar", "nan", "text"],
)
def test_unusable_data_are_refused(estimate, x, message):
    problem = linear()  # which would take anything: the estimator itself has to look
    with pytest.raises(DataError, match=message):
        estimate(problem.model, problem.guide(), x, num_particles=5)


@estimators
def test_a_plate_that_subsamples_is_refused(estimate):
    model, guide, _, x = subsampled()
    with pytest.raises(ShapeError, match="drew 16 latent values for 32 datapoints"):
        estimate(model, guide, x, num_particles=5)


@estimators
def test_what_is_no_pair_is_refused(estimate):
    problem = linear()
    x = problem.sample(3, seed=0)
    with pytest.raises(PairError, match="no latent site"):
        estimate(problem.model, lambda x: None, x, num_particles=5)


# Pairs that are not ours


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("build", [hand_written, conv, two_layer, functools.partial(two_layer, top_down_guide=False)])
def test_foreign_pairs_get_the_evidence_of_their_particles(build, num):
    model, guide, _, x = build(num=num)
    found = importance(model, guide, x, num_particles=200, max_bytes=2**16)
    assert found.value.shape == (num,)
    log_w = seeded(lambda: pv.draw_particles(model, guide, x, num_particles=200).log_w).detach().double()
    value, stderr = pv.weights.log_mean_exp(log_w), pv.weights.log_mean_exp_stderr(log_w)
    assert ((found.value - value).abs() <= 5 * torch.hypot(found.stderr, stderr)).all()
    found = elbo(model, guide, x, num_particles=200, max_bytes=2**16)
    error = torch.hypot(found.stderr, log_w.std(0) / math.sqrt(200))
    assert ((found.value - log_w.mean(0)).abs() <= 5 * error).all()


@pytest.mark.parametrize("max_bytes", [2**11, 2**14, 2**26])
def test_a_two_layer_pair_meets_its_closed_form(max_bytes):
    # x = z1 + noise, z1 = z2 + noise, z2 standard normal: x ~ N(0, 3), with the guide q(z1 | x) q(z2 | z1) too wide.
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard_normal(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, 1.2 * (2 / 3) ** 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(z1 / 2, 1.2 * 0.5**0.5).to_event(1))

    x = torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
    exact = torch.distributions.Normal(0.0, torch.tensor(3.0, dtype=torch.float64).sqrt()).log_prob(x[:, 0])
    found = importance(model, guide, x, num_particles=400, max_bytes=max_bytes)
    assert zscores(found, exact).max() < 5
    assert_mean(found.value - exact, -(found.stderr**2).mean() / 2)


def test_a_pair_with_plain_parameters_is_evaluated_at_their_trained_values():
    decoder = perceptron(2, 8)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = pixels(5, 8)
    near = elbo(model, guide, x, num_particles=200)
    pyro.get_param_store()["loc"] = torch.tensor([30.0, 0.0])
    far = elbo(model, guide, x, num_particles=200)
    assert (far.value < near.value - 300).all()  # KL(N(30, 1) || N(0, 1)) = 450
    assert pyro.param("loc").tolist() == [30.0, 0.0]
