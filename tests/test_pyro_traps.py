"""What Pyro does behind one's back, trap by trap: that it does, and that nobody falls into it here.

==  ================================================  =======================================================
 1  a second module of one name does not train        here; ``test_sockets``: one name is refused, two both train
 2  two PyroModules that own ``net`` collide          here; ``test_objectives``: two pairs do not meet in the store
 3  ``module_local_params`` is of the whole process   here, and ``test_sockets``: both settings
 4  a loss of bound methods owns no parameters        here
 5  ``Predictive`` with a guide hands the data back   here, and ``test_predictive``
 6  scales inside the logarithm; no gradients         here, ``test_exams`` (E6), ``test_gradients``
 7  ``torch.jit`` and registered modules              here
 8  a callable loss keeps its graph                   here
 9  ``svi.step`` moves weights without gradients      here, and ``test_sockets``
10  one optimiser for each parameter                  here
11  zuko turns validation off                         here
12  the generators' state holds a pickle              here, and ``test_checkpoint``
==  ================================================  =======================================================
"""

import ast
import importlib
import io
import math
import warnings
from contextlib import nullcontext
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Predictive, RenyiELBO, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv

ELSEWHERE = [
    ("objectives.test_sockets", "test_two_vaes_with_one_name_are_refused_by_svi_before_anything_moves"),
    ("objectives.test_sockets", "test_two_vaes_with_two_names_both_train"),
    ("objectives.test_objectives", "test_two_pyro_module_pairs_do_not_meet_in_the_store"),
    ("objectives.test_sockets", "test_stock_svi_trains_every_parameter"),
    ("test_exams", "test_e6_pyros_renyi_elbo_fails_the_same_comparison"),
    ("objectives.test_gradients", "test_dreg_is_the_derivative_less_the_second_derivative"),
    ("objectives.test_sockets", "test_svi_evaluate_loss_moves_nothing"),
    ("training.test_checkpoint", "test_a_pickle_bomb_does_not_go_off"),
]


@pytest.mark.parametrize(("module", "name"), ELSEWHERE)
def test_what_the_table_points_to_is_there(module, name):
    assert callable(getattr(importlib.import_module(f"tests.{module}"), name))


@pytest.fixture
def vae():
    return pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((10, 6), 0.5))


