"""What every evidence estimator returns, and how every one goes through the data."""

from __future__ import annotations

__all__ = ["LogEvidence", "summarise"]

import math
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..arrays import as_batch
from ..errors import require_count
from ..modules import evaluating, suited, unregistered
from ..moments import LogMoments, Moments
from ..particles import particle_chunks
from ..randomness import seeded
from ..traces import Program


class LogEvidence(NamedTuple):
    r"""An estimate of :math:`\log p(x)` or of a bound on it, per datapoint.

    ``side`` says in which direction ``value`` errs *in expectation*: ``"lower"``, ``"upper"``, or ``"point"`` for
    neither. ``stderr`` is its Monte-Carlo standard error: what repeating the estimate on the same datapoint would vary
    by. A mean over a test set has a second, usually far larger error, from which datapoints are in it; the two are
    reported separately and never mixed.
    """

    value: Float[Tensor, " batch"]
    """Nats per datapoint, float64."""
    stderr: Float[Tensor, " batch"]
    """Monte-Carlo standard error, nats."""
    side: Literal["lower", "upper", "point"]
    ess: Float[Tensor, " batch"]
    """Effective sample size of the weights, between 1 and ``num_particles``."""
    num_particles: int

    @property
    def mean(self) -> float:
        """The mean over datapoints, in nats per datapoint."""
        return self.value.mean().item()

    @property
    def monte_carlo_error(self) -> float:
        r"""Standard error of :attr:`mean` from the draws, :math:`\sqrt{\sum_b \mathrm{stderr}_b^2} / N`."""
        return self.stderr.square().sum().sqrt().item() / len(self.value)

    @property
    def test_set_error(self) -> float:
        r"""Standard error of :attr:`mean` from the choice of datapoints, :math:`\mathrm{sd} / \sqrt N`."""
        return self.value.std().item() / math.sqrt(len(self.value)) if len(self.value) > 1 else math.nan


S = TypeVar("S", LogMoments, Moments)


def summarise(
    summary: type[S],
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int,
    seed: int,
    max_bytes: int,
    progress: bool,
) -> list[S]:
    """Draw all particles of all datapoints in blocks; the summaries, one for each run of rows of ``x``, in order.

    Nothing is trained, Pyro's store is not written to, and the caller's generator stays where it is.
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    x = suited(as_batch(x), model, guide)
    found: dict[int, Any] = {}
    with (
        torch.no_grad(),
        evaluating(model, guide),
        unregistered(agreeing=True),
        seeded(seed, "evidence"),
        tqdm(total=len(x) * num_particles, unit="draw", unit_scale=True, disable=None if progress else True) as bar,
    ):
        for rows, log_w in particle_chunks(model, guide, x, num_particles=num_particles, max_bytes=max_bytes):
            block = summary.of(log_w)
            found[rows.start] = found[rows.start].merge(block) if rows.start in found else block
            bar.update(log_w.numel())
    return list(found.values())
