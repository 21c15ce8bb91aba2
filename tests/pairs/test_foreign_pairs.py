"""Pairs as Pyro's users write them, each of which has at some time been given a wrong number or no way out."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.optim import Adam
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import (
    ConfigError,
    DataError,
    NonFiniteLossError,
    PairError,
    ShapeError,
    StaleParamStoreError,
    require_count,
)
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.ops.seeds import seeded
from pyro_vae.pairs.modules import modules_behind
from pyro_vae.training.checkpoint import read, write
from tests.looks import LOOKS, every_look
from tests.statistics import assert_mean

Normal = dist.Normal


def standard_normal(size):
    return Normal(torch.zeros(size), 1.0).to_event(1)


def loop(model, guide, x, num_particles):
    """Log-weights by stock Pyro, one particle at a time."""
    rows = []
    for _ in range(num_particles):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
        for found in (p, q):
            found.compute_log_prob()
        terms = [(sign, found.nodes[name]["log_prob"]) for sign, found in ((1, p), (-1, q)) for name in found.nodes
                 if found.nodes[name]["type"] == "sample" and "log_prob" in found.nodes[name]]  # fmt: skip
        rows.append(sum(sign * term for sign, term in terms if term.shape == (len(x),)))
    return torch.stack(rows)


# --- Whether networks take particles


class FirstColumn(nn.Module):
    """A pair whose decoder is written for ``[n, d]``: of three dimensions, ``[:, 0]`` takes another one."""

    def __init__(self, scale=0.2):
        super().__init__()
        self.scale = scale
        self.encoder, self.decoder = nn.Linear(1, 2), nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(1))
            pyro.sample("x", Normal(self.decoder(z)[:, 0], self.scale), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x[:, None]).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))


def test_a_head_that_starts_at_zero_does_not_hide_what_it_does_with_particles():
    pair, x = FirstColumn(), torch.randn(64)
    nn.init.zeros_(pair.decoder[2].weight)
    nn.init.zeros_(pair.decoder[2].bias)
    run = {"objective": IWAE(num_particles=5), "num_epochs": 100, "batch_size": 64, "learning_rate": 0.01}
    reported = pv.fit(pair, x, progress=False, **run).epochs[-1].train_bound
    bound = pv.weights.log_mean_exp(pv.draw_particles(pair.model, pair.guide, x, num_particles=5).log_w).mean().item()
    assert reported == pytest.approx(bound, abs=0.3)  # datapoint 0's image for all of them would be a nat below


class Normed(nn.Module):
    """As many features as datapoints: a batch normalisation over the wrong dimension raises nothing."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))


def test_a_fresh_batch_normalisation_does_not_either():
    pair, x, objective = Normed(), torch.randn(16, 4), IWAE(num_particles=3)
    loss = objective(pair.model, pair.guide)
    for _ in range(40):
        loss(x)
    z = torch.cat([poutine.trace(pair.guide).get_trace(x).nodes["z"]["value"] for _ in range(1000)])
    assert torch.allclose(pair.decoder[1].running_var, pair.decoder[0](z).var(0), rtol=0.5, atol=0.05)


@pytest.mark.parametrize("keyword", [False, True])
def test_a_verdict_on_one_datapoint_is_none_on_more(keyword):
    pair, x, objective = FirstColumn(scale=1.0), torch.linspace(-2, 2, 10), IWAE(num_particles=2000)
    with torch.no_grad():
        pair.decoder[2].weight.mul_(4)
        for parameter in pair.encoder.parameters():
            parameter.zero_()
        pair.encoder.weight[0] = 0.8  # a guide as wide as the prior, so that no weight is large
    given = (lambda x: ((), {"x": x})) if keyword else (lambda x: ((x,), {}))
    for rows in (x[:1], x):
        args, kwargs = given(rows)
        found = objective.loss(pair.model, pair.guide, *args, **kwargs)
    log_w = loop(pair.model, pair.guide, x, 2000)
    error = 2**0.5 * pv.weights.log_mean_exp_stderr(log_w).norm().item()  # both are estimates
    assert -found == pytest.approx(pv.weights.log_mean_exp(log_w).sum().item(), abs=5 * error)
    assert error < 2  # the verdict on one datapoint would cost 40 nats


