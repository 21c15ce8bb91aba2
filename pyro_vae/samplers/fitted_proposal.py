r"""The fitted proposal: for each datapoint the Gaussian with the largest ELBO, made wider, beside the guide."""

from __future__ import annotations

__all__ = ["FIT_EVALUATIONS", "FittedProposal", "fitted_proposal", "inflation", "mixture_weights"]

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ops.weights import log_mixture
from ..pairs.density import Density
from ..pairs.pair import Pair
from .families import Full
from .gaussian_fit import gaussian_of_guide
from .local_svi import Plan, best_member
from .proposals import Rows, WeightBlocks, even_blocks, minor_share

_NUM_STEPS, _STEP_PARTICLES, _LEARNING_RATE, _JUDGED_BY = 200, 10, 0.05, 100
_MAX_ROWS = 256
_COPIES = 32  # of the largest activation, when a gradient is kept

FIT_EVALUATIONS = _NUM_STEPS * _STEP_PARTICLES + _JUDGED_BY
"""Evaluations per datapoint that a fit takes, most of them with a gradient."""


class FittedProposal(NamedTuple):
    r"""A tenth of the draws from the guide, the others from a full-covariance Gaussian :math:`g_b` for each datapoint.

    .. math:: w = p(x, z) / \big(\alpha\, q(z \mid x) + (1 - \alpha)\, g_b(z)\big)

    The Gaussian is at one mode, the guide may cover others, and no weight exceeds ten times the guide's own.
    """

    pair: Pair
    loc: Float[Tensor, "batch latent"]
    scale_tril: Float[Tensor, "batch latent latent"]
    fits: Int[Tensor, " all"]
    """The row of ``loc`` and ``scale_tril`` for each row of the data."""
    max_bytes: int

    def __call__(self, rows: Rows, num: int) -> WeightBlocks:
        for span, block, most in self.pair.rows(rows).blocks(self.max_bytes, max_rows=_MAX_ROWS):
            density, index = Density(block), self.fits[rows[span]]
            member = Full(self.loc[index], self.scale_tril[index])
            for size in even_blocks(num, max(10, most)):
                yield span, mixture_weights(density, member, size)


def mixture_weights(density: Density, member: Full, num: int) -> Float[Tensor, "particles batch"]:
    """Return the log-weights of ``num`` draws from the mixture of the guide and the member."""
    from_guide = minor_share(num)
    noise = torch.randn(num - from_guide, *member.loc.shape).to(member.loc)
    u = torch.cat([density.draw(from_guide), member.draw(noise, member.parameters)[0]])
    log_gaussian = member.log_density(u, member.parameters)
    return density.terms(u, q=False).log_p - log_mixture(density.log_q(u), log_gaussian, from_guide / num)


def inflation(dim: int) -> float:
    r"""Return the factor by which to widen the Gaussian of the largest ELBO.

    That Gaussian is narrower than the posterior, and weights of a narrow proposal are heavy-tailed. Draws from
    :math:`N(0, s^2 I_d)` for a posterior :math:`N(0, I_d)` have an effective sample size of
    :math:`K \big(\sqrt{2 s^2 - 1} / s^2\big)^d`. This is the s for which that is K / 2, the
    price of the width where none was needed.

    Example:
        >>> [round(inflation(dim), 2) for dim in (1, 2, 10, 50)]
        [2.73, 1.85, 1.25, 1.09]
    """
    loss = 4 ** (1 / dim)
    return math.sqrt(loss + math.sqrt(loss * (loss - 1)))


def fitted_proposal(pair: Pair, rows: Rows, *, max_bytes: int, on_progress: Callable[[int], Any]) -> FittedProposal:
    """Fit a Gaussian to each of the rows, from the guide's own, by the ELBO's path derivative.

    Arguments:
        on_progress: Is called with the number of evaluations since the last call.
    """
    parts = []
    for _, block, most in pair.rows(rows).blocks(
        max_bytes, num_particles=_STEP_PARTICLES, copies=_COPIES, max_rows=_MAX_ROWS
    ):
        density = Density(block).require_guide()
        start = gaussian_of_guide(density, most)
        member = Full(start.loc, start.scale_tril)
        plan = Plan(_NUM_STEPS, _JUDGED_BY, _LEARNING_RATE, _STEP_PARTICLES, most)
        best = member.at(best_member(density, member, plan, _counted(on_progress, len(block))))
        parts.append((best.loc, inflation(density.dim) * best.scale_tril))
    loc, scale_tril = (torch.cat(part) for part in zip(*parts, strict=True))
    index = rows.new_zeros(len(pair)).index_put((rows,), torch.arange(len(rows), device=rows.device))
    return FittedProposal(pair, loc, scale_tril, index, max_bytes)


def _counted(on_progress: Callable[[int], Any], num_rows: int) -> Callable[[int], Any]:
    """Return a callback for steps of the optimiser."""
    return lambda steps: on_progress(steps * _STEP_PARTICLES * num_rows)
