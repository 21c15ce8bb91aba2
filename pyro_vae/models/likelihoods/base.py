"""The base classes of all likelihoods, and of those with a location and a scale."""

from __future__ import annotations

__all__ = ["Likelihood", "LocationScale", "bisect"]

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ...data.arrays import require_finite
from ...errors import ConfigError
from ..nn import bounded


class Likelihood(nn.Module):
    """The base class: a map from decoder output ``[*lead, *param_shape]`` to a distribution over ``data_shape``."""

    def __init__(self, data_shape: Sequence[int], param_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.param_shape = tuple(param_shape)

    def forward(self, params: Tensor) -> Distribution:
        """Return the distribution of x, with event shape ``data_shape``."""
        raise NotImplementedError

    def observed(self, p: Any, mask: Tensor | None) -> Any:
        r"""Return the density of the observed entries alone, :math:`\prod_{d: m_d = 1} p(x_d \mid z)`.

        Entries of x are independent given z, so the product over the observed ones is the integral over the others.
        Draws have all entries.

        Arguments:
            p: The distribution that :meth:`forward` returned.
            mask: True where x is observed, ``[n, *data_shape]``; None if all of it is.
        """
        return p if mask is None else dist.Independent(p.base_dist.mask(mask), len(self.data_shape))

    def check(self, x: Tensor) -> None:
        """Raise :class:`~pyro_vae.errors.DataError` unless ``x`` is finite and in the support."""
        require_finite(x)

    def hits(self, params: Tensor) -> Tensor:
        """Return the number of scales at a bound, as a scalar tensor; 0 for a likelihood without a scale."""
        return torch.zeros((), dtype=torch.long)

    def output_bias(self, mean: Tensor) -> Tensor:
        """Return the decoder output, ``param_shape``, for which E[x | z] is the given mean image."""
        raise NotImplementedError


def bisect(increasing: Callable[[Tensor], Tensor], value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point in [low, high] at which an increasing function of each pixel comes closest to a value.

    Example:
        >>> bisect(torch.exp, torch.ones(1), torch.tensor([-1.0]), torch.tensor([2.0])).abs() < 1e-6
        tensor([True])
    """
    for _ in range(60):
        middle = (low + high) / 2
        above = increasing(middle) > value
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


class LocationScale(Likelihood):
    """Pixels with a location and a bounded scale: from the decoder, learned, or fixed; see :class:`Gaussian`."""

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        scale: float | Literal["learned", "decoder"] = "decoder",
        min_scale: float = 0.01,
        max_scale: float = 100.0,
        start_scale: float = 1.0,
    ) -> None:
        known = scale in ("learned", "decoder") if isinstance(scale, str) else math.isfinite(scale) and scale > 0
        if not known:
            raise ConfigError(f"scale={scale!r}: expected a positive number, 'learned' or 'decoder'")
        from_decoder = scale == "decoder"
        super().__init__(data_shape, (2, *data_shape) if from_decoder else data_shape)
        self.from_decoder = from_decoder
        # Rounded to float32, so that a parameter that is moved back to a bound equals it.
        self.log_bounds = tuple(torch.tensor([min_scale, max_scale], dtype=torch.float64).log().float().tolist())
        self.log_start = math.log(start_scale)
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.full(tuple(data_shape), self.log_start))
        elif not isinstance(scale, str):
            self.register_buffer("log_scale", torch.full(tuple(data_shape), math.log(scale)))
            self.log_bounds = (-math.inf, math.inf)

    def hits(self, params: Tensor) -> Tensor:
        loc, log_scale = self._parts(params)
        low, high = self.log_bounds
        return ((log_scale <= low) | (log_scale >= high)).expand_as(loc).sum()

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location and the log-scale, which is within its bounds."""
        if self.from_decoder:
            loc, log_scale = params.unbind(-1 - len(self.data_shape))
            return loc, log_scale.clamp(*self.log_bounds)
        return params, bounded(self.log_scale, *self.log_bounds, training=self.training)