class Mixed(pv.VAE):
    """A subclass of a VAE, whose own layer is written for ``[n, d]``."""

    def __init__(self):
        like = pv.presets.mlp_vae(data_shape=(4,), latent_dim=3, hidden=(8,))
        super().__init__(encoder=like.encoder, decoder=like.decoder, prior=like.prior, likelihood=like.likelihood)
        self.mix = nn.Linear(3, 3)
        with torch.no_grad():
            self.mix.weight.mul_(5)
            self.decoder.layers[-1].weight.mul_(20)

    def decode(self, z):
        return super().decode(torch.softmax(self.mix(z), 1))


def test_a_subclass_of_a_vae_is_asked_like_anybody_else():
    vae, x = Mixed(), torch.bernoulli(torch.full((20, 4), 0.4))
    found = pv.evidence.elbo(vae.model, vae.guide, x, num_particles=2000)
    assert_mean(loop(vae.model, vae.guide, x, 1000).mean(1) - found.mean, 0.0)


def test_a_subclass_of_a_vae_is_evaluated_through_its_own_decoder():
    class Squared(pv.VAE):
        def decode(self, z):
            return super().decode(torch.cat([z, z**2], -1))

    vae = Squared(
        encoder=pv.nn.MLP(4, (8,), (2, 2)),
        decoder=pv.nn.MLP(4, (8,), (2, 4)),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Gaussian((4,)),
    )
    with torch.no_grad():
        vae.decoder.output_bias[1] = -50.0
    assert pv.evaluate(vae, torch.randn(300, 4), estimator="is", num_particles=3).clamped_scales == {"z": 0, "x": 1200}


def test_a_subclass_of_a_vae_trains_its_own_parameters_in_svi():
    vae, x = Mixed(), torch.bernoulli(torch.full((20, 4), 0.4))
    before = {name: parameter.clone() for name, parameter in vae.named_parameters()}
    SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in vae.named_parameters())


def test_a_verdict_is_one_for_each_value_of_a_flag():
    pair, x = FirstColumn(), torch.linspace(-2, 2, 10)

    def model(x, first):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(1))
            decoded = pair.decoder(z)
            pyro.sample("x", Normal(decoded[:, 0] if first else decoded[..., 0], 1.0), obs=x)

    def guide(x, first):
        pair.guide(x)

    objective = IWAE(num_particles=3)
    assert objective._cache.of(model, guide, (x, False), {}).model
    assert not objective._cache.of(model, guide, (x, True), {}).model


def decoded_by(net, x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard_normal(1))
        pyro.sample("x", Normal(net(z), 1.0), obs=x)


def test_a_verdict_on_one_network_is_none_on_another():
    pair, x = FirstColumn(), torch.linspace(-2, 2, 10)
    safe, unsafe = (lambda z: pair.decoder(z)[..., 0]), (lambda z: pair.decoder(z)[:, 0])
    cache = IWAE(num_particles=3)._cache
    for _ in range(2):  # the third call is not asked about anew
        assert cache.of(partial(decoded_by, safe), pair.guide, (x,), {}).model
    assert not cache.of(partial(decoded_by, unsafe), pair.guide, (x,), {}).model

    def guide(net, x):
        pair.guide(x)

    for _ in range(2):
        assert cache.of(decoded_by, guide, (safe, x), {}).model
    assert not cache.of(decoded_by, guide, (unsafe, x), {}).model


def test_arguments_that_are_never_the_same_do_not_fill_the_memory():
    vae, x, cache = pv.presets.mlp_vae(data_shape=(4,), hidden=(8,)), torch.ones(3, 4), IWAE()._cache
    for step in range(600):
        cache.of(vae.model, vae.guide, (x, step), {})
    ((_, found),) = cache._answers.values()
    assert len(found) <= 512


