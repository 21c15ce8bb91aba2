r"""Verdicts on whether a number may be believed, one per datapoint, with the reason."""

from __future__ import annotations

__all__ = ["Judgement", "judge", "largest_pareto_k", "reason", "verdict"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Judgement(NamedTuple):
    """Arrays ``[batch]`` of strings: the verdict, ``"ok"``, ``"doubtful"`` or ``"unreliable"``, and its reason."""

    verdict: np.ndarray
    reason: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[str, str]]) -> Judgement:
        """Return the judgement with these verdicts and reasons, ``(verdict, reason)`` for each datapoint."""
        return cls(np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=object))

    @classmethod
    def joined(cls, parts: Sequence[Judgement]) -> Judgement:
        """Return the judgement on consecutive rows of the data, given that on each part."""
        return cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))


# Properties of every result with a field ``judgement``: a NamedTuple has no base class that could hold them.
@property
def verdict(result: Any) -> np.ndarray:
    """The verdict on each datapoint, ``"ok"``, ``"doubtful"`` or ``"unreliable"``."""
    return result.judgement.verdict


@property
def reason(result: Any) -> np.ndarray:
    """The reason for each verdict; empty where it is ``"ok"``."""
    return result.judgement.reason


def largest_pareto_k(num_particles: int) -> float:
    r"""The tail shape above which an estimate from S draws is unreliable, :math:`\min(1 - 1/\log_{10} S, 0.7)`.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)  https://arxiv.org/abs/1507.02646

    Example:
        >>> largest_pareto_k(100), largest_pareto_k(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(max(num_particles, 2)), 0.7)


_DOUBTFUL_K = 0.5  # above it the variance of the weights is infinite, and the sample variance is far too small
_FEW, _VERY_FEW = 20, 5  # effective draws
_SMALL = 100  # draws; fewer do not show the tail, unless their weights are nearly equal
_EQUAL = 0.99  # ratio of effective draws to draws above which weights count as equal
_LARGE_ERROR = 0.5  # nats; a larger delta-method error does not tell how much too low the value is


def judge(
    *,
    value: Float[Tensor, " batch"],
    stderr: Float[Tensor, " batch"],
    ess: Float[Tensor, " batch"] | None = None,
    pareto_k: Float[Tensor, " batch"] | None = None,
    num_particles: Any = None,
) -> Judgement:
    r"""Judge each datapoint by the diagnostics of its estimate; the worst of them decides.

    ``unreliable`` is a value that is not finite, a tail shape k-hat above :func:`largest_pareto_k` of the number of
    draws (one more large weight would change the value), or an effective sample size below 5. ``doubtful`` is k-hat
    above 0.5 (the standard error is too small), an effective sample size below 20 and below half the number of draws,
    fewer than 100 draws unless their weights are nearly equal, or a standard error above 0.5 nats. Anything else is
    ``ok``. A diagnostic that is nan or left out is ignored; without ``pareto_k``, as for chains, few draws are not
    doubtful in themselves.

    Example:
        >>> one = torch.ones(1)
        >>> judge(value=-one, stderr=0.1 * one, ess=100 * one, pareto_k=0.9 * one, num_particles=1000).reason[0]
        'k-hat 0.90 above 0.67: a few draws decide the value'
    """
    size = len(value)
    nothing = torch.full((size,), torch.nan, dtype=torch.float64)
    least = 0 if pareto_k is None else _SMALL
    ess, pareto_k = (nothing if part is None else part.double().cpu() for part in (ess, pareto_k))
    counts = torch.as_tensor(math.inf if num_particles is None else num_particles).cpu().expand(size).tolist()
    rows = [
        _judge_one(*numbers, least)
        for numbers in zip(value.tolist(), stderr.tolist(), ess.tolist(), pareto_k.tolist(), counts, strict=True)
    ]
    return Judgement.of(rows)


def _judge_one(value: float, stderr: float, ess: float, pareto_k: float, count: float, least: int) -> tuple[str, str]:
    if not math.isfinite(value) or math.isnan(stderr):
        return "unreliable", f"the value is {value}, its error {stderr}"
    if count < math.inf and pareto_k > (most := largest_pareto_k(int(count))):
        return "unreliable", f"k-hat {pareto_k:.2f} above {most:.2f}: a few draws decide the value"
    if ess < _VERY_FEW:
        return "unreliable", f"{ess:.1f} effective draws"
    if pareto_k > _DOUBTFUL_K:
        return "doubtful", f"k-hat {pareto_k:.2f} above {_DOUBTFUL_K}: the error bar is too small"
    if ess < min(_FEW, count / 2):
        return "doubtful", f"{ess:.1f} effective draws"
    if count < least and ess < _EQUAL * count:
        return "doubtful", f"{count:.0f} draws, fewer than {least}: too few to know the tail of the weights"
    if stderr > _LARGE_ERROR:
        return "doubtful", f"a standard error of {stderr:.2f} nats"
    return "ok", ""
