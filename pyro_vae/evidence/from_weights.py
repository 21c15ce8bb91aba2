r"""From importance weights to an answer with an error bar and a verdict."""

from __future__ import annotations

__all__ = ["Estimate", "from_draws", "from_weights"]

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_count, require_number
from ..ops.pareto import smooth_tail, tail_size
from ..ops.streaming import TailMoments
from ..ops.verdicts import judge
from ..pairs.handlers import untouched
from ..pairs.inputs import data_for
from ..pairs.progress import progress_bar
from ..pairs.traces import Program
from ..pairs.vectorization import rows_apart
from .base import LogEvidence
from .budget import Budget, Pool, Source, drawn, require_proposal
from .prior_check import second_opinion

_SMALLEST_TAIL = 256  # largest weights kept, however few draws there are: the jackknife wants them
_MOST = 5000  # draws per datapoint
_MOST_TO_TARGET = 100_000


class Estimate(NamedTuple):
    """What an estimator makes of the weights of datapoints that have equally many."""

    value: Float[Tensor, " batch"]
    stderr: Float[Tensor, " batch"]


Estimator = Callable[[TailMoments, Float[Tensor, "tail batch"]], Estimate]
"""Of the weights, and of their largest as Pareto smoothing would have them."""


def from_weights(
    estimate: Estimator,
    side: Literal["lower", "point"],
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int | None,
    proposal: str,
    target_stderr: float | None,
    seed: int,
    max_bytes: int,
    progress: bool,
) -> LogEvidence:
    """Draw, summarise, estimate and judge; see :func:`importance` for the arguments."""
    most = (_MOST if target_stderr is None else _MOST_TO_TARGET) if num_particles is None else num_particles
    most = require_count("num_particles", most, least=2, why=", since one draw has no error bar")
    if target_stderr is not None:
        require_number("target_stderr", target_stderr, least=1e-6)
    require_proposal(proposal)
    max_bytes = require_count("max_bytes", max_bytes)
    x = data_for(x, model, guide)
    with untouched(model, guide, seed=(seed, "evidence")), progress_bar(0, progress) as bar:
        apart = (target_stderr is not None or proposal == "refined") and rows_apart(model, guide, x)
        capacity = min(most, max(tail_size(most) + 1, _SMALLEST_TAIL))
        source = Source(model, guide, x, proposal, apart, capacity, max_bytes, bar)
        parts = [part for pool in drawn(source, Budget(most, target_stderr)) for part in _parts(pool, estimate, side)]
    rows, found = zip(*parts, strict=True)
    whole = LogEvidence.joined(found, torch.cat(rows).argsort())
    return second_opinion(whole, model, guide, x, seed=seed, max_bytes=max_bytes)


def from_draws(
    estimate: Estimator, side: Literal["lower", "point"], log_w: Float[Tensor, "particles batch"], *, pilot: int
) -> LogEvidence:
    """Summarise, estimate and judge weights that are there already, after ``pilot`` evaluations of each datapoint."""
    rows = torch.arange(log_w.shape[1], device=log_w.device)
    weights = TailMoments.of(log_w, capacity=min(len(log_w), max(tail_size(len(log_w)) + 1, _SMALLEST_TAIL)))
    ((_, found),) = _parts(Pool(rows, weights, pilot), estimate, side)
    return found


def _parts(pool: Pool, estimate: Estimator, side: Literal["lower", "point"]) -> Iterator[tuple[Tensor, LogEvidence]]:
    """Which rows, and their answer: by the number of draws, on which the size of the tail depends."""
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