def test_a_pair_of_partial_functions_made_anew_is_one_pair():
    pair, x, objective = FirstColumn(), torch.linspace(-2, 2, 10), IWAE(num_particles=3)
    for _ in range(5):
        objective.loss(partial(pair.model), partial(pair.guide), x)
    ((_, found),) = objective._cache._answers.values()
    assert [calls for _, calls in found.values()] == [5]


def test_a_verdict_outlives_neither_its_pair_nor_a_copy():
    objective = IWAE(num_particles=2)
    for _ in range(100):
        pair = FirstColumn()
        objective.loss(pair.model, pair.guide, torch.randn(3))
    assert len(objective._cache._answers) <= 4
    assert not pickle.loads(pickle.dumps(objective))._cache._answers


def test_a_flow_that_has_no_inverse_is_a_guide():
    problem = pv.problems.linear_gaussian(W=torch.randn(3, 2), scale=0.5)
    x, planar = problem.sample(6, seed=0), transforms.planar(2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(standard_normal(2), [planar]))

    exact = problem.log_evidence(x).double()
    found = pv.evidence.importance(problem.model, guide, x, num_particles=20_000)
    assert ((found.value - exact).abs() <= 6 * found.stderr + 1e-3).all()
    log_w = pv.draw_particles(problem.model, guide, x, num_particles=20_000).log_w
    assert ((pv.weights.log_mean_exp(log_w) - exact).abs() <= 6 * pv.weights.log_mean_exp_stderr(log_w) + 1e-3).all()


# --- Whether datapoints may be taken one by one


