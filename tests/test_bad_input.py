"""What a wrong input gets: one line with what was found, what was expected and how to mend it; nothing is changed."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import (
    ConfigError,
    DataError,
    DeviceError,
    NonFiniteLossError,
    PairError,
    PyroVaeError,
    ShapeError,
    StaleParamStoreError,
)
from pyro_vae.evidence import ais, elbo, importance, jackknife, psis, quadrature, smc
from tests.looks import LOOKS, OF_SEVERAL


def small_vae(data_shape=(4,), **options):
    return pv.presets.mlp_vae(data_shape=data_shape, latent_dim=2, hidden=(8,), **options)


def binary(*shape):
    return torch.bernoulli(torch.full(shape, 0.5))


def flat(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def refused(kind, call, *words):
    """The call raises this kind of error, in one line that holds these words."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, PyroVaeError)
    assert "\n" not in text
    assert all(word in text for word in words), text
    return caught.value


def fit(vae, x, **options):
    return pv.fit(vae, x, **{"num_epochs": 1, "batch_size": 2, "progress": False, **options})


def fit_at_once(vae, x, **options):
    """One step on all of the data, so that an error about a batch is about the data as they came."""
    return fit(vae, x, batch_size=len(x) if hasattr(x, "shape") and len(x.shape) else 1, **options)


def step(vae, x, loss):
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss).step(x)


# Every way from data into the library that takes all of them at once.
ENTRANCES = {
    "fit": fit_at_once,
    "fit with IWAE": lambda vae, x: fit_at_once(vae, x, objective=pv.objectives.IWAE(num_particles=3)),
    "validation": lambda vae, x: fit_at_once(vae, torch.zeros(6, *vae.data_shape), validation=x),
    "stock SVI": lambda vae, x: step(vae, x, Trace_ELBO()),
    "SVI with IWAE": lambda vae, x: step(vae, x, pv.objectives.IWAE(num_particles=3)),
    "loss module": lambda vae, x: pv.objectives.ELBO()(vae.model, vae.guide)(x),
    "draw_particles": lambda vae, x: pv.draw_particles(vae.model, vae.guide, x, num_particles=3),
    "guide": lambda vae, x: vae.guide(x),
    "model": lambda vae, x: vae.model(x),
    **{name: lambda vae, x, look=look: look(vae.model, vae.guide, x) for name, look in LOOKS.items()},
}
# And those that go image by image, with any leading dimensions.
FUNCTIONS = {"encode": lambda vae, x: vae.encode(x), "reconstruct": lambda vae, x: vae.reconstruct(x)}

entrances = pytest.mark.parametrize("entrance", ENTRANCES | FUNCTIONS)
pair_entrances = pytest.mark.parametrize("entrance", ENTRANCES)


def enter(entrance, vae, x):
    return (ENTRANCES | FUNCTIONS)[entrance](vae, x)


def refused_unchanged(kind, entrance, vae, x, *words):
    """The same, and no weight has moved: but validation data are looked at after an epoch."""
    before = flat(vae)
    refused(kind, lambda: enter(entrance, vae, x), *words)
    assert entrance == "validation" or torch.equal(flat(vae), before)


# --- the data


@entrances
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, {"relaxed": True}, {"likelihood": "gaussian"}], ids=["binary", "grey", "real"])
def test_non_finite_data_are_counted_and_located(entrance, value, options):
    vae, x = small_vae(**options), binary(6, 4)
    x[2, 1] = x[4, 3] = value
    before = x.clone()
    refused_unchanged(DataError, entrance, vae, x, "2 non-finite", "(2, 1)")
    torch.testing.assert_close(x, before, equal_nan=True)


