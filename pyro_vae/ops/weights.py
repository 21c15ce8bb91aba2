r"""The algebra of log-weights: ``[particles, batch] -> [batch]``, in nats.

Every function reads the number of particles :math:`K` from its tensor, because the log of a mean over :math:`K` numbers
that divides by another number is wrong by the log of the ratio.
"""

from __future__ import annotations

__all__ = [
    "cubo",
    "doubly_reparameterized",
    "ess",
    "grouped",
    "jackknife",
    "jackknife_coefficients",
    "log_mean_exp",
    "log_mean_exp_stderr",
    "log_mixture",
    "normalized_weights",
    "quantile",
    "renyi",
    "tvo",
    "ungrouped",
    "weights_of",
]

import math
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, require_count
from .streaming import LogMoments


def log_mean_exp(log_w: Float[Tensor, "..."], dim: int = 0) -> Float[Tensor, "..."]:
    r"""The log of the mean weight, :math:`\log \frac1K \sum_k w_k`, without overflow.

    For :math:`w = p(x, z) / q(z \mid x)` this is the importance-weighted bound: its expectation is a lower bound on
    :math:`\log p(x)`.

    Example:
        >>> log_mean_exp(torch.tensor([[-1000.0], [-1000.0]]))
        tensor([-1000.])
    """
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def log_mixture(log_one: Float[Tensor, "..."], log_other: Float[Tensor, "..."], share: float) -> Float[Tensor, "..."]:
    r"""The log-density of a mixture, :math:`\log(\alpha\, e^{a} + (1 - \alpha)\, e^{b})`, for a share in (0, 1).

    Example:
        >>> log_mixture(torch.tensor([0.0, -torch.inf]), torch.zeros(2), 0.5)
        tensor([ 0.0000, -0.6931])
    """
    return torch.logaddexp(log_one + math.log(share), log_other + math.log1p(-share))


def normalized_weights(log_w: Float[Tensor, "particles *batch"]) -> Float[Tensor, "particles *batch"]:
    r"""The self-normalised weights :math:`\tilde w_k = w_k / \sum_j w_j`; those of each datapoint sum to one.

    Example:
        >>> normalized_weights(torch.tensor([[0.0], [0.0]]))
        tensor([[0.5000],
                [0.5000]])
    """
    return torch.softmax(log_w, 0)


