r"""The evidence lower bound as an estimate, with its error bar."""

from __future__ import annotations

__all__ = ["elbo"]

from typing import Any

import torch

from ..moments import Moments
from ..traces import Program
from .base import LogEvidence, summarise


def elbo(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 100,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate the ELBO per datapoint.

    .. math:: \hat{\mathcal L}(x) = \frac1K \sum_{k=1}^K \log w_k, \quad \mathrm{stderr} = \mathrm{sd}(\log w) / \sqrt K

    The value is unbiased for the ELBO, which is a lower bound: ``side`` is ``"lower"``, by
    :math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))` nats however many particles there are. To *train* on the ELBO
    use :class:`pyro_vae.objectives.ELBO`.

    Arguments:
        model, guide, x, num_particles, seed, max_bytes, progress: As for :func:`importance`.

    Errors:
        DataError, PairError: As for :func:`importance`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae.problems import linear_gaussian
        >>> problem = linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> exact = elbo(problem.model, problem.guide(), x)  # the guide is the posterior: no gap
        >>> torch.allclose(exact.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    moments = summarise(
        Moments, model, guide, x, num_particles=num_particles, seed=seed, max_bytes=max_bytes, progress=progress
    )
    value = torch.cat([part.mean for part in moments])
    return LogEvidence(
        value=value,
        stderr=torch.cat([part.stderr for part in moments]),
        side="lower",
        ess=torch.full_like(value, num_particles),  # every draw counts the same
        num_particles=num_particles,
    )
