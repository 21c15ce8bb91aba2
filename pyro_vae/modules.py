"""The networks behind Pyro functions: finding them, and running them as they are."""

from __future__ import annotations

__all__ = [
    "TakesMissing",
    "aside",
    "bounded",
    "data_for",
    "evaluating",
    "largest_output",
    "leaves",
    "modules_behind",
    "programs_of",
    "registering",
    "suited",
    "takes_missing",
    "unregistered",
]

import dis
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily, constraints
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from .arrays import as_batch
from .errors import PairError, StaleParamStoreError


class unregistered(Messenger):  # noqa: N801  (Pyro names its handlers like functions)
    """Use the parameters of ``nn.Module`` s as they are, without Pyro's global parameter store.

    Evaluation and training as a module need no store: nothing is written to it, and two modules that were given the
    same name do not collide. A plain ``pyro.param("name", init)`` still lives in the store, its only home.

    Arguments:
        agreeing: Raise :class:`~pyro_vae.errors.StaleParamStoreError` where the store holds other values under a
            parameter's name: then stock Pyro would compute with those, and which are meant cannot be known.
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
    """Whether parameters are to be registered with Pyro's store: outside :class:`unregistered`."""
    return not any(isinstance(handler, unregistered) for handler in _PYRO_STACK)


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
    """The values that a function closes over, has as defaults, or loads from its globals, in inner functions too.

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


def bounded(parameter: Tensor, low: float, high: float, *, training: bool) -> Tensor:
    """A parameter within its bounds.

    In training it is itself put back onto the bound: clamped alone, it would have no gradient there, and never return.
    """
    if not training or not isinstance(parameter, nn.Parameter):
        return parameter.clamp(low, high)
    with torch.no_grad():
        inside = parameter.clamp(low, high)
        if not torch.equal(inside, parameter):
            parameter.copy_(inside)
    return parameter


@contextmanager
def aside() -> Iterator[None]:
    """Run the body without :func:`largest_output` taking note: what it makes is no larger for more datapoints."""
    _ASIDE.depth = getattr(_ASIDE, "depth", 0) + 1
    try:
        yield
    finally:
        _ASIDE.depth -= 1


_ASIDE = threading.local()


def leaves(result: Tensor, *inputs: Any) -> Iterator[Tensor]:
    """The tensors that ``result`` can be differentiated by, other than through the inputs."""
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


def suited(x: Tensor, *programs: Any) -> Tensor:
    """``x`` where the programs' parameters are and, if it is floating, of their type; never an inference tensor."""
    like = next((parameter for part in modules_behind(*programs) for parameter in part.parameters()), None)
    with torch.inference_mode(False):
        x = x.clone() if x.is_inference() else x  # what was made in inference mode can have no part in a gradient
        if like is None:
            return x
        return x.to(device=like.device, dtype=like.dtype if x.is_floating_point() else None)


def programs_of(pair: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The model and the guide of a tuple of both, or of an object that has them.

    Errors:
        PairError: for anything else.
    """
    found: Any = pair if isinstance(pair, (tuple, list)) else [getattr(pair, it, None) for it in ("model", "guide")]
    if len(found) != 2 or not all(map(callable, found)):
        raise PairError(f"pair: expected (model, guide), or an object with both, found {type(pair).__name__}")
    return found[0], found[1]


class TakesMissing(nn.Module):
    """A pair of programs to which NaN in the data means: not observed."""


def data_for(x: Any, *programs: Any, name: str = "x") -> Tensor:
    """The door for data: a finite batch for these programs, in which NaN is legal for those that know what it means.

    Errors:
        DataError: for empty data, and non-finite values, with the count and the first index.
    """
    return suited(as_batch(x, name=name, missing=takes_missing(*programs)), *programs)


def takes_missing(*programs: Any) -> bool:
    """Whether NaN is legal in the data of these programs."""
    return any(isinstance(part, TakesMissing) for part in modules_behind(*programs))


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """The programs' modules in evaluation mode, and afterwards in the mode that they were in.

    Otherwise a batch normalisation would train on what it is evaluated on, and a datapoint's bound depend on the rest
    of the batch. Modules that cannot be found behind the programs are met when they are called.
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
def largest_output(rows: int) -> Iterator[Callable[[], int]]:
    """A function that says how many bytes the largest tensor holds that a module returned in the body.

    A mixture that a module returned, such as a prior, counts as the density of so many rows under all its components.
    """
    here = threading.get_ident()
    sizes = [0]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != here or getattr(_ASIDE, "depth", 0):
            return
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                sizes.append(value.nbytes)
            elif isinstance(value, MixtureSameFamily):
                sizes.append(rows * value.component_distribution.mean.nbytes)

    hook = register_module_forward_hook(note)
    try:
        yield lambda: max(sizes)
    finally:
        hook.remove()
