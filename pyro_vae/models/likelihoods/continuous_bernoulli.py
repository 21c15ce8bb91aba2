r"""Grey pixels in [0, 1]."""

from __future__ import annotations

__all__ = ["ContinuousBernoulli"]

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution

from ...errors import DataError
from .base import Likelihood, bisect


class ContinuousBernoulli(Likelihood):
    r"""Independent grey pixels with a density on [0, 1] that is exponential in x.

    .. math:: \log p(x \mid z) = \sum_d l_d (x_d - \tfrac12) - \log \frac{\sinh(l_d / 2)}{l_d / 2}

    The decoder returns the logits :math:`l`. The second term normalises the density; the relaxed Bernoulli lacks it. At
    a border pixel that is always black the density grows with :math:`|l|` without limit. So logits are clamped;
    :meth:`hits` counts the clamped ones, which have no gradient.

    Arguments:
        data_shape: The shape of one datapoint.
        max_logit: The bound on :math:`|l|`. With the default of 100 the density at the end of the interval is at most
            100, and the standard deviation there is 1/100.

    Errors:
        DataError: for data outside [0, 1], with their range.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        | (Loaiza-Ganem & Cunningham, 2019)  https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli((2, 2))(torch.zeros(5, 2, 2)).log_prob(torch.rand(5, 2, 2))
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(self, data_shape: Sequence[int], *, max_logit: float = 100.0) -> None:
        super().__init__(data_shape, data_shape)
        self.max_logit = max_logit

    def forward(self, params: Tensor) -> Distribution:
        return _Exponential(params.clamp(-self.max_logit, self.max_logit)).to_event(len(self.data_shape))

    def check(self, x: Tensor) -> None:
        if bool(((x >= 0) & (x <= 1)).all()):
            return
        super().check(x)
        raise DataError(
            f"a continuous Bernoulli likelihood expects x in [0, 1], found others in [{x.min():g}, {x.max():g}]: "
            "divide by the largest grey level, or use a Gaussian likelihood"
        )

    def hits(self, params: Tensor) -> Tensor:
        return (params.abs() > self.max_logit).sum()

    def output_bias(self, mean: Tensor) -> Tensor:
        half = torch.full_like(mean, self.max_logit / 2)  # within the bounds, where there is a gradient
        return bisect(lambda logits: _Exponential(logits).mean, mean, -half, half)


class _Exponential(TorchDistribution):
    """The continuous Bernoulli in terms of its logits, exact at all of them.

    ``torch.distributions`` uses probabilities, which equal 1 in single precision from a logit of 17: its log-density
    is then too small by 0.06 nats per pixel, and by 1.8 at a logit of 100. Near a logit of 0 a series is used.
    """

    has_rsample = True

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"logits": constraints.real}

    @property
    def support(self) -> Any:
        return constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Exponential:
        return type(self)(self.logits.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits * (value - 0.5) - self._log_normaliser()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function, on the side of the interval where it is accurate."""
        size = torch.where(self.logits < 0, -self.logits, self.logits)  # unlike abs(), it has a gradient at 0
        u = torch.rand(self._extended_shape(sample_shape), dtype=size.dtype, device=size.device)
        is_small, large = size < 1e-3, size.where(size >= 1e-3, 1)
        dark = torch.where(is_small, u - size * u * (1 - u) / 2, -torch.log1p(u * torch.expm1(-large)) / large)
        return torch.where(self.logits < 0, dark, 1 - dark).clamp(0, 1)

    @property
    def mean(self) -> Tensor:
        is_small, small, large = self._by_size()
        size = large.abs()  # for a negative logit the exponential would overflow, and its gradient be nan
        above = 1 / -torch.expm1(-size) - 1 / size
        return torch.where(is_small, 0.5 + small / 12 - small**3 / 720, torch.where(large < 0, 1 - above, above))

    @property
    def variance(self) -> Tensor:
        is_small, small, large = self._by_size()
        square = small.square()
        exact = large.square().reciprocal() - 0.25 / torch.sinh(large / 2).square()
        return torch.where(is_small, 1 / 12 - square / 240 + square**2 / 6048, exact)

    def _log_normaliser(self) -> Tensor:
        r""":math:`\log \sinh(l / 2) / (l / 2)`."""
        is_small, small, large = self._by_size()
        square, size = small.square(), large.abs()
        exact = size / 2 - size.log() + torch.log1p(-torch.exp(-size))
        return torch.where(is_small, square / 24 - square**2 / 2880 + square**3 / 181440, exact)

    def _by_size(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return which logits are small, and logits for both formulas, at which the unused one has finite gradients."""
        is_small = self.logits.abs() < 0.1
        return is_small, self.logits.where(is_small, 0), self.logits.where(~is_small, 1)
