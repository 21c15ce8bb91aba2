r"""A proposal of the evaluator's own: for each datapoint the Gaussian with the largest ELBO, beside the guide."""

from __future__ import annotations

__all__ = ["REFINEMENT_EVALUATIONS", "Refined", "inflation", "mixture_weights", "refined"]

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ops.weights import log_mixture
from ..pairs.density import Density
from ..pairs.memory import room
from ..pairs.traces import Program
from . import Full, Plan, best_member, start_of
from .proposals import Chunks, Rows, even_blocks, minority

_NUM_STEPS, _STEP_PARTICLES, _LEARNING_RATE, _JUDGED_BY = 200, 10, 0.05, 100
_MOST_ROWS = 256
_GRAPH = 4  # what a gradient keeps, in activations

REFINEMENT_EVALUATIONS = _NUM_STEPS * _STEP_PARTICLES + _JUDGED_BY
"""Per datapoint, most of them with a gradient."""


class Refined(NamedTuple):
    r"""A tenth of the draws from the guide, the others from a full-covariance Gaussian :math:`g_b` for each datapoint.

    .. math:: w = p(x, z) / \big(\alpha\, q(z \mid x) + (1 - \alpha)\, g_b(z)\big)

    The Gaussian has found one mode; the guide may know of others, and no weight exceeds ten times its own.
    """

    model: Program
    guide: Program
    x: Tensor
    loc: Float[Tensor, "batch latent"]
    scale_tril: Float[Tensor, "batch latent latent"]
    places: Int[Tensor, " all"]
    """Row of the data -> row of these."""
    fits: int
    """How many evaluations at once."""
    apart: bool

    def __call__(self, rows: Rows, num: int) -> Chunks:
        each = min(_MOST_ROWS, self.fits) if self.apart else len(rows)
        for start in range(0, len(rows), each):
            span = slice(start, min(start + each, len(rows)))
            density, member = Density(self.model, self.guide, self.x[rows[span]]), self._member(rows[span])
            for size in even_blocks(num, max(10, self.fits // (span.stop - start))):
                yield span, mixture_weights(density, member, size)

    def _member(self, rows: Rows) -> Full:
        places = self.places[rows]
        return Full(self.loc[places], self.scale_tril[places])


def mixture_weights(density: Density, member: Full, num: int) -> Float[Tensor, "particles batch"]:
    """Of ``num`` draws from the mixture of the guide and the member."""
    from_guide = minority(num)
    noise = torch.randn(num - from_guide, *member.loc.shape).to(member.loc)
    u = torch.cat([density.draw(from_guide), member.draw(noise, member.parameters)[0]])
    log_gaussian = member.log_density(u, member.parameters)
    return density.terms(u, q=False).log_p - log_mixture(density.log_q(u), log_gaussian, from_guide / num)


def inflation(dim: int) -> float:
    r"""How much wider than the Gaussian of the largest ELBO to draw.

    That Gaussian is narrower than the posterior, and weights of a narrow proposal are heavy-tailed. Draws from
    :math:`N(0, s^2 I_d)` for a posterior :math:`N(0, I_d)` have an effective sample size of
    :math:`K \big(\sqrt{2 s^2 - 1} / s^2\big)^d`. This is the s for which that is K / 2: the price of the width, where
    none was needed.

    Example:
        >>> [round(inflation(dim), 2) for dim in (1, 2, 10, 50)]
        [2.73, 1.85, 1.25, 1.09]
    """
    loss = 4 ** (1 / dim)
    return math.sqrt(loss + math.sqrt(loss * (loss - 1)))


def refined(
    model: Program, guide: Program, x: Tensor, rows: Rows, *, max_bytes: int, tell: Callable[[int], Any]
) -> Refined:
    """Optimise a Gaussian for each of the rows, from the guide's answer, by the ELBO's path derivative."""
    fits, apart = room(model, guide, x, max_bytes)
    each = min(_MOST_ROWS, max(1, fits // (_GRAPH * _STEP_PARTICLES))) if apart else len(rows)
    parts = []
    for some in rows.split(each):
        density = Density(model, guide, x[some]).require_guide()
        most = max(1, fits // (_GRAPH * len(some)))
        start = start_of(density, most)
        member = Full(start.loc, start.scale_tril)
        plan = Plan(_NUM_STEPS, _JUDGED_BY, _LEARNING_RATE, _STEP_PARTICLES, most)
        best = member.at(best_member(density, member, plan, partial(_told, tell, len(some))))
        parts.append((best.loc, inflation(density.dim) * best.scale_tril))
    loc, scale_tril = (torch.cat(part) for part in zip(*parts, strict=True))
    places = rows.new_zeros(len(x)).index_put((rows,), torch.arange(len(rows), device=rows.device))
    return Refined(model, guide, x, loc, scale_tril, places, fits, apart)


def _told(tell: Callable[[int], Any], rows: int, steps: int) -> None:
    tell(steps * _STEP_PARTICLES * rows)
