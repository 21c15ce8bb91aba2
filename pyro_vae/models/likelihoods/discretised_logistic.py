r"""Pixels with discrete grey levels."""

from __future__ import annotations

__all__ = ["DiscretisedLogistic"]

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from ...errors import DataError, require_count
from .base import LocationScale, bisect


class DiscretisedLogistic(LocationScale):
    r"""Independent pixels with discrete grey levels, each with the mass of a logistic distribution in its interval.

    .. math:: p(x \mid z) = \prod_d \int_{x_d - h}^{x_d + h} \text{Logistic}(t; \mu_d, s_d) \, dt, \qquad
        h = \frac{1}{2 (\text{num\_levels} - 1)}

    The intervals of the darkest and the lightest level extend to infinity. Grey levels are in [0, 1], as
    ``Pixels(images, "none")`` presents them, and :math:`\mu` and :math:`s` are in these units. This is a probability,
    not a density, so it is never above 1, and :math:`-\log_2 p` per pixel is the number of bits that a code needs: the
    *bits per dimension* of the literature.

    Arguments:
        data_shape: The shape of one datapoint.
        num_levels: The number of grey levels: 256 for bytes.
        scale: ``"decoder"`` if the decoder returns ``[2, *data_shape]``, the location and the log-scale; ``"learned"``
            for one scale per pixel, the same for all z; or a fixed number.
        min_scale, max_scale: The bounds on a scale that is learned or from the decoder; :meth:`hits` counts the scales
            at a bound.

    Errors:
        DataError: for data that are not grey levels in [0, 1], with an example.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Example:
        >>> levels = torch.arange(256.0)[:, None] / 255
        >>> DiscretisedLogistic((1,))(torch.tensor([[0.3], [-2.0]])).log_prob(levels).exp().sum().round(decimals=4)
        tensor(1.)
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_levels: int = 256,
        scale: float | Literal["learned", "decoder"] = "decoder",
        min_scale: float = 1e-3,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(data_shape, scale=scale, min_scale=min_scale, max_scale=max_scale, start_scale=0.1)
        self.num_levels = require_count("num_levels", num_levels, least=2)

    def forward(self, params: Tensor) -> Distribution:
        loc, log_scale = self._parts(params)
        return _Levels(loc, log_scale.exp(), self.num_levels).to_event(len(self.data_shape))

    def output_bias(self, mean: Tensor) -> Tensor:
        log_scale = torch.full_like(mean, self.log_start) if self.from_decoder else self.log_scale.to(mean)
        scale = log_scale.detach().exp()
        loc = bisect(lambda at: _Levels(at, scale, self.num_levels).mean, mean, -10 * scale, 1 + 10 * scale)
        return torch.stack([loc, log_scale]) if self.from_decoder else loc

    def check(self, x: Tensor) -> None:
        super().check(x)
        level = x * (self.num_levels - 1)
        off = (x < 0) | (x > 1) | ((level - level.round()).abs() > 0.1)  # half precision rounds by up to 0.06 levels
        if off.any():
            raise DataError(
                f"a discretised logistic likelihood expects x in 0, 1/{self.num_levels - 1}, ..., 1, found "
                f"{x[off][0]:g} and others in [{x.min():g}, {x.max():g}]: divide by the largest grey level "
                f"({self.num_levels - 1}), or give the number of levels (num_levels=)"
            )


class _Levels(TorchDistribution):
    """Grey levels 0, 1/(n-1), ..., 1 with the masses of a logistic distribution around them."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"loc": constraints.real, "scale": constraints.positive}

    @property
    def support(self) -> Any:
        return constraints.unit_interval

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Levels:
        shape = torch.Size(batch_shape)
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), self.num_levels)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Use :math:`\sigma(b) - \sigma(a) = \sigma(b) \sigma(-a) (1 - e^{a - b})`, which is accurate everywhere."""
        width = 1 / (self.num_levels - 1)
        below, above = ((value - self.loc + side * width / 2) / self.scale for side in (-1, 1))
        darkest, lightest = value < width / 2, value > 1 - width / 2
        # The mass of an interval that extends to infinity has only one of the factors.
        upper = logsigmoid(above).where(~lightest, 0)
        lower = logsigmoid(-below).where(~darkest, 0)
        between = torch.log(-torch.expm1(-width / self.scale)).where(~(darkest | lightest), 0)
        return upper + lower + between

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        eps = torch.finfo(u.dtype).eps
        x = self.loc + self.scale * torch.logit(u, eps=eps)
        return (x * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1) / (self.num_levels - 1)

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        mean, square = self._moments()
        return (square - mean.square()).clamp(min=0)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return E[x] and E[x^2], as sums of P(x >= level) over levels, one at a time to save memory."""
        top = self.num_levels - 1
        first, second = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        for level in range(1, top + 1):
            survival = torch.sigmoid((self.loc - (level - 0.5) / top) / self.scale)
            first = first + survival
            second = second + (2 * level - 1) * survival
        return first / top, second / top**2
