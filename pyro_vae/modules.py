"""The networks behind Pyro functions: finding them, and running them as they are."""

from __future__ import annotations

__all__ = ["evaluating", "modules_behind", "unregistered"]

import functools
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import nn

from .errors import PairError


class unregistered(Messenger):  # noqa: N801  (Pyro names its handlers like functions)
    """Use the parameters of ``nn.Module`` s as they are, without Pyro's global parameter store.

    Evaluation and training as a module need no store: nothing is written to it, and two modules that were given the
    same name do not collide. A plain ``pyro.param("name", init)`` still lives in the store, its only home.
    """

    def __init__(self, owner: nn.Module | None = None) -> None:
        super().__init__()
        self._owner = owner
        self._known: set[nn.Parameter] = set()

    def _pyro_param(self, msg: Any) -> None:
        parameter = msg["args"][1] if len(msg["args"]) > 1 else None
        if not isinstance(parameter, nn.Parameter):
            return
        if self._owner is not None and parameter not in self._known:
            self._known = set(self._owner.parameters())
            if parameter not in self._known:
                raise PairError(
                    f"parameter {msg['name']!r} is used by the pair but was not found behind its functions, so it "
                    "would not be trained: make model and guide methods of an nn.Module that owns all networks"
                )
        msg["value"] = parameter
        msg["done"] = True
        msg["stop"] = True


def modules_behind(program: Any) -> Iterator[nn.Module]:
    """The modules that a Pyro function uses: itself, its owner, what it wraps, closes over or names."""
    if isinstance(program, nn.Module):
        yield program
    elif inspect.ismethod(program):
        owner = program.__self__
        yield from _modules_in([owner] if isinstance(owner, nn.Module) else vars(owner).values())
    elif isinstance(program, functools.partial) or hasattr(program, "func"):  # also what a poutine returns
        partial: Any = program
        for part in (partial.func, *partial.args, *partial.keywords.values()):
            if callable(part):
                yield from modules_behind(part)
    elif inspect.isfunction(program):
        names = inspect.getclosurevars(inspect.unwrap(program))
        yield from _modules_in([*names.nonlocals.values(), *names.globals.values()])


def _modules_in(values: Iterable[Any]) -> Iterator[nn.Module]:
    """The modules among some values, and in the lists, tuples and dictionaries among them."""
    for value in values:
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, dict):
            yield from _modules_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _modules_in(value)


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """The modules behind the programs in evaluation mode, and afterwards in the mode that they were in.

    Otherwise a batch normalisation would train on what it is evaluated on, and a datapoint's bound depend on the rest
    of the batch.
    """
    parts = {part for program in programs for found in modules_behind(program) for part in found.modules()}
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True