def by_index(num):
    """A prior mean per datapoint, found by the plate's index; log p(x) = log N(x; c, 2)."""
    c = torch.linspace(-3, 3, num)

    def model(x):
        with pyro.plate("data", len(x)) as index:
            z = pyro.sample("z", Normal(c[index], 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", Normal((c[index] + x) / 2, 0.5**0.5))

    return model, guide, c


def by_parameter(num):
    """The same with a guide that is not amortised."""
    model, _, c = by_index(num)

    def guide(x):
        loc = pyro.param("loc", lambda: (c + pyro_data[num]) / 2)
        with pyro.plate("data", num):
            pyro.sample("z", Normal(loc, 0.5**0.5))

    return model, guide, c


pyro_data = {num: torch.randn(num, generator=torch.Generator().manual_seed(num)) for num in (10, 600, 3000)}


@pytest.mark.parametrize("max_bytes", [2**10, 2**26])
@pytest.mark.parametrize("num", [10, 600])
@pytest.mark.parametrize("build", [by_index, by_parameter])
def test_what_a_datapoint_looks_up_by_its_place_is_its_own(build, num, max_bytes):
    model, guide, c = build(num)
    x = pyro_data[num]
    exact = Normal(c, 2**0.5).log_prob(x).double()
    for estimate in (pv.evidence.importance, pv.evidence.elbo):  # the guide is the posterior
        found = estimate(model, guide, x, num_particles=10, max_bytes=max_bytes)
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num", [10, 3000])
@pytest.mark.parametrize("build", [by_index, by_parameter])
def test_latents_are_summarised_by_place_too(build, num):
    model, guide, c = build(num)
    means = (c + pyro_data[num]) / 2
    found = pv.diagnostics.latent_summary(model, guide, pyro_data[num])["z"].mean_variance.item()
    assert found == pytest.approx(means.var().item(), rel=1e-3)


@pytest.mark.parametrize("max_bytes", [32, 2**20, 2**26])
def test_data_that_are_sorted_by_group_are_not_taken_for_one_group(max_bytes):
    group = torch.arange(600) // 400 * 2.0  # the first block sees one group alone

    def model(x):
        with pyro.plate("data", len(x)) as index:
            z = pyro.sample("z", Normal(group[index], 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", Normal((group[index] + x) / 2, 0.5**0.5))

    x = group + pyro_data[600]
    found = pv.evidence.importance(model, guide, x, num_particles=3, max_bytes=max_bytes)
    torch.testing.assert_close(found.value, Normal(group, 2**0.5).log_prob(x).double(), rtol=0, atol=1e-4)


def test_datapoints_that_see_their_neighbours_are_not_cut_apart():
    model, _, _ = by_index(600)
    neighbours = torch.arange(600).roll(1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(0.1 * x[neighbours], 1.0))

    x = pyro_data[600]
    whole = pv.draw_particles(model, guide, x, num_particles=2000).log_w.mean(0)
    found = pv.evidence.elbo(model, guide, x, num_particles=2000)
    assert ((found.value - whole).abs() <= 8 * found.stderr).all()


def test_a_mask_per_datapoint_is_evaluated_whole():
    vae, x = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,)), torch.ones(600, 4)
    mask = torch.arange(600) < 500
    pair = (poutine.mask(vae.model, mask=mask), poutine.mask(vae.guide, mask=mask))
    found = pv.evidence.elbo(*pair, x, num_particles=3)
    assert (found.value[500:] == 0).all()
    assert (found.value[:500] < 0).all()


def test_a_plate_that_subsamples_is_not_evaluated():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("z", Normal(x[index], 1.0).to_event(1))

    for look in (pv.evidence.elbo, pv.diagnostics.latent_summary):
        with pytest.raises(ShapeError, match="5 latent values for 10 datapoints"):
            look(model, guide, torch.randn(10, 2))


# --- What is no bound per datapoint


def test_a_latent_variable_that_all_datapoints_share_is_refused():
    def program(x, shared, obs):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
        with pyro.plate("shared", shared):
            w = pyro.sample("w", Normal(torch.zeros(()), 1.0))
        if obs:
            with pyro.plate("rows", len(x)):
                pyro.sample("x", Normal(z + w.sum(-1, keepdim=True), 1.0), obs=x)

    for shared in (1, 3):
        model, guide = (lambda x, o=obs, s=shared: program(x, s, o) for obs in (True, False))
        with pytest.raises(PairError, match=r"'shared'.*one size"):
            pv.evidence.elbo(model, guide, torch.randn(5), num_particles=2)
        with pytest.raises(PairError, match=r"'shared'.*one size"):
            ELBO().loss(model, guide, torch.randn(5))


def test_a_scale_that_is_none_per_datapoint_is_refused():
    vae, x = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,)), torch.ones(20, 4)

    def loss(scale):
        return ELBO().loss(poutine.scale(vae.model, scale=scale), poutine.scale(vae.guide, scale=scale), x)

    assert loss(torch.full((20,), 2.0)) > 0
    with pytest.raises(PairError, match=r"scale of shape \(20, 1\).*\(20,\)"):
        loss(torch.ones(20, 1))


def point_mass(problem):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(problem.posterior(x).mean).to_event(1))

    return guide


def test_a_point_mass_is_no_proposal():
    problem = pv.problems.linear_gaussian(W=torch.randn(3, 2), scale=0.3)
    x, guide = problem.sample(4, seed=0), point_mass(problem)
    with pytest.raises(PairError, match=r"'z'.*point mass.*no bound"):
        pv.evidence.importance(problem.model, guide, x, num_particles=10)
    # The known-wrong number: a "lower bound" far above log p(x).
    assert (pv.draw_particles(problem.model, guide, x).log_w > problem.log_evidence(x)).all()


