"""Nothing of the process is changed that was not asked for: global state, random numbers, parameters."""

import inspect
import math
import random
import signal
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.cli import runs
from pyro_vae.cli.config import TrainConfig
from pyro_vae.errors import DataError
from tests.looks import every_look, tensors_of


def snapshot():
    """What a library has no business changing."""
    return {
        "default dtype": torch.get_default_dtype(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "python generator": random.getstate(),
        "pyro settings": pyro.settings.get(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "parameters": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "default device": str(torch.get_default_device()),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "excepthook": sys.excepthook,
    }


def changes(before):
    """What is no longer as it was, but for Python's generator, from which beartype draws in these tests."""
    after = snapshot()
    return [name for name in before if before[name] != after[name] and name != "python generator"]


IN_A_FRESH_PROCESS = f"""
import random, signal, sys
import numpy as np, torch, pyro
{inspect.getsource(snapshot)}
before = snapshot()
"""


def python(code):
    """Run code in a fresh process in which every warning is an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_vae():
    torch.manual_seed(1)
    return pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))


def toy(num=20):
    return (torch.arange(num * 6).reshape(num, 6) % 5 < 2).float()


def flat(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_importing_everything_changes_no_global_state():
    python(
        IN_A_FRESH_PROCESS
        + """
import pkgutil, pyro_vae
for module in pkgutil.walk_packages(pyro_vae.__path__, "pyro_vae."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
for name in pyro_vae.__all__:
    getattr(pyro_vae, name)
after = snapshot()
assert after == before, [name for name in before if before[name] != after[name]]
"""
    )


def test_training_and_evaluating_change_no_global_state():
    python(
        IN_A_FRESH_PROCESS
        + """
import pyro_vae as pv
vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
before["torch generator"] = snapshot()["torch generator"]  # the starting weights are the caller's draws
x = torch.eye(6)
pv.fit(vae, pv.data.Pixels(x, max_value=1), validation=x, num_epochs=2, batch_size=4, patience=2, progress=False)
pv.evaluate(vae, x, num_particles=10)
pv.data.Pixels(x, "static", max_value=1)[:]
pv.problems.linear_gaussian(W=[[1.0]]).sample(3, seed=0)
after = snapshot()
assert after == before, [name for name in before if before[name] != after[name]]
"""
    )


def test_importing_the_package_alone_is_lazy():
    loaded = python("import sys, pyro_vae; dir(pyro_vae), pyro_vae.__version__; print(*sys.modules)").split()
    assert "pyro_vae" in loaded
    assert not {"torch", "pyro", "numpy", "matplotlib", "argparse"} & set(loaded)


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'vea'"):
        pv.vea  # noqa: B018


@pytest.fixture
def handler():
    """A SIGINT handler that is not the default one."""
    before = signal.signal(signal.SIGINT, own := lambda *_: None)
    yield own
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
def test_fit_leaves_the_process_as_it_was():
    pyro.param("somebody.else", torch.zeros(3))
    vae = small_vae()
    torch.rand(5), np.random.rand(5), random.random()
    before = snapshot()
    pv.fit(vae, toy(), validation=toy(), patience=3, num_epochs=3, batch_size=7, progress=False)
    assert not changes(before)


@pytest.mark.usefixtures("handler")
def test_a_failing_fit_leaves_the_process_as_it_was():
    vae = small_vae()
    weights = flat(vae)
    before = snapshot()
    with pytest.raises(DataError):
        pv.fit(vae, 0.5 * toy(), num_epochs=3, batch_size=7, progress=False)
    assert not changes(before)
    assert torch.equal(flat(vae), weights)


def trained(seed, caller_seed=0, **options):
    vae = small_vae()
    torch.manual_seed(caller_seed)
    np.random.seed(caller_seed)
    random.seed(caller_seed)
    pv.fit(vae, toy(), num_epochs=2, batch_size=8, seed=seed, progress=False, **options)
    return flat(vae)


@pytest.mark.parametrize(
    "objective",
    [pv.objectives.ELBO(), pv.objectives.ELBO(analytic_kl=True), pv.objectives.IWAE(num_particles=3)],
    ids=["elbo", "analytic", "iwae"],
)
def test_fit_depends_on_its_seed_alone(objective):
    first = trained(0, objective=objective)
    assert torch.equal(first, trained(0, objective=objective))
    assert torch.equal(first, trained(0, caller_seed=99, objective=objective))
    assert not torch.equal(first, trained(1, objective=objective))


def test_watching_a_validation_bound_does_not_change_the_weights():
    assert torch.equal(trained(0), trained(0, validation=toy(9)))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_and_sampling_change_no_parameter(training):
    vae, x = small_vae().train(training), toy()
    weights, before = flat(vae), snapshot()
    pv.evaluate(vae, x, num_particles=10)
    pv.draw_particles(vae.model, vae.guide, x, num_particles=3)
    pv.diagnostics.latent_summary(vae.model, vae.guide, x)
    pv.objectives.IWAE(num_particles=3)(vae.model, vae.guide)(x)
    vae.sample(3), vae.reconstruct(x), vae.encode(x), vae.decode(torch.zeros(3, 2)), vae.clamped_scales(x)
    assert torch.equal(flat(vae), weights)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert vae.training is vae.encoder.training is training
    assert changes(before) == ["torch generator"]  # which is what drawing without a seed means


def test_evaluation_leaves_the_callers_generator_and_store_alone():
    vae, x = small_vae(), toy()
    before = snapshot()
    pv.evaluate(vae, x, num_particles=10, iwae_particles=5, elbo_particles=5)
    assert not changes(before)


def perceptron(*widths):
    """With layers that learn while they are looked at, unless they are told not to."""
    inside, hidden, outside = widths
    return nn.Sequential(nn.Linear(inside, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.5), nn.Linear(hidden, outside))


def preset():
    likelihood, prior = pv.likelihoods.Bernoulli((6,)), pv.priors.StandardNormal(2)
    vae = pv.VAE(encoder=perceptron(6, 8, 4), decoder=perceptron(2, 8, 6), prior=prior, likelihood=likelihood)
    return vae.model, vae.guide, vae


def hand_written():
    nets = nn.ModuleDict({"encoder": perceptron(6, 8, 4), "decoder": perceptron(2, 8, 6)})

    def model(x):
        pyro.module("decoder", nets["decoder"])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=nets["decoder"](z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", nets["encoder"])
        loc, log_scale = nets["encoder"](x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, nets


@pytest.fixture(params=[preset, hand_written])
def pair(request):
    """In the middle of somebody's training: gradients waiting, a part frozen, another one in evaluation mode."""
    torch.manual_seed(1)
    model, guide, nets = request.param()
    for parameter in nets.parameters():
        parameter.grad = torch.randn_like(parameter)
    nets.encoder[0].requires_grad_(False)
    nets.train().decoder[1].eval()
    pyro.param("somebody.else", torch.zeros(3))
    return model, guide, nets


def belongings(nets):
    """What networks are, and what hangs on them."""
    return {
        "values": {name: value.tolist() for name, value in nets.state_dict().items()},
        "gradients": [parameter.grad.tolist() for parameter in nets.parameters()],
        "trainable": [parameter.requires_grad for parameter in nets.parameters()],
        "identities": [(id(parameter), id(parameter.grad)) for parameter in nets.parameters()],
        "modes": {name: part.training for name, part in nets.named_modules()},
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in nets.modules()],
    }


@every_look
def test_a_look_changes_nothing_and_depends_on_its_seed_alone(look, pair):
    model, guide, nets = pair
    x = toy(6)
    found = []
    for caller_seed in (0, 1):
        torch.manual_seed(caller_seed)
        before, owned, data = snapshot(), belongings(nets), x.clone()
        found.append(tensors_of(look(model, guide, x)))
        assert not changes(before)
        assert belongings(nets) == owned
        assert torch.equal(x, data)
        assert not any(part.requires_grad for part in found[-1])
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@every_look
def test_a_look_in_inference_mode_gives_the_same_numbers(look):
    model, guide, _ = preset()
    expected = tensors_of(look(model, guide, toy(6)))
    with torch.inference_mode():
        found = tensors_of(look(model, guide, toy(6)))
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@every_look
def test_an_interrupted_look_changes_nothing(look):
    model, guide, nets = preset()
    num_calls, last = 0, math.inf

    def count(*_):
        nonlocal num_calls
        num_calls += 1
        if num_calls > last:
            raise KeyboardInterrupt

    nets.decoder.register_forward_pre_hook(count)
    look(model, guide, toy(6))
    num_calls, last = 0, num_calls // 2
    before, modes = snapshot(), [part.training for part in nets.modules()]
    with pytest.raises(KeyboardInterrupt):
        look(model, guide, toy(6))
    assert num_calls == last + 1
    assert not changes(before)
    assert [part.training for part in nets.modules()] == modes


def test_a_run_is_looked_at_without_changing_it(tmp_path):
    config = TrainConfig(num_epochs=1, hidden=(8,), eval_particles=2, device="cpu", out=str(tmp_path / "run"))
    run = runs.train(config, progress=False)
    model = run.folder / "model.safetensors"
    before, state = model.read_bytes(), snapshot()
    weights = flat(runs.load_run(run.folder)[1])
    runs.evaluate_run(run.folder, num_particles=2, progress=False)
    runs.sample_run(run.folder, num=3)
    assert model.read_bytes() == before
    assert torch.equal(flat(runs.load_run(run.folder)[1]), weights)
    assert not changes(state)
