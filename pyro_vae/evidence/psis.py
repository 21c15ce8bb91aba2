r"""Pareto-smoothed importance sampling."""

from __future__ import annotations

__all__ = ["psis"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.choices import Proposal
from ..ops.streaming import TailMoments
from ..pairs.pair import Pair
from ..pairs.running import Program
from .base import LogEvidence
from .from_weights import Estimate, from_weights


def psis(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int | None = None,
    proposal: Proposal = "guide",
    target_stderr: float | None = None,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by importance sampling with Pareto-smoothed weights.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K \tilde w_k

    where the largest :math:`\lceil \min(K / 5, 3 \sqrt K) \rceil` weights are replaced by the expected order statistics
    of a generalised Pareto distribution fitted to them, cut off at the largest raw weight. This trades variance for a
    bias of unknown sign: ``side`` is ``"point"``. The fitted shape is ``pareto_k``, by which :func:`importance`
    judges its weights, too. Weights without a tail (all equal, or fewer than 21 draws) are left as they are.

    Arguments:
        model, guide, x, num_particles, proposal, target_stderr, seed, max_bytes, progress: As for :func:`importance`;
            ``target_stderr`` refers to the standard error of the raw weights.

    Errors:
        ConfigError, DataError, PairError, StaleParamStoreError: As for :func:`importance`.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)  https://arxiv.org/abs/1507.02646

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> narrow = psis(problem.model, problem.guide(inflate=0.5), problem.sample(3, seed=0), num_particles=10_000)
        >>> narrow.side, bool((narrow.pareto_k > 0.5).all()), "ok" in narrow.verdict
        ('point', True, False)
    """
    return from_weights(
        _smoothed_mean,
        "point",
        Pair.of(model, guide, x),
        num_particles=num_particles,
        proposal=proposal,
        target_stderr=target_stderr,
        seed=seed,
        max_bytes=max_bytes,
        progress=progress,
    )


def _smoothed_mean(weights: TailMoments, smoothed: Float[Tensor, "tail batch"]) -> Estimate:
    moments = weights._replace(tail=torch.cat([smoothed, weights.tail[len(smoothed) :]])).log_moments
    return Estimate(moments.log_mean, moments.stderr)