def test_an_automatic_guide_of_pyros_is_a_guide():
    problem = pv.problems.linear_gaussian(W=torch.randn(3, 2), scale=0.5)
    x = problem.sample(20, seed=0)
    guide = AutoNormal(problem.model)
    svi = SVI(problem.model, guide, Adam({"lr": 0.02}), Trace_ELBO(num_particles=5, vectorize_particles=True))
    for _ in range(300):
        svi.step(x)
    found = pv.evidence.importance(problem.model, guide, x, num_particles=5000)
    exact = problem.log_evidence(x).double()
    assert ((found.value - exact).abs() <= 6 * found.stderr + 1e-3).all()
    elbo = pv.evidence.elbo(problem.model, guide, x, num_particles=5000)
    stock = Trace_ELBO(num_particles=5000, vectorize_particles=True).loss(problem.model, guide, x)
    assert elbo.value.sum().item() == pytest.approx(-stock, abs=0.05 * len(x))
    with pytest.raises(PairError, match=r"auxiliary sites.*analytic_kl=False"):
        ELBO(analytic_kl=True).loss(problem.model, guide, x)


def test_an_automatic_guide_that_was_not_used_yet_is_made_for_all_datapoints():
    problem = pv.problems.linear_gaussian(W=torch.randn(3, 2), scale=0.5)
    x = problem.sample(600, seed=0)
    for prepare in (lambda guide: None, lambda guide: guide(x)):
        guide = AutoNormal(problem.model)
        prepare(guide)
        assert pv.evidence.elbo(problem.model, guide, x, num_particles=3).value.shape == (600,)
        SVI(problem.model, guide, Adam({"lr": 0.02}), Trace_ELBO()).step(x)


def test_a_point_mass_does_not_hide_behind_another_sites_auxiliary():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
            w = pyro.sample("w", Normal(torch.zeros(()), 0.02))
            pyro.sample("x", Normal(z + w, 1.0), obs=x)

    guide, x = AutoGuideList(model), torch.randn(5)
    guide.append(AutoNormal(poutine.block(model, hide=["w"])))
    guide.append(AutoDelta(poutine.block(model, expose=["w"])))
    guide(x)
    with pytest.raises(PairError, match="'w'"):
        pv.evidence.importance(model, guide, x, num_particles=10)


# --- What draws alone would not show


EVALUATIONS = {
    "importance": lambda model, guide, x: pv.evidence.importance(model, guide, x, num_particles=10),
    "defensive": lambda model, guide, x: pv.evidence.importance(model, guide, x, proposal="defensive"),
    "refined": lambda model, guide, x: pv.evidence.importance(model, guide, x, proposal="refined"),
    "ais": pv.evidence.ais,
    "smc": pv.evidence.smc,
    "quadrature": pv.evidence.quadrature,
    "gaps": lambda model, guide, x: pv.diagnostics.inference_gaps(model, guide, x, log_evidence=0 * x),
    "parts": pv.diagnostics.elbo_parts,
}


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_different_scales_are_refused_by_every_estimator(evaluation):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    with pytest.raises(PairError, match="different scales"):
        EVALUATIONS[evaluation](model, scalar_guide(Normal(0.0, 1.0)), torch.randn(3))


@pytest.mark.parametrize("evaluation", [*EVALUATIONS, "latents"])
def test_a_latent_that_datapoints_share_is_refused_by_every_estimator(evaluation):
    def program(x, observed=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0))
        with pyro.plate("one", 1):
            w = pyro.sample("w", Normal(0.0, 1.0))
        if observed:
            with pyro.plate("more", len(x)):
                pyro.sample("x", Normal(z + w, 1.0), obs=x)

    run = {**EVALUATIONS, "latents": pv.diagnostics.latent_summary}[evaluation]
    with pytest.raises(PairError, match="expected one size"):
        run(program, partial(program, observed=False), torch.randn(3))


def test_the_parts_of_some_datapoints_are_not_taken_for_those_of_all():
    def program(x, observed=True):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", Normal(0.0, 1.0))
            if observed:
                pyro.sample("x", Normal(z, 1.0), obs=x[index])

    with pytest.raises(ShapeError, match="2 latent values for 5 datapoints"):
        pv.diagnostics.elbo_parts(program, partial(program, observed=False), torch.randn(5))


