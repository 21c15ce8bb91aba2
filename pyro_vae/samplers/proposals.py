r"""Proposals that need no fit: the guide, and a mixture of the guide and the prior."""

from __future__ import annotations

__all__ = ["DefensiveProposal", "GuideProposal", "Proposer", "Rows", "WeightBlocks", "even_blocks", "minor_share"]

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..pairs.density import Density
from ..pairs.pair import Pair
from ..pairs.particles import particle_blocks

WeightBlocks = Iterator[tuple[slice, Float[Tensor, "particles batch"]]]
"""Blocks ``(rows, log_w)``."""
Rows = Int[Tensor, " chosen"]
Proposer = Callable[[Rows, int], WeightBlocks]
"""From rows of the data and a number of draws to their log-weights; the slices count from the first of these rows."""
_MINOR_SHARE = 0.1  # of a mixture's draws: those from the prior or, beside fitted Gaussians, from the guide
_MAX_ROWS = 256


class GuideProposal(NamedTuple):
    """Draws from the guide."""

    pair: Pair
    max_bytes: int

    def __call__(self, rows: Rows, num: int) -> WeightBlocks:
        return particle_blocks(self.pair.rows(rows), num_particles=num, max_bytes=self.max_bytes)


class DefensiveProposal(NamedTuple):
    """A tenth of the draws from the prior, the others from the guide, see :meth:`Density.draw_defensive`."""

    pair: Pair
    max_bytes: int

    def __call__(self, rows: Rows, num: int) -> WeightBlocks:
        for span, block, most in self.pair.rows(rows).blocks(self.max_bytes, num_particles=4, max_rows=_MAX_ROWS):
            density = Density(block).require_guide()
            for size in even_blocks(num, max(4, most)):
                yield span, density.draw_defensive(size, minor_share(size))[1]


def even_blocks(num: int, most: int) -> list[int]:
    """Return the sizes of blocks of nearly equal size, so that each has draws from both parts of a mixture."""
    blocks = -(-num // most)
    return [num * (block + 1) // blocks - num * block // blocks for block in range(blocks)]


def minor_share(num: int) -> int:
    """Return how many of ``num`` draws are from the smaller part of a mixture."""
    return min(num - 1, max(1, round(_MINOR_SHARE * num)))