@entrances
@pytest.mark.parametrize(
    ("low", "high"), [(0, 255), (-1, 1), (0, 0.5), (0.25, 0.75)], ids=["bytes", "symmetric", "half grey", "grey"]
)
def test_a_bernoulli_names_the_range_and_the_choices(entrance, low, high):
    x = low + (high - low) * binary(6, 4)
    x[0, 0], x[5, 3] = low, high
    choices = ("static", "dynamic", "threshold", "Gaussian", "relaxed=True")
    refused_unchanged(DataError, entrance, small_vae(), x, "{0, 1}", f"[{low:g}, {high:g}]", *choices)


@entrances
def test_the_range_of_bytes_is_named_too(entrance):
    x = torch.tensor([[0, 255, 3, 4]], dtype=torch.uint8).expand(6, 4)
    refused(DataError, lambda: enter(entrance, small_vae(), x), "{0, 1}", "[0, 255]")


@entrances
def test_a_relaxed_bernoulli_accepts_grey(entrance):
    enter(entrance, small_vae(relaxed=True), torch.rand(6, 4))


@entrances
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_a_relaxed_bernoulli_accepts_nothing_beyond_0_1(entrance, low, high):
    x = torch.tensor([[low, high, 0.5, 0.5]]).expand(6, 4)
    refused(DataError, lambda: enter(entrance, small_vae(relaxed=True), x), "[0, 1]", f"[{low:g}, {high:g}]")


@entrances
@pytest.mark.parametrize(
    ("data_shape", "shape", "expected"),
    [
        ((4,), (6, 3), "(n, 4)"),
        ((4,), (6, 5), "(n, 4)"),
        ((4,), (4,), "(n, 4)"),
        ((2, 2), (6, 4), "(n, 2, 2)"),
        ((2, 2), (6, 2, 2, 1), "(n, 2, 2)"),
        ((2, 3), (6, 3, 2), "(n, 2, 3)"),
        ((1, 2, 2), (6, 2, 2), "(n, 1, 2, 2)"),
    ],
)
def test_a_wrong_shape_is_named_beside_the_right_one(entrance, data_shape, shape, expected):
    refused_unchanged(
        ShapeError, entrance, small_vae(data_shape), binary(*shape), "expected", expected, "got", str(shape)
    )


@pair_entrances
@pytest.mark.parametrize(
    ("data_shape", "shape"),
    # The lengths at which an extra dimension could pass for a plate: one, that of the data, that of a particle plate.
    [((4,), (6, 1, 4)), ((4,), (6, 6, 4)), ((4,), (1, 6, 4)), ((4,), (3, 6, 4)), ((2, 2), (6, 1, 2, 2))],
)
def test_an_extra_dimension_is_refused_by_the_pair(entrance, data_shape, shape):
    vae, x = small_vae(data_shape), binary(*shape)
    if entrance in OF_SEVERAL and len(x) == 1:
        refused_unchanged(DataError, entrance, vae, x, "one datapoint", "at least 2")
    else:
        expected = f"(n, {', '.join(map(str, data_shape))})"
        refused_unchanged(ShapeError, entrance, vae, x, "expected", expected, "got", str(shape))


def test_a_shape_that_only_needs_a_reshape_says_so():
    refused(ShapeError, lambda: small_vae((2, 2)).encode(binary(6, 4)), "x.reshape(-1, 2, 2)")
    refused(ShapeError, lambda: small_vae((4,)).encode(binary(6, 2, 2)), "x.reshape(-1, 4)")


@entrances
@pytest.mark.parametrize("kind", [torch.Tensor, torch.Tensor.numpy], ids=["torch", "numpy"])
def test_empty_data_are_refused(entrance, kind):
    refused(DataError, lambda: enter(entrance, small_vae(), kind(torch.zeros(0, 4))), "at least one datapoint")


@pytest.mark.parametrize("entrance", ["fit", "validation", *LOOKS])
@pytest.mark.parametrize("x", [3.0, torch.tensor(1.0), []], ids=["number", "scalar", "empty list"])
def test_a_number_is_no_data(entrance, x):
    refused(DataError, lambda: enter(entrance, small_vae(), x))


