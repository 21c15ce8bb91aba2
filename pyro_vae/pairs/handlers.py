"""The conditions under which a pair is evaluated: nothing trains, nothing is registered, no generator moves."""

from __future__ import annotations

__all__ = ["evaluating", "evaluation_mode", "registering", "unregistered", "unvalidated"]

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import StaleParamStoreError
from ..ops.seeds import seeded
from .modules import modules_behind


@contextmanager
def evaluation_mode(*programs: Any, seed: tuple[int | str, ...]) -> Iterator[None]:
    """Train nothing and register nothing in the body, and leave the caller's generators as they were.

    Draws in the body depend on ``seed`` alone. Gradients are off, but can be switched on in the body, also if the
    caller is in inference mode; networks are in evaluation mode, and afterwards in the mode that they were in.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluating(*programs),
        unregistered(agreeing=True),
        seeded(*seed),
    ):
        yield


class unregistered(Messenger):  # noqa: N801  (Pyro names its handlers like functions)
    """Use the parameters of ``nn.Module`` objects as they are, without Pyro's global parameter store.

    Evaluation and training as a module need no store: nothing is written to it, and two modules of the same name do not
    collide. A plain ``pyro.param("name", init)`` still lives in the store, which is its only home.

    Arguments:
        agreeing: Raise :class:`~pyro_vae.errors.StaleParamStoreError` where the store holds other values under a
            parameter's name: stock Pyro would compute with those, and nobody can know which are meant.
    """

    def __init__(self, *, agreeing: bool = False) -> None:
        super().__init__()
        self._agreeing = agreeing
        self._stored: dict[str, Tensor] = {}
        self._scope = ExitStack()

    def __enter__(self) -> unregistered:
        # A PyroModule reads and writes the store without a message: it gets one without anybody's parameters.
        store = pyro.get_param_store()
        state: Any = store.get_state()
        self._stored = state["params"]
        plain = [name for name, value in state["params"].items() if not isinstance(value, nn.Parameter)]
        kept: Any = {key: {name: of[name] for name in plain} for key, of in state.items()}
        self._scope.enter_context(store.scope(kept))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._scope.close()

    def _pyro_param(self, msg: Any) -> None:
        name, *init = msg["args"]
        # With a constraint, the parameter that trains is another one, which only the store knows.
        if not init or not isinstance(init[0], nn.Parameter) or msg["kwargs"]["constraint"] is not constraints.real:
            return
        stored = self._stored.get(name)
        if self._agreeing and stored is not None and not torch.equal(stored, init[0]):
            raise StaleParamStoreError(
                f"Pyro's parameter store holds other values under {name!r} than the module that the pair uses: copy "
                "them into its parameters, delete them (pyro.clear_param_store()), or give the module another name"
            )
        msg["value"] = init[0]
        msg["done"] = True
        msg["stop"] = True


def registering() -> bool:
    """Return whether parameters are registered with Pyro's store, as they are outside of :class:`unregistered`."""
    return not any(isinstance(handler, unregistered) for handler in _PYRO_STACK)


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """Put the programs' modules into evaluation mode, and afterwards back into the mode that they were in.

    Otherwise a batch normalisation would train on the data that it is evaluated on, and a datapoint's bound would
    depend on the rest of the batch. Modules that cannot be found behind the programs are switched when they are called.
    """
    here = threading.get_ident()
    switched: list[nn.Module] = []

    def switch(module: nn.Module, *_: Any) -> None:
        if module.training and threading.get_ident() == here:  # another thread may be training
            module.training = False
            switched.append(module)

    for found in modules_behind(*programs):
        for part in found.modules():
            switch(part)
    hook = register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for part in switched:
            part.training = True


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let distributions skip the check of their values: a trajectory that diverges is rejected, it need not raise."""
    before: Any = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
