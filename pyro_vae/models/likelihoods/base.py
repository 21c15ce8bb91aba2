"""What every likelihood is, and what those with a location and a scale share."""

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
    """What every likelihood is: decoder output ``[*lead, *param_shape]`` -> distribution over ``data_shape``."""

    def __init__(self, data_shape: Sequence[int], param_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.param_shape = tuple(param_shape)

    def forward(self, params: Tensor) -> Distribution:
        """The distribution of x, with ``data_shape`` as its event."""
        raise NotImplementedError

    def observed(self, p: Any, mask: Tensor | None) -> Any:
        r"""The entries that are observed, :math:`\prod_{d: m_d = 1} p(x_d \mid z)`; draws are of all entries.

        Entries of x are independent given z, so leaving those out that are not observed integrates over them.

        Arguments:
            p: What :meth:`forward` returned.
            mask: True where x is observed, ``[n, *data_shape]``; none if all of it is.
        """
        return p if mask is None else dist.Independent(p.base_dist.mask(mask), len(self.data_shape))

    def check(self, x: Tensor) -> None:
        """Raise :class:`~pyro_vae.errors.DataError` unless ``x`` is finite and in the support."""
        require_finite(x)

    def hits(self, params: Tensor) -> Tensor:
        """How many scales are held by a bound, as a scalar tensor; 0 for a likelihood that has none."""
        return torch.zeros((), dtype=torch.long)

    def output_bias(self, mean: Tensor) -> Tensor:
        """The decoder's output, ``param_shape``, at which E[x | z] is the given mean image."""
        raise NotImplementedError


def bisect(increasing: Callable[[Tensor], Tensor], value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where an increasing function of each pixel has that value, or the end that is nearer to it.

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
    """Pixels with a location and a bounded scale, made by the decoder, learned, or fixed; see :class:`Gaussian`."""

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        scale: float | Literal["learned", "decoder"] = "decoder",
        min_scale: float = 0.01,
        max_scale: float = 100.0,
        start_scale: float = 1.0,
    ) -> None:
        from_decoder = scale == "decoder"
        super().__init__(data_shape, (2, *data_shape) if from_decoder else data_shape)
        self.from_decoder = from_decoder
        # As float32 has them: a scale that is put back onto a bound has to be found on it, not beyond.
        self.log_bounds = tuple(torch.tensor([min_scale, max_scale], dtype=torch.float64).log().float().tolist())
        self.log_start = math.log(start_scale)
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.full(tuple(data_shape), self.log_start))
        elif not isinstance(scale, str):
            if not (math.isfinite(scale) and scale > 0):
                raise ConfigError(f"scale={scale}: expected a positive number, 'learned' or 'decoder'")
            self.register_buffer("log_scale", torch.full(tuple(data_shape), math.log(scale)))
            self.log_bounds = (-math.inf, math.inf)
        elif not from_decoder:
            raise ConfigError(f"scale={scale!r}: expected a positive number, 'learned' or 'decoder'")

    def hits(self, params: Tensor) -> Tensor:
        loc, log_scale = self._parts(params)
        low, high = self.log_bounds
        return ((log_scale <= low) | (log_scale >= high)).expand_as(loc).sum()

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale, the latter within its bounds."""
        if self.from_decoder:
            loc, log_scale = params.unbind(-1 - len(self.data_shape))
            return loc, log_scale.clamp(*self.log_bounds)
        return params, bounded(self.log_scale, *self.log_bounds, training=self.training)
