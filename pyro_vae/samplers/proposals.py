r"""What to draw from: the guide, the guide inflated, or a mixture of the guide and the prior."""

from __future__ import annotations

__all__ = [
    "Chunks",
    "Defensive",
    "Drawer",
    "Guided",
    "Rows",
    "even_blocks",
    "inflated",
    "minority",
]

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
from jaxtyping import Float, Int
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, constraints
from torch.distributions.transforms import AffineTransform

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


def inflated(guide: Program, scale: float) -> Program:
    r"""The guide with every site inflated around its mean, :math:`z \mapsto \mathbb E[z] + s\,(z - \mathbb E[z])`.

    Sites whose values are constrained, or whose distribution has no finite mean, stay as they are; so do point masses,
    which follow the sites that they are computed from.
    """
    return Inflation(scale)(guide)


class Inflation(Messenger):
    """Replaces the distributions of latent sites as they are sampled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            msg["fn"] = _spread(msg["fn"], self.scale)


def _spread(fn: Any, scale: float) -> Any:
    if isinstance(fn, Independent):
        return dist.Independent(_spread(fn.base_dist, scale), fn.reinterpreted_batch_ndims)
    if isinstance(fn, Normal):
        return dist.Normal(fn.loc, scale * fn.scale, validate_args=False)  # the guide's own has been, if it is to be
    if isinstance(fn, MultivariateNormal):
        return dist.MultivariateNormal(fn.loc, scale_tril=scale * fn.scale_tril, validate_args=False)
    if isinstance(fn, (dist.Delta, dist.MaskedDistribution)) or not fn.has_rsample:
        return fn
    try:
        mean, real = fn.mean, constraints.independent(constraints.real, fn.event_dim)
    except NotImplementedError:
        return fn
    if repr(fn.support) not in (repr(real), repr(constraints.real)) or not mean.isfinite().all():
        return fn
    return dist.TransformedDistribution(fn, [AffineTransform(mean * (1 - scale), scale, event_dim=fn.event_dim)])
