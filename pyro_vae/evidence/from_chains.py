"""Estimates from the weights of chains, with an error bar and a verdict."""

from __future__ import annotations

__all__ = ["Side", "Summary", "collected"]

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.streaming import LogMoments
from ..ops.verdicts import judge
from .base import LogEvidence

Side = Literal["lower", "upper"]


class Summary(NamedTuple):
    """The estimates for a block of datapoints."""

    value: Float[Tensor, " batch"]
    stderr: Float[Tensor, " batch"]
    ess: Float[Tensor, " batch"]
    num_weights: int
    num_evaluations: int

    @classmethod
    def of(cls, log_w: Float[Tensor, "chains batch"], num_evaluations: int, *, inverse: bool = False) -> Summary:
        """Return the log of the mean weight, or with ``inverse`` minus the log of the mean reciprocal weight."""
        moments = LogMoments.of(-log_w if inverse else log_w)
        value = -moments.log_mean if inverse else moments.log_mean
        return cls(value, moments.stderr, moments.ess, len(log_w), num_evaluations)


def collected(
    summaries: list[Summary], *, side: Side, num_particles: int, simulated: bool = False, chains: bool = True
) -> LogEvidence:
    """Return the estimate for all datapoints; without ``chains`` it is judged as an estimate from independent draws."""
    value, stderr, ess = (torch.cat(parts) for parts in list(zip(*summaries, strict=True))[:3])
    unknown = torch.full_like(value, torch.nan)  # there are too few weights for a tail
    return LogEvidence(
        value=value,
        stderr=stderr,
        side=side,
        ess=ess,
        pareto_k=unknown,
        judgement=judge(
            value=value,
            stderr=stderr,
            ess=ess,
            pareto_k=None if chains else unknown,
            num_particles=summaries[0].num_weights,
        ),
        num_particles=torch.full_like(value, num_particles, dtype=torch.long),
        num_evaluations=torch.full_like(value, summaries[0].num_evaluations, dtype=torch.long),
        simulated=simulated,
    )
