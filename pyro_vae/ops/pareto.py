r"""The tail of a set of importance weights: its shape k-hat, and its smoothed version."""

from __future__ import annotations

__all__ = ["fit_generalized_pareto", "pareto_k", "smooth", "smooth_tail", "tail_size"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FEWEST = 5  # exceedances that a fit needs
_ROUNDING = 1e-4  # relative to the largest weight: how far single precision sets equal weights apart
_SMALLEST = 1e-300  # relative to the largest weight: the least excess, since weights 700 nats below it underflow
_MOST_ELEMENTS = 2**20  # in the largest temporary


class Fit(NamedTuple):
    """A generalised Pareto distribution with shape k and scale sigma."""

    k: Float[Tensor, "*batch"]
    sigma: Float[Tensor, "*batch"]


def tail_size(num_particles: int) -> int:
    r"""The number of weights in the tail of S weights, :math:`\lceil \min(S / 5,\, 3 \sqrt S) \rceil`.

    Example:
        >>> tail_size(100), tail_size(10_000)
        (20, 300)
    """
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def fit_generalized_pareto(exceedances: Float[Tensor, "tail *batch"]) -> Fit:
    r"""Fit :math:`P(X > x) = (1 + k x / \sigma)^{-1/k}` to exceedances over a threshold, in increasing order.

    This is the empirical Bayes estimate of Zhang & Stephens, with the shape shrunk towards 1/2 by a prior worth ten
    observations, which stabilises short tails. ``k`` is nan where fewer than 5 exceedances are above zero or one is not
    finite, and minus infinity where all are zero, the lightest tail possible.

    References:
        | A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang & Stephens, 2009)
        | https://doi.org/10.1198/tech.2009.08017

    Example:
        >>> p = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> fit = fit_generalized_pareto((1 - p) ** -0.5 - 1)
        >>> round(fit.k.item(), 1)
        0.5
    """
    size = exceedances.shape[0]
    flat = exceedances.double().reshape(size, math.prod(exceedances.shape[1:]))
    if size < _FEWEST:
        nothing = torch.full_like(exceedances[:1].sum(0).double(), torch.nan)
        return Fit(nothing, nothing)
    candidates = 30 + math.isqrt(size)
    parts = flat.split(max(1, _MOST_ELEMENTS // (size * candidates)), 1)
    k, sigma = (torch.cat(part).reshape(exceedances.shape[1:]) for part in zip(*map(_fit, parts), strict=True))
    return Fit(k, sigma)


def _fit(x: Float[Tensor, "tail batch"]) -> Fit:
    num, largest = (x != 0).sum(0), x[-1]  # weights tied with the threshold do not exceed it
    scaled = x / largest
    index = (len(x) - num + (num / 4 + 0.5).long() - 1).clamp(min=0)
    quartile = scaled.gather(0, index[None])[0].clamp(min=_SMALLEST)
    count = 30 + math.isqrt(len(x))
    grid = 1 - (count / (torch.arange(1, count + 1, dtype=x.dtype, device=x.device) - 0.5)).sqrt()
    theta = 1 + grid[:, None] / (3 * quartile)  # the prior's quantiles, "candidates batch"
    shapes = _shape(theta, scaled, num)
    likelihood = num * ((-theta / shapes).log() - shapes - 1)
    best = (torch.softmax(likelihood.nan_to_num(nan=-torch.inf), 0) * theta).sum(0, keepdim=True)
    k = _shape(best, scaled, num)[0]
    sigma = -k / best[0] * largest
    k = torch.where(num < _FEWEST, torch.nan, (num * k + 10 * 0.5) / (num + 10))
    no_tail = largest == 0
    return Fit(torch.where(no_tail, -torch.inf, k), torch.where(no_tail, 0.0, sigma))


def _shape(
    theta: Float[Tensor, "candidates batch"], x: Float[Tensor, "tail batch"], num: Int[Tensor, " batch"]
) -> Float[Tensor, "candidates batch"]:
    """Return the maximum-likelihood shape for each candidate."""
    return torch.log1p(-theta[:, None] * x).sum(1) / num


def smooth_tail(tail: Float[Tensor, "tail *batch"], threshold: Float[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
    r"""Replace the largest log-weights by the expected order statistics of the fitted distribution.

    Arguments:
        tail: The largest log-weights, in decreasing order.
        threshold: The next largest log-weight.

    Returns:
        The smoothed log-weights, in decreasing order and never above the largest raw one, and k-hat. A tail that cannot
        be fitted stays as it is, and so do weights that are tied with the threshold.
    """
    tail, threshold = tail.double(), threshold.double()
    if not len(tail):
        return tail, torch.full_like(threshold, torch.nan)
    top = tail[0]
    base = torch.exp(threshold - top)
    excess = torch.exp(tail - top) - base
    underflow = (base == 0) & (tail > threshold)  # next to the largest weight these may have become zero
    excess = torch.where(underflow, excess.clamp(min=_SMALLEST), excess)
    excess = torch.where(excess[0] < _ROUNDING, 0.0, excess)
    fit, num = fit_generalized_pareto(excess.flip(0)), (excess != 0).sum(0)
    k, sigma = fit.k[None], fit.sigma[None]
    rank = torch.arange(len(tail), dtype=tail.dtype, device=tail.device).reshape(-1, *[1] * threshold.ndim)
    log_survival = torch.log((rank + 0.5) / num)
    excess = torch.where(k.abs() < 1e-9, -sigma * log_survival, sigma * torch.expm1(-k * log_survival) / k)
    smoothed = torch.minimum(torch.log(base + excess), torch.zeros_like(excess)) + top
    return torch.where(fit.k.isfinite() & (rank < num), smoothed, tail), fit.k


def smooth(
    log_w: Float[Tensor, "particles *batch"],
) -> tuple[Float[Tensor, "particles *batch"], Float[Tensor, "*batch"]]:
    r"""Pareto-smoothed log-weights, and the tail shape k-hat of each datapoint.

    Weights with k-hat below 1/2 have a finite variance; above about 0.7 no practical number of draws is enough. The
    standard deviation of k-hat is about :math:`(1 + k) / \sqrt M`, where M is the size of the tail (:func:`tail_size`),
    so a decision for each datapoint takes ten thousand draws.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)  https://arxiv.org/abs/1507.02646

    Example:
        >>> log_w = -0.4 * torch.log(torch.linspace(0.001, 1, 1000, dtype=torch.float64))
        >>> smoothed, k = smooth(log_w)
        >>> smoothed.shape, bool((smoothed.max() <= log_w.max())), abs(k.item() - 0.4) < 0.05
        (torch.Size([1000]), True, True)
    """
    size = tail_size(log_w.shape[0])
    order = log_w.double().argsort(0, descending=True)
    ordered = log_w.double().gather(0, order)
    if size >= log_w.shape[0]:
        return log_w, torch.full_like(ordered[0], torch.nan)
    tail, k = smooth_tail(ordered[:size], ordered[size])
    smoothed = torch.cat([tail, ordered[size:]]).to(log_w.dtype)
    return torch.empty_like(log_w).scatter(0, order, smoothed), k


def pareto_k(log_w: Float[Tensor, "particles *batch"]) -> Float[Tensor, "*batch"]:
    """The tail shape k-hat alone; see :func:`smooth`."""
    return smooth(log_w)[1]
