"""Chains for all data, block by block, so that they and their gradients fit into memory."""

from __future__ import annotations

__all__ = ["blockwise", "chain_bytes", "in_pieces"]

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import require_count
from ..ops.seeds import forked
from ..pairs.density import Density
from ..pairs.handlers import unvalidated
from ..pairs.memory import held_for_gradient
from ..pairs.pair import Pair
from ..pairs.progress import progress_bar
from .tempering import Start, TemperedPath

T = TypeVar("T")


def blockwise(
    work: Callable[[TemperedPath, slice, int], T],
    pair: Pair,
    *,
    start: Start,
    num_chains: int,
    evaluations: Callable[[int], int],
    seed: tuple[Any, ...],
    max_bytes: int,
    progress: bool,
) -> list[T]:
    """Return the results of ``work`` for consecutive blocks of rows.

    ``work`` gets a path, the rows, and the number of chains that fit into memory. Nothing is trained, Pyro's store is
    not written to, and the caller's generator stays where it is.

    Arguments:
        num_chains: The number of chains of a datapoint that should run together, if memory allows.
        evaluations: From the number of chains that fit to the number of evaluations of each datapoint.
    """
    max_bytes = require_count("max_bytes", max_bytes)
    with pair.evaluation(*seed):
        capacity = max(1, max_bytes // chain_bytes(pair, start))
        blocks = list(pair.blocks(max_bytes, num_particles=num_chains, capacity=capacity))
        most = min(num_chains, blocks[0].max_particles)
        with progress_bar(len(pair) * evaluations(most), progress) as bar:
            return [work(_path(block, start, bar.update), span, most) for span, block, _ in blocks]


def _path(pair: Pair, start: Start, on_progress: Callable[[int], object]) -> TemperedPath:
    """Return a path whose distributions do not check values, once pair and data have been checked."""
    density = Density(pair)
    density.terms(density.draw(1))
    with unvalidated():
        return TemperedPath(Density(pair), start, on_progress)


def chain_bytes(pair: Pair, start: Start) -> int:
    """Return the bytes that one evaluation of one more chain of one datapoint holds, with room for temporaries."""
    some = pair.first(1)
    with forked(), unvalidated():
        path = TemperedPath(Density(some), start)
        u = path.draw(2)
        more = held_for_gradient(lambda: path.begin(u, 0.5)) - held_for_gradient(lambda: path.begin(u[:1], 0.5))
    return -(-3 * max(more, some.x.nbytes) // len(some))


def in_pieces(draw: Callable[[int], Tensor], num: int, most: int) -> Tensor:
    """Return ``num`` draws, made at most ``most`` at a time."""
    return torch.cat([draw(min(most, num - done)) for done in range(0, num, most)])
