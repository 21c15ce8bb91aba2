r"""Grids of latent values: their extent, their first step, and their halvings."""

from __future__ import annotations

__all__ = ["Box", "Grid", "box_around"]

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.streaming import Moments
from ..pairs.density import Density

_GUIDE_WIDTHS, _PRIOR_WIDTHS = 8, 7  # standard deviations on either side
_DRAWS, _AT_ONCE, _PRIOR_DRAWS = 512, 16, 512
_FIRST_STEP = 1.1  # standard deviations: the sum over a Gaussian is then off by 2e-7


class Grid(NamedTuple):
    r"""The nodes :math:`\mathrm{low} + k \odot \mathrm{step}` for integers :math:`0 \le k_d < \mathrm{counts}_d`.

    Example:
        >>> grid = Grid.covering(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.5]), max_nodes=100)
        >>> [part.nodes(0, 9).flatten().tolist() for part in (grid, *grid.between())]
        [[0.0, 0.5, 1.0], [0.25, 0.75, 1.25]]
    """

    low: Float[Tensor, " dim"]
    step: Float[Tensor, " dim"]
    counts: tuple[int, ...]

    @classmethod
    def covering(
        cls, low: Float[Tensor, " dim"], high: Float[Tensor, " dim"], step: Float[Tensor, " dim"], *, max_nodes: int
    ) -> Grid:
        """Return the grid over the box from low to high, with a step that leaves at most ``max_nodes`` nodes."""
        width = high - low
        step = step.minimum(width).maximum(width / max_nodes)
        max_nodes = max(max_nodes, 2 ** len(step))
        while math.prod(counts := (1 + torch.ceil(width / step - 1e-9)).long().tolist()) > max_nodes:
            step = (1.05 * step).minimum(width)
        return cls(low, step, tuple(counts))

    @property
    def num_nodes(self) -> int:
        return math.prod(self.counts)

    @property
    def log_cell(self) -> float:
        """The logarithm of the volume of one cell."""
        return self.step.log().sum().item()

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes dim"]:
        """Return the nodes from number ``start`` to before ``stop``; the last dimension runs fastest."""
        number = torch.arange(start, min(stop, self.num_nodes), device=self.low.device)
        return self.low + self.step * torch.stack(torch.unravel_index(number, self.counts), -1)

    def between(self) -> list[Grid]:
        """Return the grids that, together with this one, make up the grid of half the step."""
        halves = itertools.product((0.0, 0.5), repeat=len(self.counts))
        next(halves)  # no half step at all, which is this grid
        return [self._replace(low=self.low + self.step * self.step.new_tensor(half)) for half in halves]

    def halved(self) -> Grid:
        """Return the grid of half the step."""
        return Grid(self.low, self.step / 2, tuple(2 * count for count in self.counts))

    def faces(self) -> Iterator[tuple[int, bool, Grid]]:
        """Yield the outermost nodes by side: the dimension, whether this is its upper end, and the nodes there."""
        for dim, count in enumerate(self.counts):
            flat = (*self.counts[:dim], 1, *self.counts[dim + 1 :])
            for upper in (False, True):
                low = self.low.clone()
                low[dim] += upper * (count - 1) * self.step[dim]
                yield dim, upper, Grid(low, self.step, flat)


class Box(NamedTuple):
    """A box of latent values in unconstrained coordinates."""

    low: Float[Tensor, " dim"]
    high: Float[Tensor, " dim"]
    step: Float[Tensor, " dim"]
    """The step of the first grid: about the smallest standard deviation of q(z | x), given the other dimension."""

    def grid(self, max_nodes: int) -> Grid:
        """Return the grid of at most ``max_nodes`` nodes."""
        return Grid.covering(self.low, self.high, self.step, max_nodes=max_nodes)

    def widened(self, dim: int, upper: bool) -> Box:
        """Return the box widened by half its width, on one side."""
        by = torch.zeros_like(self.low)
        by[dim] = (self.high - self.low)[dim] / 2
        return self._replace(high=self.high + by) if upper else self._replace(low=self.low - by)


def box_around(densities: Sequence[Density]) -> Box:
    """Return the box around draws from the prior and from the guide at every datapoint."""
    num = sum(map(len, densities))
    each = math.ceil(_PRIOR_DRAWS / num)
    prior = reduce(Moments.merge, (Moments.of(_draws(part.draw_prior, each).flatten(0, 1)) for part in densities))
    reach = _PRIOR_WIDTHS * torch.sqrt(prior.sum_squares / prior.num_particles)
    loc, scale, narrow = (torch.cat(parts) for parts in zip(*map(_guide_moments, densities), strict=True))
    low = torch.cat([prior.mean - reach[None], loc - _GUIDE_WIDTHS * scale]).amin(0)
    high = torch.cat([prior.mean + reach[None], loc + _GUIDE_WIDTHS * scale]).amax(0)
    narrowest = torch.cat([reach[None] / _PRIOR_WIDTHS, narrow]).amin(0)
    return Box(low, high, _FIRST_STEP * narrowest)


def _draws(draw: Any, num: int) -> Float[Tensor, "particles batch latent"]:
    return torch.cat([draw(min(_AT_ONCE, num - done)) for done in range(0, num, _AT_ONCE)]).double()


def _guide_moments(density: Density) -> tuple[Float[Tensor, "known latent"], ...]:
    """Return means, standard deviations, and those given the other dimension, for posteriors along a diagonal."""
    q = _draws(density.draw, _DRAWS)
    q = q[:, torch.isfinite(q).all(-1).all(0)]  # other rows get values that are not finite
    if not q.numel():
        return q[0], q[0], q[0]
    loc, scale = q.mean(0), q.std(0)
    if scale.shape[-1] == 1:
        return loc, scale, scale
    correlation = ((q - loc) / scale.clamp(min=torch.finfo(scale.dtype).tiny)).prod(-1, keepdim=True).mean(0)
    return loc, scale, scale * (1 - correlation**2).clamp(min=0).sqrt()
