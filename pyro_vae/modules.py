"""The networks behind Pyro functions: finding them, and running them as they are."""

from __future__ import annotations

__all__ = ["evaluating", "leaves", "modules_behind", "suited", "unregistered"]

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn


class unregistered(Messenger):  # noqa: N801  (Pyro names its handlers like functions)
    """Use the parameters of ``nn.Module`` s as they are, without Pyro's global parameter store.

    Evaluation and training as a module need no store: nothing is written to it, and two modules that were given the
    same name do not collide. A plain ``pyro.param("name", init)`` still lives in the store, its only home.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scope = ExitStack()

    def __enter__(self) -> unregistered:
        # A PyroModule reads and writes the store without a message: it gets one without anybody's parameters.
        store = pyro.get_param_store()
        state: Any = store.get_state()
        plain = [name for name, value in state["params"].items() if not isinstance(value, nn.Parameter)]
        kept: Any = {key: {name: of[name] for name in plain} for key, of in state.items()}
        self._scope.enter_context(store.scope(kept))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._scope.close()

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter):
            msg["value"] = msg["args"][1]
            msg["done"] = True
            msg["stop"] = True


def modules_behind(*programs: Any) -> list[nn.Module]:
    """The modules that Pyro functions use: themselves, their owners, what they wrap, close over or name."""
    found: dict[nn.Module, None] = {}
    seen: set[int] = set()
    waiting = list(programs)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found[value] = None
        elif inspect.ismethod(value):
            owner = value.__self__
            waiting += [owner] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()
        elif isinstance(value, functools.partial):  # also what a poutine returns
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif inspect.isfunction(value):
            names = inspect.getclosurevars(inspect.unwrap(value))
            near = [*names.nonlocals.values(), *names.globals.values()]
            # Helper functions of the same file are followed, libraries are not.
            waiting += [part for part in near if getattr(part, "__module__", value.__module__) == value.__module__]
            waiting += [part for part in near if isinstance(part, nn.Module)]
        elif callable(value) and not isinstance(value, type):
            waiting += getattr(value, "__dict__", {}).values()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return list(reversed(found))


def leaves(result: Tensor, *inputs: Any) -> Iterator[Tensor]:
    """The tensors that ``result`` can be differentiated by, other than through the inputs."""
    seen = {value.grad_fn for value in inputs if isinstance(value, Tensor)}
    waiting: list[Any] = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is value for value in inputs):
            yield leaf


def suited(x: Tensor, *programs: Any) -> Tensor:
    """``x`` where the programs' parameters are and, if it is floating, of their type."""
    like = next((parameter for part in modules_behind(*programs) for parameter in part.parameters()), None)
    if like is None:
        return x
    return x.to(device=like.device, dtype=like.dtype if x.is_floating_point() else None)


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """The modules behind the programs in evaluation mode, and afterwards in the mode that they were in.

    Otherwise a batch normalisation would train on what it is evaluated on, and a datapoint's bound depend on the rest
    of the batch.
    """
    parts = {part for found in modules_behind(*programs) for part in found.modules()}
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True