@pytest.mark.parametrize("evaluation", ["defensive", "refined", "ais", "smc", "quadrature", "gaps"])
@pytest.mark.parametrize(
    ("prior", "q"),
    [
        (Normal(0.0, 1.0), dist.LogNormal(0.0, 1.0)),
        (dist.LogNormal(0.0, 1.0), Normal(0.0, 1.0)),
        (dist.Uniform(0.0, 1.0), dist.Uniform(0.2, 0.8)),
    ],
)
def test_a_guide_on_other_values_than_the_models_is_refused(evaluation, prior, q):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(pyro.sample("z", prior), 1.0, validate_args=False), obs=x)

    with pytest.raises(PairError, match=r"the guide's values are in .*, the model's in"):
        EVALUATIONS[evaluation](model, scalar_guide(q), torch.randn(3))


def test_a_point_mass_among_constrained_values_tells_a_grid_where_to_look():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(pyro.sample("z", dist.LogNormal(0.0, 1.0)).log(), 1.0), obs=x)

    x = torch.randn(3)
    found = pv.evidence.quadrature(model, scalar_guide(dist.Delta(torch.tensor(1.0))), x)
    torch.testing.assert_close(found.value.float(), Normal(0.0, 2**0.5).log_prob(x), atol=1e-4, rtol=0)


def scalar_guide(q):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    return guide


# --- Whose parameters


def networks(**options):
    """A pair of plain functions that register their networks with Pyro."""
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 4)

    def model(x):
        pyro.module("decoder", decoder, **options)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder, **options)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@pytest.mark.parametrize("look", [*LOOKS.values(), pv.draw_particles], ids=[*LOOKS, "draw_particles"])
def test_other_values_in_the_store_are_not_passed_over(look):
    x = torch.randn(50, 3)
    trained, fresh = networks(), networks(update_module_params=True)
    SVI(*trained, Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    look(*trained, x)
    with pytest.raises(StaleParamStoreError, match=r"other values under '(de|en)coder\$\$\$weight'.*copy them"):
        look(*fresh, x)
    Trace_ELBO().loss(*fresh, x)  # loads them
    torch.manual_seed(0)
    expected = Trace_ELBO(num_particles=50).loss(*trained, x)
    assert pv.evidence.elbo(*fresh, x, num_particles=50).value.sum().item() == pytest.approx(-expected, rel=0.1)


def test_a_constrained_parameter_is_evaluated_at_its_trained_value():
    x = torch.randn(200) * 0.5

    def model(x):
        scale = pyro.param("scale", nn.Parameter(torch.tensor(1.0)), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 0.3))
            pyro.sample("x", Normal(z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(torch.zeros(()), 0.3))

    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    expected = -Trace_ELBO(num_particles=500, vectorize_particles=True).loss(model, guide, x) / len(x)
    assert pv.evidence.elbo(model, guide, x, num_particles=500).mean == pytest.approx(expected, abs=0.05)
    assert pyro.param("scale").item() < 0.7


def loadings_model(x):
    """A parameter that is drawn when it is first asked for."""
    loadings = pyro.param("loadings", lambda: torch.randn(2, 3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard_normal(2))
        pyro.sample("x", Normal(z @ loadings, 1.0).to_event(1), obs=x)


def prior_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", standard_normal(2))


@pytest.mark.parametrize("num_particles", [1, 2])
def test_parameters_that_are_made_at_the_first_step_depend_on_the_callers_seed(num_particles):
    def first(seed):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            IWAE(num_particles=num_particles).loss(loadings_model, prior_guide, torch.ones(4, 3))
            return pyro.param("loadings").detach().clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_copy_of_a_loss_that_would_train_the_original_is_refused():
    x = torch.randn(5, 3)
    loss = ELBO()(*networks())
    loss(x).backward()
    with pytest.raises(PairError, match="would not be trained"):
        copy.deepcopy(loss)(x)
    vae = pv.presets.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(8,), likelihood="gaussian")
    copied = copy.deepcopy(ELBO()(vae.model, vae.guide))
    copied(x).backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_an_attribute_is_not_taken_for_a_global_of_its_name():
    encoder_of_another = nn.Linear(1, 1)
    names = {"nets": SimpleNamespace(decoder=nn.Linear(1, 1)), "decoder": encoder_of_another, "torch": torch}
    exec("def model(x):\n    return nets.decoder(x) + sum(decoder_of(n) for n in [])", names)
    assert encoder_of_another not in modules_behind(names["model"])


def test_a_parameter_that_the_store_does_not_hold_yet_is_drawn_once():
    one, other = (
        pv.evidence.elbo(loadings_model, prior_guide, torch.ones(3, 3), num_particles=20_000, max_bytes=size)
        for size in (2**14, 2**26)
    )
    assert ((one.value - other.value).abs() <= 6 * one.stderr.hypot(other.stderr)).all()
    assert not list(pyro.get_param_store().keys())


TENTH = torch.tensor(0.1, dtype=torch.float64)


@pytest.mark.parametrize(("scale", "other"), [(0.1, TENTH), (2.0, torch.tensor([2.0]))])
def test_equal_scales_of_two_kinds_are_equal(scale, other):
    vae, x = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,)), torch.ones(20, 4)
    assert ELBO().loss(poutine.scale(vae.model, scale=scale), poutine.scale(vae.guide, scale=other), x) > 0