def grouped(log_w: Float[Tensor, "particles *batch"], num_groups: int) -> Float[Tensor, "inner groups *batch"]:
    """Split the particles of each datapoint into M consecutive groups; the first dimension runs within a group.

    Errors:
        ConfigError: unless the number of particles is a multiple of ``num_groups``.

    Example:
        >>> grouped(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), num_groups=2)[..., 0]
        tensor([[0., 2.],
                [1., 3.]])
    """
    particles = log_w.shape[0]
    if particles % num_groups:
        raise ConfigError(f"found {particles} particles, expected a multiple of num_groups={num_groups}")
    return log_w.reshape(num_groups, particles // num_groups, *log_w.shape[1:]).transpose(0, 1)


def ungrouped(groups: Float[Tensor, "inner groups *batch"]) -> Float[Tensor, "particles *batch"]:
    """Undo :func:`grouped`: return all particles in one dimension.

    Example:
        >>> ungrouped(grouped(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), num_groups=2))[:, 0]
        tensor([0., 1., 2., 3.])
    """
    return groups.transpose(0, 1).flatten(0, 1)


def ess(log_w: Float[Tensor, "particles *batch"]) -> Float[Tensor, "*batch"]:
    r"""The effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and :math:`K`, per datapoint.

    References:
        | Sequential Imputations and Bayesian Missing Data Problems (Kong, Liu & Wong, 1994)
        | https://doi.org/10.1080/01621459.1994.10476469

    Example:
        >>> ess(torch.tensor([[0.0, 0.0], [0.0, -100.0]]))
        tensor([2., 1.])
    """
    return LogMoments.of(log_w).ess.to(log_w.dtype)


def weights_of(values: Tensor, log_w: Float[Tensor, "particles *batch"]) -> Tensor:
    """Return normalised weights with trailing dimensions of size 1, to multiply values ``[particles, *batch, ...]``.

    Example:
        >>> weights_of(torch.zeros(2, 3, 5), torch.zeros(2, 3)).shape
        torch.Size([2, 3, 1])
    """
    return normalized_weights(log_w).reshape(*log_w.shape, *[1] * (values.ndim - log_w.ndim))


def quantile(
    values: Float[Tensor, "particles *batch_and_event"], log_w: Float[Tensor, "particles *batch"], level: float
) -> Tensor:
    r"""The weighted quantile ``[*batch_and_event]``, the smallest value up to which the weights sum to the level.

    Example:
        >>> quantile(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.2, 0.3]).log(), 0.5)
        tensor(2.)
    """
    weights = weights_of(values, log_w).expand_as(values)
    ordered, order = values.sort(0)
    cumulative = weights.gather(0, order).cumsum(0)
    index = (cumulative < level * cumulative[-1:]).sum(0, keepdim=True)
    return ordered.gather(0, index.clamp(max=len(values) - 1))[0]


def log_mean_exp_stderr(log_w: Float[Tensor, "particles *batch"]) -> Float[Tensor, "*batch"]:
    r"""The delta-method standard error of :func:`log_mean_exp`, in nats per datapoint; see :class:`.LogMoments`.

    Example:
        >>> log_mean_exp_stderr(torch.tensor([[0.0], [0.0], [0.0]]))
        tensor([0.])
    """
    return LogMoments.of(log_w).stderr.to(log_w.dtype)


def renyi(log_w: Float[Tensor, "particles *batch"], alpha: float) -> Float[Tensor, "*batch"]:
    r"""The variational Renyi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}`.

    :math:`\alpha = 1` is the ELBO (the mean log-weight), :math:`\alpha = 0` the importance-weighted bound,
    :math:`\alpha \to \infty` the smallest log-weight and :math:`\alpha \to -\infty` the largest. For
    :math:`\alpha \ge 0` it is a lower bound on :math:`\log p(x)` in expectation; for :math:`\alpha < 0` its limit is an
    upper bound, but its estimate from finitely many particles is neither. For the same weights it does not increase
    with :math:`\alpha`.

    References:
        | Renyi Divergence Variational Inference (Li & Turner, 2016)  https://arxiv.org/abs/1602.02311

    Example:
        >>> renyi(torch.tensor([[0.0], [2.0]]), alpha=1.0)
        tensor([1.])
    """
    if alpha == 1:
        return log_w.mean(0)
    if math.isinf(alpha):
        return log_w.amin(0) if alpha > 0 else log_w.amax(0)
    # Log-weights are centred at their mean, so that nothing cancels as alpha goes to 1, where the logarithm is nearly
    # linear. The bound is the same for any centre: it is a constant without a gradient, and 0 if a weight is zero.
    mean = log_w.detach().mean(0)
    mean = torch.where(mean.isfinite(), mean, 0.0)
    centred = (1 - alpha) * (log_w - mean)
    small = centred.detach().abs().amax(0) < 0.1
    linear = torch.log1p(torch.expm1(torch.where(small, centred, 0)).mean(0)) / (1 - alpha) + mean
    return torch.where(small, linear, log_mean_exp((1 - alpha) * log_w) / (1 - alpha))


def doubly_reparameterized(log_w: Float[Tensor, "particles *batch"], alpha: float) -> Float[Tensor, "particles *batch"]:
    r"""The coefficient of each particle's path derivative in the doubly reparameterised gradient of the Renyi bound.

    .. math:: \alpha \tilde w_k + (1 - \alpha) \tilde w_k^2, \qquad
        \tilde w = \mathrm{softmax}((1 - \alpha) \log w)

    It equals :math:`v_k - \partial v_k / \partial \log w_k`, where :math:`v_k = \tilde w_k` is the derivative of the
    bound with respect to :math:`\log w_k`: equal weights for the ELBO (:math:`\alpha = 1`), squared weights for the
    importance-weighted bound (:math:`\alpha = 0`).

    References:
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152

    Example:
        >>> doubly_reparameterized(torch.tensor([[0.0], [0.0]]), alpha=0.0)
        tensor([[0.2500],
                [0.2500]])
    """
    weights = normalized_weights((1 - alpha) * log_w)
    return weights * (alpha + (1 - alpha) * weights)


def cubo(log_w: Float[Tensor, "particles *batch"], order: float = 2.0) -> Float[Tensor, "*batch"]:
    r"""The chi upper bound of order n, :math:`\frac1n \log \frac1K \sum_k w_k^n`: :func:`renyi` of alpha = 1 - n.

    Its *limit* is an upper bound on :math:`\log p(x)` for :math:`n \ge 1`; the estimate from finitely many particles
    is biased downwards and is **not** a bound.

    References:
        | Variational Inference via chi Upper Bound Minimization (Dieng et al., 2017)  https://arxiv.org/abs/1611.00328

    Example:
        >>> cubo(torch.tensor([[3.0], [3.0]]))
        tensor([3.])
    """
    return renyi(log_w, 1 - order)


def tvo(log_w: Float[Tensor, "particles *batch"], num_pieces: int = 10) -> Float[Tensor, "*batch"]:
    r"""The thermodynamic lower bound: a left Riemann sum over T equal pieces of the path from q to the posterior.

    .. math:: \frac1T \sum_{t=0}^{T-1} \sum_k \tilde w_k^{(t/T)} \log w_k,
        \qquad \tilde w^{(\beta)} = \mathrm{softmax}(\beta \log w)

    The inner sum grows with :math:`\beta`, and its integral from 0 to 1 is the importance-weighted bound of the same
    weights. For the same weights the sum therefore lies between the ELBO (T = 1) and that bound (T to infinity), and
    it is a lower bound on :math:`\log p(x)` in expectation, for any number of particles.

    References:
        | The Thermodynamic Variational Objective (Masrani et al., 2019)  https://arxiv.org/abs/1907.00031

    Errors:
        ConfigError: unless ``num_pieces`` is a whole number of at least 1.

    Example:
        >>> tvo(torch.tensor([[0.0], [2.0]]), num_pieces=1)
        tensor([1.])
    """
    pieces = require_count("num_pieces", num_pieces)
    total = log_w.mean(0)  # minus infinity if a weight is zero; the other terms leave such a weight out
    finite = log_w.masked_fill(log_w == -torch.inf, 0.0)
    for t in range(1, pieces):
        total = total + (normalized_weights(t / pieces * log_w) * finite).sum(0)
    return total / pieces


def jackknife(log_w: Float[Tensor, "particles *batch"], order: int = 1) -> Float[Tensor, "*batch"]:
    r"""Jackknife variational inference (JVI): the importance-weighted bound without its leading bias terms in 1/K.

    .. math:: \hat L^{J}_m = \sum_{j=0}^m c_j \hat L_{K-j}

    where :math:`\hat L_{K-j}` is the mean, over all subsets of :math:`K - j` particles, of their log-mean-exp, and
    :math:`c_j` are the :func:`jackknife_coefficients`. Order 0 is the importance-weighted bound. For order 1 and above
    this is debiased and **not** a bound.

    This function goes through all subsets, for the objective :class:`pyro_vae.objectives.JVI`;
    :func:`pyro_vae.evidence.jackknife` computes orders 1 and 2 from a stream of many particles.

    References:
        | Debiasing Evidence Approximations (Nowozin, 2018)  https://openreview.net/forum?id=HyZoi-WRb

    Errors:
        ConfigError: unless the number of particles is above the order.

    Example:
        >>> jackknife(torch.tensor([[0.0], [0.0], [0.0]]), order=1)
        tensor([0.])
    """
    particles = log_w.shape[0]
    if not 0 <= order < particles:
        raise ConfigError(f"order {order} needs more than {order} particles, got {particles}: draw more")
    total = torch.zeros_like(log_w[0])
    for j, coefficient in enumerate(jackknife_coefficients(particles, order)):
        total = total + coefficient * _leave_out_mean(log_w, j)
    return total


def jackknife_coefficients(num_particles: int, order: int) -> list[float]:
    r"""The coefficients :math:`c_j = (-1)^j \frac{(K - j)^m}{(m - j)!\, j!}`, :math:`j = 0, \dots, m`, which sum to 1.

    Example:
        >>> jackknife_coefficients(num_particles=10, order=2)
        [50.0, -81.0, 32.0]
    """
    return [
        (-1) ** j * (num_particles - j) ** order / (math.factorial(order - j) * math.factorial(j))
        for j in range(order + 1)
    ]


def _leave_out_mean(log_w: Tensor, num_left_out: int) -> Tensor:
    """The mean log-mean-exp over all subsets that leave ``num_left_out`` particles out."""
    if num_left_out == 0:
        return log_mean_exp(log_w)
    if num_left_out == 1:  # all K subsets at once
        return _leave_one_out(log_w).mean(0)
    particles = range(log_w.shape[0])
    subsets = [[k for k in particles if k not in out] for out in combinations(particles, num_left_out)]
    return torch.stack([log_mean_exp(log_w[kept]) for kept in subsets]).mean(0)


def _leave_one_out(log_w: Tensor) -> Tensor:
    """The log-mean-exp of all particles but the k-th, for every k, from prefix and suffix sums (no cancellation)."""
    start = torch.full_like(log_w[:1], -torch.inf)
    before = torch.cat([start, torch.logcumsumexp(log_w, 0)[:-1]])
    after = torch.cat([torch.logcumsumexp(log_w.flip(0), 0).flip(0)[1:], start])
    return torch.logaddexp(before, after) - math.log(log_w.shape[0] - 1)
