r"""Proposals that need no fit: the guide, and a mixture of the guide and the prior."""

from __future__ import annotations

__all__ = [
    "Chunks",
    "Defensive",
    "Drawer",
    "Guided",
    "Rows",
    "even_blocks",
    "minority",
]

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..pairs.density import Density
from ..pairs.memory import room
from ..pairs.particles import particle_chunks
from ..pairs.traces import Program

Chunks = Iterator[tuple[slice, Float[Tensor, "particles batch"]]]
"""Blocks ``(rows, log_w)``."""
Rows = Int[Tensor, " chosen"]
Drawer = Callable[[Rows, int], Chunks]
"""From rows of the data and a number of draws to their log-weights; the slices count from the first of these rows."""
_SHARE = 0.1  # of a mixture's draws: those from the prior or, beside refined Gaussians, from the guide


class Guided(NamedTuple):
    """Draws from a guide."""

    model: Program
    guide: Program
    x: Tensor
    max_bytes: int

    def __call__(self, rows: Rows, num: int) -> Chunks:
        x = self.x[rows] if len(rows) < len(self.x) else self.x
        return particle_chunks(self.model, self.guide, x, num_particles=num, max_bytes=self.max_bytes)


class Defensive(NamedTuple):
    """A tenth of the draws from the prior, the others from the guide, see :meth:`Density.draw_defensive`."""

    model: Program
    guide: Program
    x: Tensor
    max_bytes: int

    def __call__(self, rows: Rows, num: int) -> Chunks:
        x = self.x[rows] if len(rows) < len(self.x) else self.x
        fits, apart = room(self.model, self.guide, x, self.max_bytes)
        start = 0
        for batch in x.split(min(256, max(1, fits // 4)) if apart else len(x)):
            span, density = slice(start, start + len(batch)), Density(self.model, self.guide, batch).require_guide()
            for size in even_blocks(num, max(4, fits // len(batch))):
                yield span, density.draw_defensive(size, minority(size))[1]
            start = span.stop


def even_blocks(num: int, most: int) -> list[int]:
    """``num`` draws in blocks of nearly equal size, so that each has draws from both parts of a mixture."""
    blocks = -(-num // most)
    return [num * (block + 1) // blocks - num * block // blocks for block in range(blocks)]


def minority(num: int) -> int:
    """How many of ``num`` draws are from the smaller part of a mixture."""
    return min(num - 1, max(1, round(_SHARE * num)))
