r"""Estimates from importance weights, with an error bar and a verdict."""

from __future__ import annotations

__all__ = ["Estimate", "from_draws", "from_weights"]

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_count, require_number
from ..ops.pareto import smooth_tail, tail_size
from ..ops.streaming import TailMoments
from ..ops.verdicts import judge
from ..pairs.pair import Pair
from ..pairs.progress import progress_bar
from .base import LogEvidence
from .budget import Budget, Pool, Source, drawn, require_proposal
from .prior_check import prior_check

_SMALLEST_TAIL = 256  # largest weights kept, even of few draws: the jackknife needs them
_MAX_PARTICLES = 5000  # draws per datapoint
_MAX_PARTICLES_TO_TARGET = 100_000


class Estimate(NamedTuple):
    """Estimates for datapoints with the same number of weights."""

    value: Float[Tensor, " batch"]
    stderr: Float[Tensor, " batch"]


Estimator = Callable[[TailMoments, Float[Tensor, "tail batch"]], Estimate]
"""A function of the weights, and of the largest of them after Pareto smoothing, that returns the estimate."""


def from_weights(
    estimate: Estimator,
    side: Literal["lower", "point"],
    pair: Pair,
    *,
    num_particles: int | None,
    proposal: str,
    target_stderr: float | None,
    seed: int,
    max_bytes: int,
    progress: bool,
) -> LogEvidence:
    """Draw and summarise weights, and return the judged estimate; the arguments are those of :func:`importance`."""
    default = _MAX_PARTICLES if target_stderr is None else _MAX_PARTICLES_TO_TARGET
    num_particles = default if num_particles is None else num_particles
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    if target_stderr is not None:
        require_number("target_stderr", target_stderr, least=1e-6)
    require_proposal(proposal)
    max_bytes = require_count("max_bytes", max_bytes)
    with pair.evaluation(seed, "evidence"), progress_bar(0, progress) as bar:
        source = Source(pair, proposal, _capacity(num_particles), max_bytes, bar)
        pools = drawn(source, Budget(num_particles, target_stderr))
        parts = [part for pool in pools for part in _parts(pool, estimate, side)]
    rows, estimates = zip(*parts, strict=True)
    evidence = LogEvidence.joined(estimates, torch.cat(rows).argsort())
    return prior_check(evidence, pair, seed=seed, max_bytes=max_bytes)


def _capacity(num: int) -> int:
    """Return the number of the largest of ``num`` weights that are kept."""
    return min(num, max(tail_size(num) + 1, _SMALLEST_TAIL))


def from_draws(
    estimate: Estimator, side: Literal["lower", "point"], log_w: Float[Tensor, "particles batch"], *, pilot: int
) -> LogEvidence:
    """Return the judged estimate from given weights, which took ``pilot`` further evaluations of each datapoint."""
    rows = torch.arange(log_w.shape[1], device=log_w.device)
    weights = TailMoments.of(log_w, capacity=_capacity(len(log_w)))
    ((_, evidence),) = _parts(Pool(rows, weights, pilot), estimate, side)
    return evidence


def _parts(pool: Pool, estimate: Estimator, side: Literal["lower", "point"]) -> Iterator[tuple[Tensor, LogEvidence]]:
    """Yield rows and their estimate for each number of draws, on which the size of the tail depends."""
    for num in pool.weights.num_particles.unique().tolist():
        chosen = (pool.weights.num_particles == num).nonzero()[:, 0]
        weights, size = pool.weights.at(chosen), tail_size(num)
        tail, k = smooth_tail(weights.tail[:size], weights.tail[size])
        value, stderr = estimate(weights, tail)
        ess = weights.log_moments.ess
        yield (
            pool.rows[chosen],
            LogEvidence(
                value=value,
                stderr=stderr,
                side=side,
                ess=ess,
                pareto_k=k,
                judgement=judge(value=value, stderr=stderr, ess=ess, pareto_k=k, num_particles=num),
                num_particles=weights.num_particles,
                num_evaluations=weights.num_particles + pool.pilot,
            ),
        )