def test_a_batch_larger_than_the_data_is_clipped_with_a_note():
    vae = small_vae()
    weights = flat(vae)
    with pytest.warns(UserWarning, match="batch_size=128 clipped to the 6 datapoints"):
        history = fit(vae, binary(6, 4), batch_size=128)
    assert history.epochs[0].step == 1
    assert not torch.equal(flat(vae), weights)


def test_a_batch_of_the_size_of_the_data_gets_no_note():
    fit(small_vae(), binary(6, 4), batch_size=6)  # warnings are errors here


@entrances
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_datapoint_works_or_is_said_to_be_too_few(entrance, likelihood):
    vae, x = small_vae(likelihood=likelihood), binary(1, 4)
    if entrance in OF_SEVERAL:
        refused(DataError, lambda: enter(entrance, vae, x), "one datapoint", "at least 2")
    else:
        enter(entrance, vae, x)
    assert torch.isfinite(flat(vae)).all()


def test_the_numbers_of_one_datapoint_are_those_it_has_among_others():
    vae, x = small_vae(), binary(6, 4)
    summary = pv.evaluate(vae, x[:1], num_particles=3000)
    alone = summary.log_evidence
    among = pv.evidence.importance(vae.model, vae.guide, x, num_particles=3000)
    gap = (alone.value - among.value[:1]).abs()
    assert (gap < 5 * (alone.stderr.square() + among.stderr[:1].square()).sqrt()).all()
    assert math.isnan(alone.test_set_error)  # one datapoint says nothing about others
    assert "± -" in str(summary)


def test_a_last_batch_of_one_works():
    vae = small_vae()
    history = fit(vae, binary(5, 4), validation=binary(3, 4), batch_size=2)
    assert history.epochs[0].step == 3
    assert math.isfinite(history.epochs[0].validation_bound)


# --- the machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none_is_one_line(device):
    vae = small_vae()
    weights = flat(vae)
    refused(DeviceError, lambda: fit(vae, binary(6, 4), device=device), repr(device), "auto")
    assert torch.equal(flat(vae), weights)


def test_a_device_that_never_existed_is_one_line():
    refused(DeviceError, lambda: fit(small_vae(), binary(6, 4), device="abacus"), "'abacus'", "auto")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_devices_that_are_here_work(device):
    assert len(fit(small_vae(), binary(6, 4), device=device).epochs) == 1


def test_a_second_vae_of_the_same_name_is_one_line_through_svi():
    x = binary(6, 4)
    step(small_vae(), x, Trace_ELBO())
    refused(StaleParamStoreError, lambda: step(small_vae(), x, Trace_ELBO()), "'vae$$$", "name=", "scope()")


def test_a_parameter_in_another_memory_layout_is_no_second_vae():
    vae = small_vae()
    with torch.no_grad():
        vae.decoder.layers[0].weight = nn.Parameter(vae.decoder.layers[0].weight.T.contiguous().T)
    assert not vae.decoder.layers[0].weight.is_contiguous()
    weights = flat(vae)
    step(vae, binary(6, 4), Trace_ELBO())
    assert not torch.equal(flat(vae), weights)


# --- numbers out of range


