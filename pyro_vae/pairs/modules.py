"""The networks behind Pyro functions: finding them, and what a result depends on."""

from __future__ import annotations

__all__ = ["leaves", "modules_behind"]

import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def modules_behind(*programs: Any) -> list[nn.Module]:
    """Return the modules that Pyro functions use: themselves, their owners, and those they wrap, close over or name."""
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
            waiting.append(value.__func__)
            waiting += [owner] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()
        elif isinstance(value, functools.partial):  # also what a poutine returns
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif inspect.isfunction(value):
            near = [part for function in {value, inspect.unwrap(value)} for part in _named_in(function)]
            # Helper functions of the same file are followed, libraries are not.
            waiting += [part for part in near if getattr(part, "__module__", value.__module__) == value.__module__]
            waiting += [part for part in near if isinstance(part, nn.Module)]
        elif callable(value) and not isinstance(value, type):
            waiting += getattr(value, "__dict__", {}).values()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += [part for part in value if not isinstance(part, (int, float, str, Tensor))]
    return list(reversed(found))


def _named_in(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the values that a function closes over, has as defaults, or loads from its globals, in inner functions too.

    ``inspect.getclosurevars`` would also take the attribute in ``nets.decoder`` for a global of that name.
    """
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    codes = [function.__code__]
    for code in codes:
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL" and instruction.argval in function.__globals__:
                yield function.__globals__[instruction.argval]


def leaves(result: Tensor, *inputs: Any) -> Iterator[Tensor]:
    """Yield the tensors by which ``result`` can be differentiated, other than the inputs and what is behind them."""
    inputs = tuple(value for value in tree_leaves(inputs) if isinstance(value, Tensor))
    seen = {value.grad_fn for value in inputs}
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
