r"""The log-density of every value under every distribution of a batch, by matrix products where a formula exists."""

from __future__ import annotations

__all__ = ["pairwise_log_prob"]

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.functional import softplus

_MOST_SQUARES = 1e6  # when (x - loc)^2 is expanded, a sum of squares this large has lost 1e-9 nats to rounding


def pairwise_log_prob(fn: Any, values: Tensor, *, max_bytes: int = 2**26) -> Float[Tensor, "nodes rows"]:
    r"""Return :math:`\log p_n(x_b)` in float64, for a batch of distributions and a batch of values.

    For independent Bernoulli or Gaussian dimensions one matrix product computes the sums over dimensions for all pairs:

    .. math:: \sum_d x_{bd} \ell_{nd} - \log(1 + e^{\ell_{nd}}), \qquad
        -\tfrac12 \sum_d \frac{x_{bd}^2 - 2 x_{bd} \mu_{nd} + \mu_{nd}^2}{\sigma_{nd}^2} + \log 2 \pi \sigma_{nd}^2

    For any other distribution ``log_prob`` is called on blocks of about ``max_bytes``.

    Arguments:
        fn: A distribution of batch shape ``[nodes]``.
        values: One event per row, ``[rows, *event]``.

    Example:
        >>> fn = torch.distributions.Normal(torch.zeros(3, 2), 1.0)
        >>> pairwise_log_prob(torch.distributions.Independent(fn, 1), torch.zeros(5, 2))[0, 0]
        tensor(-1.8379, dtype=torch.float64)
    """
    base, nodes, log_prob = fn, fn.batch_shape[0], None
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Bernoulli):
        log_prob = _bernoulli(base.logits.double().reshape(nodes, -1), values.double().reshape(len(values), -1))
    elif isinstance(base, Normal):
        loc, scale = (part.double().reshape(nodes, -1) for part in (base.loc, base.scale))
        log_prob = _normal(loc, scale, values.double().reshape(len(values), -1))
    return _by_broadcasting(fn, values, max_bytes) if log_prob is None else log_prob


def _bernoulli(logits: Float[Tensor, "nodes data"], x: Float[Tensor, "rows data"]) -> Float[Tensor, "nodes rows"]:
    return logits @ x.T - softplus(logits).sum(1, keepdim=True)


def _normal(
    loc: Float[Tensor, "nodes data"], scale: Float[Tensor, "nodes data"], x: Float[Tensor, "rows data"]
) -> Float[Tensor, "nodes rows"] | None:
    """Return the log-densities, or None if the squares are so large that rounding would dominate their difference."""
    centre = x.mean(0)
    x, loc, precision = x - centre, loc - centre, scale**-2
    squares = precision @ (x * x).T
    if not squares.max() < _MOST_SQUARES:
        return None
    constant = (loc * loc * precision + 2 * scale.log()).sum(1, keepdim=True) + x.shape[1] * math.log(2 * math.pi)
    return -0.5 * (squares - 2 * (loc * precision) @ x.T + constant)


def _by_broadcasting(fn: Any, values: Tensor, max_bytes: int) -> Float[Tensor, "nodes rows"]:
    copies = 4  # temporaries, each with one number per node, row and entry
    size = max(1, max_bytes // (8 * copies * fn.batch_shape[0] * max(1, values[0].numel())))
    return torch.cat([fn.log_prob(part[:, None]).double() for part in values.split(size)]).T
