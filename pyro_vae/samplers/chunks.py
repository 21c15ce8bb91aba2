r"""How chains go through the data: block by block, so that they and their gradients fit into memory."""

from __future__ import annotations

__all__ = ["blockwise", "in_pieces", "per_chain"]

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..errors import require_count
from ..ops.seeds import forked
from ..pairs.density import Density
from ..pairs.handlers import untouched
from ..pairs.progress import progress_bar
from ..pairs.traces import Program
from ..pairs.vectorization import rows_apart
from .tempering import Path, Start, unvalidated

T = TypeVar("T")


def blockwise(
    work: Callable[[Path, slice, int], T],
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    start: Start,
    num_chains: int,
    evaluations: Callable[[int], int],
    seed: tuple[Any, ...],
    max_bytes: int,
    progress: bool,
) -> list[T]:
    """What ``work`` returns for each run of rows of ``x``: it gets a path, the rows, and how many chains will fit.

    Nothing is trained, Pyro's store is not written to, and the caller's generator stays where it is.

    Arguments:
        num_chains: How many chains of a datapoint there are to be at once, if memory allows.
        evaluations: From the number of chains that fit to how often each datapoint will be evaluated.
    """
    max_bytes = require_count("max_bytes", max_bytes)
    with untouched(model, guide, seed=seed):
        rows, most = _plan(model, guide, x, start, num_chains, max_bytes)
        total = len(x) * evaluations(most)
        with progress_bar(total, progress) as bar:
            spans = [slice(first, min(first + rows, len(x))) for first in range(0, len(x), rows)]
            return [work(_path(model, guide, x[span], start, bar.update), span, most) for span in spans]


def _path(model: Program, guide: Program, x: Tensor, start: Start, note: Callable[[int], object]) -> Path:
    """The path, once pair and data have been looked at: distributions are made not to check values, then."""
    density = Density(model, guide, x)
    density.terms(density.draw(1))
    with unvalidated():
        return Path(Density(model, guide, x), start, note)


def _plan(model: Program, guide: Program, x: Tensor, start: Start, num_chains: int, max_bytes: int) -> tuple[int, int]:
    """How many rows, and how many chains of each, fit ``max_bytes``."""
    if not rows_apart(model, guide, x):
        return len(x), max(1, min(num_chains, max_bytes // per_chain(model, guide, x, start)))
    fits = max(1, max_bytes // per_chain(model, guide, x[:1], start))
    return max(1, fits // num_chains), min(num_chains, fits)


def per_chain(model: Program, guide: Program, x: Tensor, start: Start) -> int:
    """Bytes that one evaluation of one more chain of each datapoint holds on to, with room for temporary values."""
    with forked(), unvalidated():
        path = Path(Density(model, guide, x), start)
        u = path.draw(2)
        more = _held(path, u) - _held(path, u[:1])
    return 3 * max(more, x.nbytes)


def _held(path: Path, u: Tensor) -> int:
    """What is kept for the gradient, parameters included."""
    held: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.nbytes
        return value

    with saved_tensors_hooks(note, lambda value: value):
        path.begin(u, 0.5)
    return sum(held.values())


def in_pieces(draw: Callable[[int], Tensor], num: int, most: int) -> Tensor:
    """``num`` of what ``draw`` makes, at most ``most`` at a time."""
    return torch.cat([draw(min(most, num - done)) for done in range(0, num, most)])