class Constant(nn.Module):
    """An encoder that returns the same numbers for every datapoint."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), *self.values.shape)


def with_encoder(encoder, likelihood):
    decoder = pv.nn.MLP(2, (8,), likelihood.param_shape)
    prior = pv.priors.StandardNormal(2)
    return pv.VAE(encoder=encoder, decoder=decoder, prior=prior, likelihood=likelihood)


LIKELIHOODS = {
    "bernoulli": lambda: pv.likelihoods.Bernoulli((4,)),
    "decoder": lambda: pv.likelihoods.Gaussian((4,)),
    "learned": lambda: pv.likelihoods.Gaussian((4,), scale="learned"),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("log_scale", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("loc", [1e4, -1e4, 0.0])
def test_extreme_encoder_outputs_give_finite_weights_and_are_counted(loc, log_scale, likelihood):
    vae, x = with_encoder(Constant([loc, 0.0], [log_scale, 0.0]), LIKELIHOODS[likelihood]()), binary(6, 4)
    particles = pv.draw_particles(vae.model, vae.guide, x, num_particles=3)
    assert all(torch.isfinite(term).all() for term in particles[:3])
    assert vae.clamped_scales(x)["z"] == (6 if log_scale else 0)
    note = "scales of z held by their bounds: 6 in 6 datapoints"
    assert (note in str(pv.evaluate(vae, x, estimator="is", num_particles=3))) == bool(log_scale)
    loss = pv.objectives.ELBO()(vae.model, vae.guide)(x)
    gradients = torch.autograd.grad(loss, list(vae.parameters()), materialize_grads=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_posterior_collapse_is_reported():
    collapsed = with_encoder(Constant([0.0, 0.0], [0.0, 0.0]), pv.likelihoods.Bernoulli((4,)))
    x = binary(100, 4)
    summary = pv.diagnostics.latent_summary(collapsed.model, collapsed.guide, x)["z"]
    assert summary.num_active == 0
    assert summary.kl.abs().max() < 1e-6
    assert "posterior collapse" in str(pv.evaluate(collapsed, x, num_particles=3))
    assert pv.evaluate(collapsed, x, num_particles=3).to_dict()["latents"]["z"]["num_active"] == 0


def test_a_posterior_that_moves_with_the_data_is_not_reported_as_collapsed():
    reader = nn.Linear(4, 4, bias=False)  # location and log-scale of two dimensions, of which one reads the data
    with torch.no_grad():
        reader.weight.copy_(torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0])))
    vae = with_encoder(reader, pv.likelihoods.Bernoulli((4,)))
    x = binary(100, 4)
    summary = pv.diagnostics.latent_summary(vae.model, vae.guide, x)["z"]
    assert summary.active.tolist() == [True, False]
    torch.testing.assert_close(summary.mean_variance[0], x[:, 0].double().var())
    torch.testing.assert_close(summary.kl, torch.tensor([x[:, 0].mean().double() / 2, 0.0], dtype=torch.float64))
    assert "collapse" not in str(pv.evaluate(vae, x, num_particles=3))


class Partial(nn.Module):
    """An encoder that fails where the first pixel is white."""

    def __init__(self):
        super().__init__()
        self.net = pv.nn.MLP(4, (8,), (2, 2))

    def forward(self, x):
        return self.net(x).masked_fill((x[:, 0] > 0)[:, None, None], math.nan)


ESTIMATORS = (ais, elbo, importance, jackknife, psis, quadrature, smc)
OF_EACH = {name: look for name, look in LOOKS.items() if isinstance(look, partial) and look.func in ESTIMATORS}


@pytest.mark.parametrize("name", OF_EACH)
def test_a_posterior_that_is_not_finite_spoils_the_number_of_its_own_datapoint_alone(name):
    vae, x = with_encoder(Partial(), pv.likelihoods.Bernoulli((4,))), binary(6, 4)
    x[:, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    found = OF_EACH[name](vae.model, vae.guide, x)
    assert found.value[x[:, 0] == 0].isfinite().all()
    if "prior" in name or name == "quadrature":  # which need no posterior
        assert found.value[2].isfinite()
    else:
        assert found.verdict[2] == "unreliable"
        assert "value is nan" in found.reason[2]


def test_the_gaps_of_other_datapoints_are_finite_too():
    vae, x = with_encoder(Partial(), pv.likelihoods.Bernoulli((4,))), torch.eye(4)
    found = LOOKS["inference_gaps"](vae.model, vae.guide, x)
    for part in (found.elbo, found.local_elbo, found.amortisation_stderr):
        assert part.isfinite().tolist() == [False, True, True, True]


def test_a_mixture_of_posteriors_asks_for_all_of_them():
    vae = with_encoder(Partial(), pv.likelihoods.Bernoulli((4,)))
    look = LOOKS["aggregate_posterior"]
    refused(PairError, lambda: look(vae.model, vae.guide, torch.eye(4)), "1 of 4 datapoints", "leave", "out")


# --- losses that are not finite


class Watched(nn.Module):
    """An encoder that remembers all of the weights whenever it is called, which is at the start of every step."""

    def __init__(self):
        super().__init__()
        self.net = pv.nn.MLP(4, (8,), (2, 2))
        self.seen = []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen.append(flat(self.whole[0]))
        return self.net(x)


def watched(likelihood=None):
    vae = with_encoder(Watched(), likelihood or pv.likelihoods.Gaussian((4,), scale=1.0))
    vae.encoder.whole = [vae]  # in a list, so that it is no submodule
    return vae


@pytest.mark.parametrize("objective", [pv.objectives.ELBO(), pv.objectives.IWAE(num_particles=3)], ids=["elbo", "iwae"])
def test_a_non_finite_loss_is_caught_before_the_step(objective):
    vae, x = watched(), binary(8, 4)
    x[3, 0] = 1e30  # finite, but its square is not
    error = refused(
        NonFiniteLossError,
        lambda: fit(vae, x, batch_size=1, objective=objective, learning_rate=0.1),
        "site 'x'",
        "max_grad_norm",
    )
    assert error.site == "the log-density of site 'x'"
    assert error.step == len(vae.encoder.seen) > 1  # seed 0 does not begin with the bad datapoint
    assert f"step {error.step}:" in str(error)
    assert torch.equal(flat(vae), vae.encoder.seen[-1])  # bit for bit those before the bad step
    assert not torch.equal(flat(vae), vae.encoder.seen[0])  # and not those of the start
    assert torch.isfinite(flat(vae)).all()


def test_a_non_finite_guide_is_named():
    vae = watched()
    with torch.no_grad():
        vae.encoder.net.output_bias.fill_(math.nan)
    error = refused(NonFiniteLossError, lambda: fit(vae, binary(8, 4)), "step 1:", "site 'z'")
    assert error.step == 1


class Rooted(nn.Module):
    """A decoder whose output is finite and whose gradient is not: a square root at zero."""

    def __init__(self):
        super().__init__()
        self.net, self.root = pv.nn.MLP(2, (8,), 4), nn.Parameter(torch.zeros(4))

    def forward(self, z):
        return self.net(z) + self.root.sqrt()


def test_a_non_finite_gradient_of_a_finite_loss_is_caught_too():
    vae = watched(pv.likelihoods.Bernoulli((4,)))
    vae.decoder = Rooted()
    weights = flat(vae)
    error = refused(NonFiniteLossError, lambda: fit(vae, binary(8, 4)), "step 1:", "gradient", "decoder.root")
    assert error.step == 1
    assert torch.equal(flat(vae), weights)


def test_clipping_does_not_hide_a_non_finite_gradient():
    vae = watched(pv.likelihoods.Bernoulli((4,)))
    vae.decoder = Rooted()
    weights = flat(vae)
    refused(NonFiniteLossError, lambda: fit(vae, binary(8, 4), max_grad_norm=1.0), "gradient")
    assert torch.equal(flat(vae), weights)


def test_a_run_that_failed_can_be_gone_on_with():
    vae, x = watched(), np.ones((8, 4), dtype=np.float32)
    x[3, 0] = 1e30
    refused(NonFiniteLossError, lambda: fit(vae, x))
    x[3, 0] = 1.0
    assert math.isfinite(fit(vae, x).epochs[0].train_bound)


def gaussian():
    problem = pv.problems.linear_gaussian(W=torch.randn(4, 3), scale=0.5)
    return problem.model, problem.guide(), problem.sample(3, seed=0)


ESTIMATES = {
    "importance": pv.evidence.importance,
    "elbo": pv.evidence.elbo,
    "psis": pv.evidence.psis,
    "jackknife": pv.evidence.jackknife,
    "ais": pv.evidence.ais,
    "smc": pv.evidence.smc,
    "sandwich": lambda *pair, **options: pv.evidence.sandwich(*pair, {"z": torch.zeros(3, 3)}, **options),
    "gaps": lambda *pair, **options: pv.diagnostics.inference_gaps(*pair, log_evidence=torch.zeros(3), **options),
    "calibration": pv.diagnostics.calibration,
    "aggregate": pv.diagnostics.aggregate_posterior,
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_no_memory_is_refused(name):
    refused(ConfigError, lambda: ESTIMATES[name](*gaussian(), max_bytes=0), "max_bytes=0", "at least 1")


UNTYPED = """
import torch, pyro_vae as pv
problem = pv.problems.linear_gaussian(W=torch.randn(4, 3), scale=0.5)
model, guide, x = problem.model, problem.guide(), problem.sample(3, seed=0)
for options in ({"seed": 1.5}, {"seed": None}, {"max_bytes": 1e8}, {"max_bytes": None}):
    for call in (pv.evidence.importance, pv.evidence.elbo, pv.evidence.ais, pv.evidence.smc, pv.diagnostics.calibration,
                 pv.diagnostics.aggregate_posterior):
        try:
            call(model, guide, x, **options)
        except pv.errors.ConfigError as error:
            assert str(error).endswith("expected a whole number"), error
        else:
            raise AssertionError((call, options))