def imported():
    """Every module that a file of the package imports or names, and every call it makes, as text."""
    for path in Path(pv.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or ""
            elif isinstance(node, ast.Call):
                yield ast.unparse(node.func)


def program(net, name):
    """A decoder that Pyro knows by this name."""

    def model(x):
        pyro.module(name, net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    return model


class Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](2, 6)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](6, 4)

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def moved(module, train):
    """Which of its parameters training changes."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    train()
    return [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]


def by_stock_svi(model, guide, x):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
    return lambda: [svi.step(x) for _ in range(5)]


def test_01_a_second_network_of_one_name_does_not_train_in_stock_pyro(vae, x):
    first, second = nn.Linear(2, 6), nn.Linear(2, 6)
    assert all(moved(first, by_stock_svi(program(first, "net"), vae.guide, x)))
    assert not any(moved(second, by_stock_svi(program(second, "net"), vae.guide, x)))  # without a word
    assert all(moved(second, by_stock_svi(program(second, "another"), vae.guide, x)))


def test_02_the_decoder_of_two_pyro_modules_does_not_train_in_stock_pyro_and_does_here(x):
    both = nn.ModuleList([Decoder(), Encoder()])
    assert moved(both, by_stock_svi(*both, x)) == [False, False, True, True]
    assert all(moved(both, lambda: pv.fit((both[0], both[1]), x, num_epochs=2, batch_size=5)))


def test_03_local_parameters_break_stock_svi_of_pyro_modules_and_not_ours(x):
    with pyro.settings.context(module_local_params=True):
        both = nn.ModuleList([Decoder(), Encoder()])
        with pytest.raises(AttributeError):
            by_stock_svi(*both, x)()
        assert all(moved(both, lambda: pv.fit((both[0], both[1]), x, num_epochs=2, batch_size=5)))


def test_03_no_setting_of_the_process_is_set():
    assert not {"pyro.settings.set", "settings.set", "pyro.clear_param_store", "pyro.enable_validation"} & {*imported()}


def test_04_a_loss_owns_the_parameters_behind_bound_methods(vae):
    assert not list(Trace_ELBO()(vae.model, vae.guide).parameters())
    assert len(list(pv.objectives.ELBO()(vae.model, vae.guide).parameters())) == len(list(vae.parameters()))


def test_05_predictive_with_a_guide_hands_the_data_back(vae, x):
    handed = Predictive(vae.model, guide=vae.guide, num_samples=3)(x)["x"]
    assert torch.equal(handed, x.expand(3, 10, 6))
    ours = pv.posterior_predictive(vae.model, vae.guide, x, num_draws=3, num_particles=50)["x"]
    assert ours.shape == handed.shape
    assert not torch.equal(ours, handed)


def test_06_pyros_normalised_weights_raise_and_ours_sum_to_one_per_datapoint(vae, x):
    options = {"num_samples": 5, "max_plate_nesting": 1}
    with pytest.raises(TypeError):
        vectorized_importance_weights(vae.model, vae.guide, x, normalized=True, **options)
    log_w = vectorized_importance_weights(vae.model, vae.guide, x, **options)[0]
    assert log_w.shape == (5,)  # one weight for all of the batch
    weights = pv.weights.normalized_weights(pv.draw_particles(vae.model, vae.guide, x, num_particles=5).log_w)
    torch.testing.assert_close(weights.sum(0), torch.ones(10))


def test_06_pyros_renyi_bound_has_no_differentiable_loss_and_ours_has(vae, x):
    assert not hasattr(RenyiELBO(alpha=0.5), "differentiable_loss")
    pv.objectives.Renyi(alpha=0.5, num_particles=2).differentiable_loss(vae.model, vae.guide, x).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_07_a_compiled_bound_breaks_on_the_last_batch_and_ours_does_not(vae, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        compiled = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), loss=JitTrace_ELBO())
        compiled.step(x)
        with pytest.raises(RuntimeError, match="TorchScript"):
            compiled.step(x[:3])
    ours = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), loss=pv.objectives.ELBO())
    ours.step(x)
    assert math.isfinite(ours.step(x[:3]))


def test_07_nuts_compiles_a_frozen_decoder_and_no_registered_one(vae, x):
    frozen = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,)).requires_grad_(False)

    def model(y):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", frozen.decode(z), obs=y)

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        for program, data, works in ((model, x[0], True), (vae.model, x[:1], False)):
            chain = MCMC(NUTS(program, jit_compile=True, ignore_jit_warnings=True), 2, 2, disable_progbar=True)
            with nullcontext() if works else pytest.raises(RuntimeError, match="Unsupported value kind: Tensor"):
                chain.run(data)


def test_08_a_callable_loss_keeps_its_graph(vae, x, monkeypatch):
    kept, backward = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **how: kept.append(how) or backward(self, **how))
    for loss in (Trace_ELBO().differentiable_loss, pv.objectives.ELBO()):
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), loss=loss).step(x)
    assert kept[0] == {"retain_graph": True}
    assert not any(how.get("retain_graph") for how in kept[1:])


def test_08_an_objective_is_pyros_own_kind_of_loss_whose_graph_is_freed(vae, x):
    objective = pv.objectives.IWAE(num_particles=3)
    assert isinstance(objective, pyro.infer.ELBO)
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_09_a_step_without_gradients_still_moves_the_weights_and_a_look_does_not(vae, x):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
    svi.step(x)
    before = [part.clone() for part in vae.parameters()]
    pv.evaluate(vae, x, num_particles=10)
    assert all(torch.equal(one, other) for one, other in zip(before, vae.parameters(), strict=True))
    with torch.no_grad():
        svi.step(x)
    assert not any(torch.equal(one, other) for one, other in zip(before, vae.parameters(), strict=True))


def test_10_one_optimiser_for_all_parameters(vae, x, monkeypatch):
    stock = pyro.optim.Adam({"lr": 0.1})
    SVI(vae.model, vae.guide, stock, loss=Trace_ELBO()).step(x)
    assert len(stock.optim_objs) == len(list(vae.parameters()))
    made, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **kwargs: made.append(kwargs) or adam(*args, **kwargs))
    pv.fit(vae, x, num_epochs=1, batch_size=5)
    assert len(made) == 1
    assert made[0]["fused"]


def test_11_nothing_here_imports_what_turns_validation_off():
    assert not any(name.split(".")[0] == "zuko" for name in imported())


def test_12_the_generators_are_kept_without_a_pickle(vae, x, tmp_path):
    state = io.BytesIO()
    torch.save(pyro.util.get_rng_state(), state)
    state.seek(0)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(state, weights_only=True)
    pv.fit(vae, x, num_epochs=1, batch_size=5, checkpoint=tmp_path / "training.safetensors")
    assert (tmp_path / "training.safetensors").read_bytes()[8:9] == b"{"