# --- In which mode


def hidden_in_defaults(net):
    return lambda z, net=net: net(z)


def hidden_in_a_namespace(net):
    return lambda z, nets=SimpleNamespace(net=net): nets.net(z)  # noqa: B008


def hidden_in_a_comprehension(net):
    return lambda z: [f(z) for f in [lambda z: net(z)]][0]  # noqa: RUF015


@pytest.mark.parametrize("hide", [hidden_in_defaults, hidden_in_a_namespace, hidden_in_a_comprehension])
@every_look
def test_a_network_that_cannot_be_found_is_looked_at_in_evaluation_mode(look, hide):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    decode = hide(net)
    statistics = net[1].running_mean.clone()

    def model(x, decode=decode):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard_normal(2))

    look(model, guide, torch.randn(8, 3))
    assert torch.equal(net[1].running_mean, statistics)
    assert all(part.training for part in net.modules())


def test_a_failed_step_puts_back_a_buffer_that_was_replaced():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
            return x.exp() * x.exp()

    vae = pv.VAE(
        encoder=nn.Sequential(Average(), nn.Linear(4, 4)),
        decoder=nn.Linear(2, 4),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Gaussian((4,), scale=1.0),
    )
    with pytest.raises(NonFiniteLossError):
        pv.fit(vae, torch.full((10, 4), 80.0), num_epochs=1, batch_size=10, progress=False)
    assert not vae.encoder[0].seen.any()


def test_a_learned_scale_comes_back_from_its_bound():
    vae = pv.presets.mlp_vae(
        data_shape=(2,), latent_dim=1, hidden=(4,), likelihood="gaussian", likelihood_scale="learned"
    )
    run = {"num_epochs": 200, "batch_size": 50, "learning_rate": 0.05, "progress": False}
    pv.fit(vae, torch.zeros(50, 2), **run)
    assert (vae.likelihood.log_scale.exp() < 0.02).all()
    pv.fit(vae, torch.randn(50, 2), **run)
    assert (vae.likelihood.log_scale.exp() > 0.02).all()


def test_fit_leaves_modes_as_they_were_and_frozen_parts_frozen():
    vae = pv.VAE(
        encoder=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        decoder=nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Gaussian((4,), scale=1.0),
    )
    vae.encoder[1].eval()
    frozen, free = vae.encoder[1].running_mean.clone(), vae.decoder[1].running_mean.clone()
    pv.fit(vae, torch.randn(20, 4), num_epochs=1, batch_size=10, progress=False)
    assert torch.equal(vae.encoder[1].running_mean, frozen)
    assert not torch.equal(vae.decoder[1].running_mean, free)
    assert (vae.training, vae.encoder[1].training, vae.decoder[1].training) == (True, False, True)
    free.copy_(vae.decoder[1].running_mean)
    vae.eval()
    pv.fit(vae, torch.randn(20, 4), num_epochs=1, batch_size=10, progress=False)  # all of it: meant to be looked at
    assert not torch.equal(vae.decoder[1].running_mean, free)
    assert not any(part.training for part in vae.modules())


