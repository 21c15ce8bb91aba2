r"""Regular lattices of points in a box, made finer by the points between them."""

from __future__ import annotations

__all__ = ["Lattice"]

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Lattice(NamedTuple):
    r"""The nodes :math:`\mathrm{low} + k \odot \mathrm{step}` for whole :math:`0 \le k_d < \mathrm{counts}_d`.

    Example:
        >>> lattice = Lattice.covering(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.5]), most=100)
        >>> [part.nodes(0, 9).flatten().tolist() for part in (lattice, *lattice.between())]
        [[0.0, 0.5, 1.0], [0.25, 0.75, 1.25]]
    """

    low: Float[Tensor, " dim"]
    step: Float[Tensor, " dim"]
    counts: tuple[int, ...]

    @classmethod
    def covering(
        cls, low: Float[Tensor, " dim"], high: Float[Tensor, " dim"], step: Float[Tensor, " dim"], *, most: int
    ) -> Lattice:
        """Over the box from low to high, with a step that is as much larger as it takes to have ``most`` nodes."""
        width = high - low
        step = step.minimum(width).maximum(width / most)
        while math.prod(counts := (1 + torch.ceil(width / step - 1e-9)).long().tolist()) > max(most, 2 ** len(step)):
            step = (1.05 * step).minimum(width)
        return cls(low, step, tuple(counts))

    @property
    def num_nodes(self) -> int:
        return math.prod(self.counts)

    @property
    def log_cell(self) -> float:
        """The logarithm of the volume that belongs to one node."""
        return self.step.log().sum().item()

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes dim"]:
        """Those with these numbers, the last dimension running fastest."""
        number = torch.arange(start, min(stop, self.num_nodes), device=self.low.device)
        return self.low + self.step * torch.stack(torch.unravel_index(number, self.counts), -1)

    def between(self) -> list[Lattice]:
        """The lattices that together with this one make the one of half the step."""
        halves = itertools.product((0.0, 0.5), repeat=len(self.counts))
        next(halves)  # this one
        return [self._replace(low=self.low + self.step * self.step.new_tensor(half)) for half in halves]

    def halved(self) -> Lattice:
        """The lattice of half the step."""
        return Lattice(self.low, self.step / 2, tuple(2 * count for count in self.counts))

    def faces(self) -> Iterator[tuple[int, bool, Lattice]]:
        """The outermost nodes by side: the dimension, whether it is its upper end, and the nodes there."""
        for dim, count in enumerate(self.counts):
            flat = (*self.counts[:dim], 1, *self.counts[dim + 1 :])
            for upper in (False, True):
                low = self.low.clone()
                low[dim] += upper * (count - 1) * self.step[dim]
                yield dim, upper, Lattice(low, self.step, flat)
