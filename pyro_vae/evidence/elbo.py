r"""The evidence lower bound as an estimate, with its error bar."""

from __future__ import annotations

__all__ = ["elbo"]

from typing import Any

import torch

from ..errors import require_count
from ..ops.streaming import Moments
from ..ops.verdicts import judge
from ..pairs.pair import Pair
from ..pairs.particles import particle_blocks
from ..pairs.progress import progress_bar
from ..pairs.running import Program
from .base import LogEvidence


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

    The value is unbiased for the ELBO, which is below :math:`\log p(x)` by
    :math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))` nats, whatever the number of particles: ``side`` is ``"lower"``.
    To *train* on the ELBO use :class:`pyro_vae.objectives.ELBO`.

    Arguments:
        model, guide, x, num_particles, seed, max_bytes, progress: As for :func:`importance`.

    Errors:
        DataError, PairError: As for :func:`importance`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> exact = elbo(problem.model, problem.guide(), x)  # the guide is the posterior: no gap
        >>> torch.allclose(exact.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    max_bytes = require_count("max_bytes", max_bytes)
    pair = Pair.of(model, guide, x)
    moments: dict[int, Moments] = {}
    with pair.evaluation(seed, "evidence"), progress_bar(len(pair) * num_particles, progress) as bar:
        for rows, log_w in particle_blocks(pair, num_particles=num_particles, max_bytes=max_bytes):
            block = Moments.of(log_w)
            moments[rows.start] = moments[rows.start].merge(block) if rows.start in moments else block
            bar.update(log_w.numel())
    value = torch.cat([part.mean for part in moments.values()])
    stderr = torch.cat([part.stderr for part in moments.values()])
    counts = torch.full(value.shape, num_particles)
    return LogEvidence(
        value=value,
        stderr=stderr,
        side="lower",
        ess=counts.double(),  # every draw counts the same
        pareto_k=torch.full_like(value, torch.nan),
        judgement=judge(value=value, stderr=stderr),
        num_particles=counts,
        num_evaluations=counts,
    )
