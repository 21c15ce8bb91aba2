"""The memory rule: how many bytes one particle of one datapoint takes."""

from __future__ import annotations

__all__ = ["Footprint", "held_for_gradient", "ignored_by_footprint", "largest_output", "measured"]

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import MixtureSameFamily
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from ..ops.seeds import forked
from .handlers import evaluating
from .running import Program, replay, trace
from .traces import guide_sites


class Footprint(NamedTuple):
    """The size of one particle of one datapoint."""

    bytes: int
    """The bytes of the largest tensor: an activation, the data, or the latent values."""
    latent_dim: int
    """The number of latent values."""
    num_sites: int
    """The number of latent sites of the guide."""


@torch.no_grad()
def measured(model: Program, guide: Program, x: Tensor) -> Footprint:
    """Run guide and model once on ``x`` and return the footprint, the mean over its rows."""
    with evaluating(model, guide), forked(), largest_output(len(x)) as largest:
        guide_trace = trace(guide, (x,), {})
        replay(model, guide_trace, (x,), {})
    values = [site["value"] for site in guide_sites(guide_trace).values()]
    most = max(largest(), x.nbytes, *(value.nbytes for value in values))
    return Footprint(-(-most // len(x)), sum(value.numel() for value in values) // len(x), len(values))


@contextmanager
def largest_output(rows: int) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes of the largest tensor that a module has returned in the body.

    A mixture that a module returned, such as a prior, counts as the density of ``rows`` datapoints under all its
    components.
    """
    here = threading.get_ident()
    sizes = [0]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != here or getattr(_IGNORED, "depth", 0):
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


def held_for_gradient(evaluate: Callable[[], object]) -> int:
    """Return the bytes of the tensors that an evaluation keeps for its gradient, parameters included."""
    held: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.nbytes
        return value

    with saved_tensors_hooks(note, lambda value: value):
        evaluate()
    return sum(held.values())


@contextmanager
def ignored_by_footprint() -> Iterator[None]:
    """Leave the outputs of modules in the body out of the footprint: they are no larger for more datapoints."""
    _IGNORED.depth = getattr(_IGNORED, "depth", 0) + 1
    try:
        yield
    finally:
        _IGNORED.depth -= 1


_IGNORED = threading.local()