vae = pv.presets.mlp_vae(data_shape=(4,))
try:
    vae.model(torch.zeros(3, 4), torch.zeros(3))  # a label is no number of datapoints
except pv.errors.ConfigError as error:
    assert "expected a whole number" in str(error), error
else:
    raise AssertionError
try:
    pv.save(pv.Incomplete(vae), "nowhere")
except pv.errors.ConfigError as error:
    assert "expected a VAE" in str(error), error
else:
    raise AssertionError
for call in (
    lambda: pv.evidence.sandwich(model, guide, x, torch.zeros(3, 3)),
    lambda: pv.compare([pv.evidence.importance], model, guide, x),
    lambda: pv.to_datatree(model, guide, x, num_draws=5, coords=["slant"]),
):
    try:
        call()
    except pv.errors.ConfigError as error:
        assert "dictionary" in str(error), error
    else:
        raise AssertionError
"""


def test_values_of_another_type_are_refused_where_no_type_checker_looks():
    """The tests' own import hook would be in the way."""
    subprocess.run([sys.executable, "-c", UNTYPED], check=True)


MISTAKES = {
    "no estimators": (ConfigError, lambda model, guide, x: pv.compare({}, model, guide, x), ("functions",)),
    "a truth that is not known": (
        DataError,
        lambda model, guide, x: pv.compare({"IS": pv.evidence.importance}, model, guide, x, exact=[0.0, math.nan, 0.0]),
        ("exact", "non-finite"),
    ),
    "an evidence that is not known": (
        DataError,
        lambda model, guide, x: pv.diagnostics.inference_gaps(model, guide, x, log_evidence=[0.0, math.nan, 0.0]),
        ("log_evidence", "non-finite"),
    ),
    "a pair of three": (PairError, lambda *three: pv.evaluate(three, three[2]), ("(model, guide)", "tuple")),
    "a pair of nothing": (PairError, lambda model, guide, x: pv.evaluate(None, x), ("(model, guide)", "NoneType")),
    "one draw": (
        ConfigError,
        lambda model, guide, x: pv.evaluate((model, guide), x, elbo_particles=1),
        ("elbo_particles=1",),
    ),
    "one particle": (
        ConfigError,
        lambda model, guide, x: pv.evaluate((model, guide), x, iwae_particles=1),
        ("iwae_particles=1",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_evaluation_are_said_in_one_line(mistake):
    kind, call, words = MISTAKES[mistake]
    refused(kind, lambda: call(*gaussian()), *words)
