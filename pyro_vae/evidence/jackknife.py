r"""Jackknife variational inference: importance sampling with the leading terms of its bias removed."""

from __future__ import annotations

__all__ = ["jackknife"]

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, require_count
from ..ops.choices import Proposal
from ..ops.streaming import TailMoments
from ..ops.weights import jackknife_coefficients
from ..pairs.pair import Pair
from ..pairs.running import Program
from .base import LogEvidence
from .from_weights import Estimate, from_weights

_LARGE = 256  # largest weights, which enter exactly
_TOGETHER = 32  # datapoints with all pairs of large weights in memory at once


def jackknife(
    model: Program,
    guide: Program,
    x: Any,
    *,
    order: int = 1,
    num_particles: int | None = None,
    proposal: Proposal = "guide",
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by jackknife variational inference (JVI) of order 1 or 2.

    .. math:: \hat L^{J}_m = \sum_{j=0}^m (-1)^j \frac{(K - j)^m}{(m - j)!\, j!} \hat L_{K-j}

    where :math:`\hat L_{K-j}` is the mean of the log-mean-exp over all subsets of :math:`K - j` particles. A bias of
    :math:`O(1/K)` becomes one of :math:`O(K^{-m-1})`, of unknown sign, so ``side`` is ``"point"``. The standard error
    is that of the importance estimate, which it equals to leading order. Unlike :func:`pyro_vae.weights.jackknife`,
    which goes through all subsets, this estimator streams: the largest weights enter exactly, the others, each a small
    part of the sum, through a series in their power sums.

    Arguments:
        order: The order m, 1 or 2.
        model, guide, x, num_particles, proposal, seed, max_bytes, progress: As for :func:`importance`.

    Errors:
        ConfigError: for another order, or ``num_particles`` that do not exceed it.
        DataError, PairError, StaleParamStoreError: As for :func:`importance`.

    References:
        | Debiasing Evidence Approximations (Nowozin, 2018)  https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = jackknife(problem.model, problem.guide(), x, order=2, num_particles=10)
        >>> torch.allclose(evidence.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    if order not in (1, 2):
        raise ConfigError(f"order={order!r}: expected 1 or 2")
    if num_particles is not None:
        require_count("num_particles", num_particles, least=order + 1, why=f" for order {order}")
    return from_weights(
        _first_order if order == 1 else _second_order,
        "point",
        Pair.of(model, guide, x),
        num_particles=num_particles,
        proposal=proposal,
        target_stderr=None,
        seed=seed,
        max_bytes=max_bytes,
        progress=progress,
    )


def _first_order(weights: TailMoments, smoothed: Float[Tensor, "tail batch"]) -> Estimate:
    moments, parts = weights.log_moments, _Parts.of(weights)
    count, (_, c_1) = parts.total, jackknife_coefficients(parts.total, 1)
    without_one = math.log(count / (count - 1)) + parts.without_one()
    return Estimate(moments.log_mean + c_1 * without_one, moments.stderr)  # since the coefficients sum to 1


def _second_order(weights: TailMoments, smoothed: Float[Tensor, "tail batch"]) -> Estimate:
    moments, parts = weights.log_moments, _Parts.of(weights)
    count, (_, c_1, c_2) = parts.total, jackknife_coefficients(parts.total, 2)
    without_one = math.log(count / (count - 1)) + parts.without_one()
    without_two = math.log(count / (count - 2)) + parts.without_two()
    return Estimate(moments.log_mean + c_1 * without_one + c_2 * without_two, moments.stderr)


class _Parts(NamedTuple):
    r"""Weights relative to their sum, :math:`u_k = w_k / \sum_j w_j`: some large ones, and power sums of the others.

    They yield the means of :math:`\log(1 - u_i)` and :math:`\log(1 - u_i - u_j)`, for small u by the series
    :math:`-\sum_m u^m / m`. Where one large weight is nearly all of the sum, the others are compared with the rest of
    the sum.
    """

    total: int
    log_u: Float[Tensor, "large batch"]
    log_rest: Float[Tensor, "large batch"]
    """Logarithms of the sum without each of the large weights."""
    powers: Float[Tensor, "power batch"]
    """Logarithms of the power sums of the other weights."""

    @classmethod
    def of(cls, weights: TailMoments) -> _Parts:
        count = int(weights.num_particles[0])
        large = weights.tail[: min(count, _LARGE)] - weights.log_moments.log_sum
        m = _exponents(large)
        others = weights.body - m * weights.log_moments.log_sum
        small = weights.tail[len(large) :] - weights.log_moments.log_sum
        if len(small):
            others = torch.logaddexp(others, torch.logsumexp(m[:, None] * small, 1))
        log_zero = torch.full_like(large[:1], -torch.inf)
        before = torch.cat([log_zero, torch.logcumsumexp(large, 0)[:-1]])
        after = torch.cat([torch.logcumsumexp(large.flip(0), 0).flip(0)[1:], log_zero])
        return cls(count, large, torch.logaddexp(torch.logaddexp(before, after), others[0]), others)

    def without_one(self) -> Float[Tensor, " batch"]:
        m = _exponents(self.powers)
        return (self.log_rest.sum(0) - (self.powers.exp() / m).sum(0)) / self.total

    def without_two(self) -> Float[Tensor, " batch"]:
        pairs = self.total * (self.total - 1) / 2
        return (self._both_large() + self._one_large() + self._none_large()) / pairs

    def _both_large(self) -> Float[Tensor, " batch"]:
        first, second = torch.triu_indices(len(self.log_u), len(self.log_u), 1)[:, 1:]
        # The second largest weight may be nearly all of the sum without the largest: no other two have this problem.
        result = torch.logaddexp(torch.logsumexp(self.log_u[2:], 0), self.powers[0])
        for rows in torch.arange(result.shape[0]).split(_TOGETHER):
            log_u, log_rest = self.log_u[:, rows], self.log_rest[:, rows]
            part = torch.exp(log_u[second] - log_rest[first])
            result[rows] += (log_rest[first] + torch.log1p(-part)).sum(0)
        return result

    def _one_large(self) -> Float[Tensor, " batch"]:
        m = _exponents(self.powers)[:, None]
        series = (torch.exp(self.powers[:, None] - m * self.log_rest) / m).sum(0)
        return ((self.total - len(self.log_u)) * self.log_rest - series).sum(0)

    def _none_large(self) -> Float[Tensor, " batch"]:
        sums = [torch.full_like(self.powers[0], self.total - len(self.log_u)), *self.powers.exp()]
        result = torch.zeros_like(self.powers[0])
        for m in range(1, 5):
            ordered = sum((math.comb(m, part) * sums[part] * sums[m - part] for part in range(m + 1)), result * 0)
            result = result - (ordered - 2**m * sums[m]) / (2 * m)
        return result


def _exponents(like: Tensor) -> Float[Tensor, "power 1"]:
    return torch.arange(1, 5, dtype=like.dtype, device=like.device)[:, None]
