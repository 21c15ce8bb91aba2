r"""Convergence of chains: R-hat and effective draws, the worst over latent dimensions."""

from __future__ import annotations

__all__ = ["FEWEST", "effective_draws", "judged", "r_hat"]

import numpy as np
import torch
from jaxtyping import Float
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from ...ops.verdicts import Judgement

FEWEST = 4  # draws of a chain, that halves of it have a variance
_LARGE, _VERY_LARGE = 1.01, 1.05  # R-hat
_FEW, _VERY_FEW = 100, 20  # effective draws


def r_hat(u: Float[Tensor, "chains draws batch latent"]) -> Float[Tensor, " batch"]:
    r"""Return the split potential scale reduction of ranks' normal scores, of location or spread, whichever is larger.

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B}{n W}}

    with B / n the variance of the means of half chains of n draws, and W the mean of their variances: 1 where chains
    agree. Ranks make it mean something where there are no moments; the spread is that of distances from the median,
    which tells chains apart that are equal on average and not equally wide.

    References:
        | Rank-Normalization, Folding, and Localization (Vehtari et al., 2021)  https://arxiv.org/abs/1903.08008

    Example:
        >>> u = torch.randn(4, 500, 3, 2)
        >>> u[0, :, 1] *= 3
        >>> (r_hat(u) > 1.05).tolist()
        [False, True, False]
    """
    u = u.double()
    middle = u.flatten(0, 1).median(0).values
    both = torch.stack([split_gelman_rubin(_scores(part)) for part in (u, (u - middle).abs())])
    return torch.where(u.isfinite().all(0).all(0), both.amax(0), torch.nan).amax(-1)


def effective_draws(u: Float[Tensor, "chains draws batch latent"]) -> Float[Tensor, " batch"]:
    """Return the effective sample size of means, at most the number of draws, also for antithetic chains.

    Example:
        >>> effective_draws(torch.randn(4, 500, 3, 2)).shape
        torch.Size([3])
    """
    num, found = u.shape[0] * u.shape[1], effective_sample_size(u.double())
    found = torch.where(found > 0, found, num)  # autocorrelations that cancel more than there is
    return torch.where(u.isfinite().all(0).all(0), found.clamp(max=num), torch.nan).amin(-1)


def _scores(u: Tensor) -> Tensor:
    """Return the normal scores of the ranks of all chains' draws together."""
    order = u.flatten(0, 1).argsort(0)
    rank = torch.arange(1, len(order) + 1, dtype=torch.float64, device=u.device)
    scores = torch.special.ndtri((rank - 0.375) / (len(rank) + 0.25))
    return (
        torch.zeros_like(u.flatten(0, 1)).scatter_(0, order, scores[:, None, None].expand(order.shape)).reshape(u.shape)
    )


def judged(r_hats: Float[Tensor, " batch"], ess: Float[Tensor, " batch"]) -> Judgement:
    """Judge chains: unreliable above an R-hat of 1.05 or below 20 effective draws, doubtful above 1.01 or below 100."""
    found = [_judge_one(*numbers) for numbers in zip(r_hats.tolist(), ess.tolist(), strict=True)]
    return Judgement(np.array([one[0] for one in found]), np.array([one[1] for one in found], dtype=object))


def _judge_one(r: float, ess: float) -> tuple[str, str]:
    if not r <= _VERY_LARGE:
        return "unreliable", f"R-hat {r:.2f} above {_VERY_LARGE}: the chains have not met"
    if ess < _VERY_FEW:
        return "unreliable", f"{ess:.0f} effective draws"
    if r > _LARGE:
        return "doubtful", f"R-hat {r:.3f} above {_LARGE}: run the chains for longer"
    if ess < _FEW:
        return "doubtful", f"{ess:.0f} effective draws"
    return "ok", ""
