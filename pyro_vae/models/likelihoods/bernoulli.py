"""Binary pixels."""

from __future__ import annotations

__all__ = ["Bernoulli"]

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ...errors import DataError
from .base import Likelihood


class Bernoulli(Likelihood):
    r"""Independent binary pixels, :math:`p(x \mid z) = \prod_d \pi_d^{x_d} (1 - \pi_d)^{1 - x_d}`.

    The decoder returns the logits.

    Arguments:
        data_shape: The shape of one datapoint.
        relaxed: Also accept grey values in [0, 1]. The value is then the cross-entropy, a popular loss but **not** a
            log-density of grey values: it can be compared neither with binarised data nor with the literature.

    Errors:
        DataError: for data outside {0, 1} (outside [0, 1] if relaxed), with their range and the remedies.

    Example:
        >>> Bernoulli((2, 2))(torch.zeros(5, 2, 2)).log_prob(torch.ones(5, 2, 2))[0]
        tensor(-2.7726)
    """

    def __init__(self, data_shape: Sequence[int], *, relaxed: bool = False) -> None:
        super().__init__(data_shape, data_shape)
        self.relaxed = relaxed

    def forward(self, params: Tensor) -> Distribution:
        # `check` looks at the support once per datapoint, which validation would do once per particle.
        return _Pixels(dist.Bernoulli(logits=params, validate_args=False), len(self.data_shape))

    def check(self, x: Tensor) -> None:
        # x (1 - x) vanishes at 0, 1 and nowhere else (x * x == x would also hold at infinity).
        if bool(((x >= 0) & (x <= 1)).all()) if self.relaxed else not (x * (1 - x)).any():
            return
        super().check(x)
        support, outside = ("[0, 1]", (x < 0) | (x > 1)) if self.relaxed else ("{0, 1}", (x != 0) & (x != 1))
        raise DataError(
            f"a Bernoulli likelihood expects x in {support}, found {x[outside][0]:g} and others in "
            f"[{x.min():g}, {x.max():g}]: divide by the largest grey level and binarise (static, dynamic, threshold), "
            "use a Gaussian likelihood, or ask for a relaxed one (relaxed=True, --relaxed)"
        )

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3))


class _Pixels(dist.Independent):
    r"""Independent Bernoulli pixels with a cheaper log-probability where no gradient is needed.

    .. math:: \log p(x) = \sum_d (x_d - \tfrac12) l_d - \tfrac12 |l_d| + \log \frac{1}{1 + e^{-|l_d|}}

    The sum of the last logarithms is computed as the logarithm of products of up to 32 factors. Each factor is at
    least 1/2, so that single precision holds the product.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        logits = self.base_dist.logits
        if not self.event_dim or (torch.is_grad_enabled() and (logits.requires_grad or value.requires_grad)):
            return super().log_prob(value)
        logits, value = (part.flatten(-self.event_dim) for part in (logits, value))
        if logits.ndim != 3 or value.ndim != 2 or not logits.numel():
            return _log_prob(logits, value)
        particles = max(1, _SLAB // logits[0].numel())
        return torch.cat([_log_prob(part, value) for part in logits.split(particles)])


_SLAB = 2**18  # numbers at a time, so that temporaries stay in the processor's cache
_DOUBLINGS = 5  # products of 2^5 = 32 factors


def _log_prob(logits: Tensor, value: Tensor) -> Tensor:
    size = logits.abs()
    total = _products(logits, value - 0.5) - 0.5 * size.sum(-1)
    factors = size.sigmoid_()  # 1 / (1 + exp(-size))
    for _ in range(_DOUBLINGS):
        pairs = factors.shape[-1] // 2
        if factors.shape[-1] % 2:
            total = total + factors[..., -1].log()
        factors = factors[..., :pairs] * factors[..., pairs : 2 * pairs]
    return total + factors.log_().sum(-1)


def _products(params: Tensor, data: Tensor) -> Tensor:
    """Return the scalar product of the data with all particles of their parameters, by matrix products if possible."""
    if params.ndim == 3 and data.ndim == 2 and len(data) == params.shape[1]:
        return torch.bmm(data[:, None], params.permute(1, 2, 0))[:, 0].T
    return (params * data).sum(-1)
