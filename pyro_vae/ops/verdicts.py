r"""Whether a number may be believed: one verdict per datapoint, with its reason."""

from __future__ import annotations

__all__ = ["Judgement", "judge", "largest_pareto_k"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Judgement(NamedTuple):
    """Arrays ``[batch]`` of text: the verdict, ``"ok"``, ``"doubtful"`` or ``"unreliable"``, and why (empty if ok)."""

    verdict: np.ndarray
    reason: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Judgement]) -> Judgement:
        """Of consecutive rows of the data."""
        return cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def largest_pareto_k(num_particles: int) -> float:
    r"""The shape above which an estimate from S draws is not to be relied on, :math:`\min(1 - 1/\log_{10} S, 0.7)`.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)  https://arxiv.org/abs/1507.02646

    Example:
        >>> largest_pareto_k(100), largest_pareto_k(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(max(num_particles, 2)), 0.7)


_DOUBTFUL_K = (
    0.5  # beyond it the weights have no variance, and long before it is reached the sample variance is too small
)
_FEW, _VERY_FEW = 20, 5  # effective draws
_SMALL = 100  # draws, whose largest do not yet tell the tail; unless they are as good as equal
_EQUAL = 0.99  # effective draws to draws
_LARGE_ERROR = 0.5  # nats; a delta-method error of more says little about the error below


def judge(
    *,
    value: Float[Tensor, " batch"],
    stderr: Float[Tensor, " batch"],
    ess: Float[Tensor, " batch"] | None = None,
    pareto_k: Float[Tensor, " batch"] | None = None,
    num_particles: Any = None,
) -> Judgement:
    r"""What the estimate's own diagnostics say of each datapoint; the worst finding counts.

    ``unreliable``: no finite value, a tail shape k-hat above :func:`largest_pareto_k` of the number of draws (a rare
    draw yet to come would change the value), or fewer than 5 effective draws. ``doubtful``: k-hat above 0.5 (the
    standard error is too small), fewer than 20 effective draws that are less than half of all, fewer than 100 draws
    with weights that are not as good as equal, or an error of more than 0.5 nats. Else ``ok``. What is nan or left out
    is not judged by: without ``pareto_k`` (chains) few draws are no fault.

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
    found = [
        _judge_one(*numbers, least)
        for numbers in zip(value.tolist(), stderr.tolist(), ess.tolist(), pareto_k.tolist(), counts, strict=True)
    ]
    return Judgement(np.array([one[0] for one in found]), np.array([one[1] for one in found], dtype=object))


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
