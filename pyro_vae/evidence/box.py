r"""Where a grid of latent values has to reach, and how fine it should start."""

from __future__ import annotations

__all__ = ["Box", "box_around"]

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.streaming import Moments
from ..pairs.density import Density
from .grid import Lattice

_GUIDE_WIDTHS, _PRIOR_WIDTHS = 8, 7  # standard deviations on either side
_DRAWS, _AT_ONCE, _PRIOR_DRAWS = 512, 16, 512
_FIRST_STEP = 1.1  # standard deviations: of a Gaussian, a sum that is off by 2e-7


class Box(NamedTuple):
    """A box of latent values in unconstrained coordinates."""

    low: Float[Tensor, " dim"]
    high: Float[Tensor, " dim"]
    step: Float[Tensor, " dim"]
    """Of the first lattice: near the smallest standard deviation of q(z | x), given the other dimension."""

    def lattice(self, most: int) -> Lattice:
        """Of at most so many nodes."""
        return Lattice.covering(self.low, self.high, self.step, most=most)

    def widened(self, dim: int, upper: bool) -> Box:
        """By half its width, on one side."""
        by = torch.zeros_like(self.low)
        by[dim] = (self.high - self.low)[dim] / 2
        return self._replace(high=self.high + by) if upper else self._replace(low=self.low - by)


def box_around(densities: Sequence[Density]) -> Box:
    """Of the prior and of the guide at every datapoint, as far as their draws tell."""
    num = sum(len(density.x) for density in densities)
    each = math.ceil(_PRIOR_DRAWS / num)
    prior = reduce(Moments.merge, (Moments.of(_draws(it.draw_prior, each).flatten(0, 1)) for it in densities))
    reach = _PRIOR_WIDTHS * torch.sqrt(prior.sum_squares / prior.num_particles)
    loc, scale, narrow = (torch.cat(parts) for parts in zip(*map(_of_guide, densities), strict=True))
    low = torch.cat([prior.mean - reach[None], loc - _GUIDE_WIDTHS * scale]).amin(0)
    high = torch.cat([prior.mean + reach[None], loc + _GUIDE_WIDTHS * scale]).amax(0)
    narrowest = torch.cat([reach[None] / _PRIOR_WIDTHS, narrow]).amin(0)
    return Box(low, high, _FIRST_STEP * narrowest)


def _draws(draw: Any, num: int) -> Float[Tensor, "particles batch latent"]:
    return torch.cat([draw(min(_AT_ONCE, num - done)) for done in range(0, num, _AT_ONCE)]).double()


def _of_guide(density: Density) -> tuple[Float[Tensor, "known latent"], ...]:
    """Means, standard deviations, and those of each dimension given the other, which a narrow diagonal needs."""
    q = _draws(density.draw, _DRAWS)
    q = q[:, torch.isfinite(q).all(-1).all(0)]  # the values of other rows will say what is wrong with them
    if not q.numel():
        return q[0], q[0], q[0]
    loc, scale = q.mean(0), q.std(0)
    if scale.shape[-1] == 1:
        return loc, scale, scale
    correlation = ((q - loc) / scale.clamp(min=torch.finfo(scale.dtype).tiny)).prod(-1, keepdim=True).mean(0)
    return loc, scale, scale * (1 - correlation**2).clamp(min=0).sqrt()