# --- What a training leaves behind


def test_a_failed_step_moves_no_statistics_and_leaves_no_gradients():
    class Square(nn.Module):
        def forward(self, x):
            return x.exp() * x.exp()

    vae = pv.VAE(
        encoder=nn.Sequential(Square(), nn.BatchNorm1d(4), nn.Linear(4, 4)),
        decoder=nn.Linear(2, 4),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Gaussian((4,), scale=1.0),
    )
    x = torch.randn(10, 4)
    pv.fit(vae, x, num_epochs=1, batch_size=10, progress=False)
    assert all(parameter.grad is None for parameter in vae.parameters())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    x[0, 0] = 80.0
    with pytest.raises(NonFiniteLossError):
        pv.fit(vae, x, num_epochs=1, batch_size=10, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


# --- Memory


def test_the_byte_budget_counts_what_a_convolution_makes():
    decoded = []

    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(-1, (1, 8, 8)), nn.Conv2d(1, 64, 3, padding=1))
            self.out = nn.Conv2d(64, 1, 1)

        def forward(self, z):
            inner = self.net(z)
            decoded.append(inner.numel())
            return self.out(inner)

    vae = pv.VAE(
        encoder=pv.nn.MLP((1, 8, 8), (), (2, 2)),
        decoder=Convolution(),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli((1, 8, 8)),
    )
    pv.evidence.importance(vae.model, vae.guide, torch.ones(20, 1, 8, 8), num_particles=100, max_bytes=2**20)
    assert max(decoded) * 4 <= 2**20


# --- Arguments of other kinds


def test_numpys_integers_are_integers(tmp_path):
    assert type(require_count("num_particles", np.int64(3))) is int
    with seeded(np.int64(3)):
        one = torch.rand(())
    with seeded(3):
        assert torch.rand(()) == one
    write(tmp_path / "file", {}, {"num": np.int64(3)})
    assert read(tmp_path / "file")[1] == {"num": 3}


@pytest.mark.parametrize("wrong", [1e3, "5", None])
def test_other_things_are_not(wrong):
    with pytest.raises(ConfigError, match=r"num_particles=.*: expected a whole number"):
        require_count("num_particles", wrong)


def test_data_sets_and_loaders_of_torch_are_one_line():
    vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,))
    data = torch.utils.data.TensorDataset(torch.ones(20, 4))
    for x in (data, torch.utils.data.DataLoader(data)):
        with pytest.raises(DataError, match=f"expected an array.*|.*{type(x).__name__}"):
            pv.fit(vae, x, num_epochs=1, batch_size=10, progress=False)


def test_images_that_are_binarised_anew_are_not_evaluated():
    digits = pv.data.load("digits")
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(8,))
    with pytest.raises(DataError, match="'static'"):
        pv.evaluate(vae, pv.data.Pixels(digits.x_test[:9], "dynamic", max_value=16))
    fixed = pv.data.Pixels(digits.x_test[:9], "static", max_value=16)
    one, other = (pv.evidence.elbo(vae.model, vae.guide, x, num_particles=5).value for x in (fixed, fixed[:]))
    assert torch.equal(one, other)


def test_a_batch_may_be_a_dictionary_that_carries_gradients():
    decoder = nn.Linear(2, 3)

    def model(batch):
        with pyro.plate("data", len(batch["x"])):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", Normal(decoder(z) + batch["offset"], 1.0).to_event(1), obs=batch["x"])

    def guide(batch):
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("z", standard_normal(2))

    batch = {"x": torch.randn(5, 3), "offset": torch.zeros(3, requires_grad=True)}
    IWAE(num_particles=2)(model, guide)(batch).backward()
    assert batch["offset"].grad is not None
