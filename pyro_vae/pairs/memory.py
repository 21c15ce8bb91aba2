"""How many rows and particles of a pair fit into memory."""

from __future__ import annotations

__all__ = ["aside", "blocks_of", "largest_output", "room", "row_blocks"]

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from ..errors import require_count
from ..ops.seeds import forked
from .density import Density
from .handlers import evaluating
from .traces import Program, guide_sites, replay, trace
from .vectorization import rows_apart


@contextmanager
def aside() -> Iterator[None]:
    """Run the body without :func:`largest_output` taking note: what it makes is no larger for more datapoints."""
    _ASIDE.depth = getattr(_ASIDE, "depth", 0) + 1
    try:
        yield
    finally:
        _ASIDE.depth -= 1


_ASIDE = threading.local()


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


def room(model: Program, guide: Program, x: Tensor, max_bytes: int) -> tuple[int, bool]:
    """How many rows, of one particle each, fit ``max_bytes``; and whether ``x`` may be cut into blocks."""
    if rows_apart(model, guide, x):
        return max(1, max_bytes // _bytes_per_row(model, guide, x[:1])), True
    return max(1, max_bytes * len(x) // _bytes_per_row(model, guide, x)), False


@torch.no_grad()
def _bytes_per_row(model: Program, guide: Program, x: Tensor) -> int:
    """What one particle of each datapoint takes while it is weighed: a few copies of its largest activation."""
    copies = 8  # activations and temporaries
    with evaluating(model, guide), forked(), largest_output(len(x)) as largest:
        guide_trace = trace(guide, (x,), {})
        replay(model, guide_trace, (x,), {})
    values = [x, *(site["value"] for site in guide_sites(guide_trace).values())]
    return copies * max(largest(), *(value.nbytes for value in values))


def blocks_of(model: Program, guide: Program, x: Tensor, rows: int) -> tuple[Tensor, ...]:
    """``x`` cut into blocks of at most ``rows``, or left whole for a pair that does not take its datapoints apart."""
    return x.split(rows) if len(x) <= rows or rows_apart(model, guide, x) else (x,)


_MOST_ROWS = 1024


_COPIES = 8  # of the largest activation: what is kept for a gradient, and temporaries


def row_blocks(
    model: Program, guide: Program, x: Tensor, *, num_particles: int, max_bytes: int, square: bool = False
) -> tuple[list[slice], int]:
    """Runs of rows of ``x`` whose ``num_particles`` fit ``max_bytes``, and how many particles of one run fit.

    ``square`` also counts matrices of the latent dimension, one per row. A pair that does not take its datapoints one
    by one gets all of them.
    """
    max_bytes = require_count("max_bytes", max_bytes)
    apart = rows_apart(model, guide, x)
    each, dim = _bytes(model, guide, x[:1] if apart else x)
    fits = max(1, max_bytes // each)
    if not apart:
        return [slice(0, len(x))], fits
    rows = min(_MOST_ROWS, len(x), max(1, fits // num_particles))
    if square:
        rows = min(rows, max(1, max_bytes // (8 * _COPIES * dim * dim)))
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)], max(1, fits // rows)


@torch.no_grad()
def _bytes(model: Program, guide: Program, x: Tensor) -> tuple[int, int]:
    """What one particle of each row takes, and the latent dimension."""
    with forked(), largest_output(len(x)) as largest:
        density = Density(model, guide, x)
        u = density.draw(1)
        density.terms(u)
    return _COPIES * max(largest(), x.nbytes, u.nbytes), density.dim
