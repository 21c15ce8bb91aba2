r"""Importance sampling with the guide as the proposal."""

from __future__ import annotations

__all__ = ["importance"]

from typing import Any

import torch

from ..moments import LogMoments
from ..traces import Program
from .base import LogEvidence, summarise


def importance(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 5000,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by importance sampling from the guide.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    Its expectation is the importance-weighted bound :math:`\mathcal L_K \le \log p(x)`, so ``side`` is ``"lower"``; it
    grows to :math:`\log p(x)` with K. ``stderr`` is the delta-method standard error, which understates the error when
    few weights dominate: look at ``ess``.

    The encoder runs once per datapoint. Particles and datapoints are processed in blocks of about ``max_bytes`` with
    streaming sums in float64, so peak memory does not grow with K.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type.
        num_particles: The number of particles K per datapoint.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: About how much memory a block may take.
        progress: Show a progress bar on a terminal.

    Errors:
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair, or a guide that draws from a point mass.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)  https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_vae.problems import linear_gaussian
        >>> problem = linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = importance(problem.model, problem.guide(), x, num_particles=10)
        >>> torch.allclose(evidence.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    moments = summarise(
        LogMoments, model, guide, x, num_particles=num_particles, seed=seed, max_bytes=max_bytes, progress=progress
    )
    return LogEvidence(
        value=torch.cat([part.log_mean for part in moments]),
        stderr=torch.cat([part.stderr for part in moments]),
        side="lower",
        ess=torch.cat([part.ess for part in moments]),
        num_particles=num_particles,
    )
