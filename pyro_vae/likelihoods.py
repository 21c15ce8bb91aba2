"""Likelihoods p(x | z): modules that turn the decoder's output into a distribution over x.

Each says in ``param_shape`` what the decoder has to return for one datapoint, and in :meth:`check` which data it is a
density of.
"""

from __future__ import annotations

__all__ = ["Bernoulli", "Gaussian", "Likelihood"]

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .arrays import require_finite
from .errors import ConfigError, DataError


class Likelihood(nn.Module):
    """What every likelihood is: decoder output ``[*lead, *param_shape]`` -> distribution over ``data_shape``."""

    def __init__(self, data_shape: Sequence[int], param_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.param_shape = tuple(param_shape)

    def forward(self, params: Tensor) -> Distribution:
        """The distribution of x, with ``data_shape`` as its event."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raise :class:`~pyro_vae.errors.DataError` unless ``x`` is finite and in the support."""
        require_finite(x)

    def hits(self, params: Tensor) -> Tensor:
        """How many scales are held by a bound, as a scalar tensor; 0 for a likelihood that has none."""
        return torch.zeros((), dtype=torch.long)

    def output_bias(self, mean: Tensor) -> Tensor:
        """The decoder's output, ``param_shape``, at which E[x | z] is the given mean image."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    r"""Independent binary pixels, :math:`p(x \mid z) = \prod_d \pi_d^{x_d} (1 - \pi_d)^{1 - x_d}`; decoder: logits.

    Arguments:
        data_shape: The shape of one datapoint.
        relaxed: Also accept grey values in [0, 1]. The result is then the cross-entropy, a loss that is popular but
            **not** a log-density of the grey values: numbers cannot be compared with binarised data or the literature.

    Errors:
        DataError: for data outside {0, 1} (outside [0, 1] if relaxed), with the range found and the choices.

    Example:
        >>> Bernoulli((2, 2))(torch.zeros(5, 2, 2)).log_prob(torch.ones(5, 2, 2))[0]
        tensor(-2.7726)
    """

    def __init__(self, data_shape: Sequence[int], *, relaxed: bool = False) -> None:
        super().__init__(data_shape, data_shape)
        self.relaxed = relaxed

    def forward(self, params: Tensor) -> Distribution:
        # The support is checked once per datapoint in `check`, not once per particle.
        return _Pixels(dist.Bernoulli(logits=params, validate_args=False), len(self.data_shape))

    def check(self, x: Tensor) -> None:
        # x (1 - x) vanishes at 0, 1 and nowhere else (x * x == x would also hold at infinity).
        if bool(((x >= 0) & (x <= 1)).all()) if self.relaxed else not (x * (1 - x)).any():
            return
        super().check(x)
        wanted, other = ("[0, 1]", (x < 0) | (x > 1)) if self.relaxed else ("{0, 1}", (x != 0) & (x != 1))
        raise DataError(
            f"a Bernoulli likelihood expects x in {wanted}, found {x[other][0]:g} and others in "
            f"[{x.min():g}, {x.max():g}]: divide by the largest grey level and binarise (static, dynamic, threshold), "
            "use a Gaussian likelihood, or ask for a relaxed one (relaxed=True, --relaxed)"
        )

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3))


class _Pixels(dist.Independent):
    r"""Independent Bernoullis whose log-probability costs a third, where no gradient is asked for.

    .. math:: \log p(x) = \sum_d (x_d - \tfrac12) l_d - \tfrac12 |l_d| + \log \frac{1}{1 + e^{-|l_d|}}

    A sum of logarithms is the logarithm of a product, and a factor is at least 1/2: a few dozen of them fit any float.
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


_SLAB = 2**18  # numbers at a time, with temporaries that stay in the processor's cache
_DOUBLINGS = 5  # 32 factors


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
    """The scalar product of each datapoint with all of its particles, or of whatever has such shapes."""
    if params.ndim == 3 and data.ndim == 2 and len(data) == params.shape[1]:
        return torch.bmm(data[:, None], params.permute(1, 2, 0))[:, 0].T
    return (params * data).sum(-1)


class Gaussian(Likelihood):
    r"""Independent Gaussian pixels, :math:`p(x \mid z) = \mathcal N(\mu_x(z), \mathrm{diag}\,\sigma_x^2)`.

    Arguments:
        data_shape: The shape of one datapoint.
        scale: ``"decoder"`` for :math:`g(z) = (\mu_x(z), \sigma_x(z))`, whose decoder returns ``[2, *data_shape]``,
            the location and the log-scale; ``"learned"`` for one scale per pixel, learned and the same for all z; or a
            fixed number.
        min_scale, max_scale: Bounds on a learned or decoder-made scale. The lower one matters: a density of data that
            never vary (the black border of images, or binary pixels) grows without limit as the scale goes to zero.
            Beyond a bound a scale's gradient is zero, so that it does not run away; :meth:`hits` counts the held ones.

    Errors:
        DataError: for non-finite data, with the count and the first index.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202

    Example:
        >>> Gaussian((3,))(torch.zeros(5, 2, 3)).log_prob(torch.zeros(5, 3))[0]
        tensor(-2.7568)
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        scale: float | Literal["learned", "decoder"] = "decoder",
        min_scale: float = 0.01,
        max_scale: float = 100.0,
    ) -> None:
        from_decoder = scale == "decoder"
        super().__init__(data_shape, (2, *data_shape) if from_decoder else data_shape)
        self.from_decoder = from_decoder
        # As float32 has them: a scale that is put back onto a bound has to be found on it, not beyond.
        self.log_bounds = tuple(torch.tensor([min_scale, max_scale], dtype=torch.float64).log().float().tolist())
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.zeros(*data_shape))
        elif not isinstance(scale, str):
            if not (math.isfinite(scale) and scale > 0):
                raise ConfigError(f"scale={scale}: expected a positive number, 'learned' or 'decoder'")
            self.register_buffer("log_scale", torch.full(tuple(data_shape), math.log(scale)))
            self.log_bounds = (-math.inf, math.inf)
        elif not from_decoder:
            raise ConfigError(f"scale={scale!r}: expected a positive number, 'learned' or 'decoder'")

    def forward(self, params: Tensor) -> Distribution:
        ndim = len(self.data_shape)
        loc, log_scale = self._parts(params)
        return dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(ndim)

    def hits(self, params: Tensor) -> Tensor:
        loc, log_scale = self._parts(params)
        low, high = self.log_bounds
        return ((log_scale <= low) | (log_scale >= high)).expand_as(loc).sum()

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale, the latter within its bounds."""
        if self.from_decoder:
            loc, log_scale = params.unbind(-1 - len(self.data_shape))
            return loc, log_scale.clamp(*self.log_bounds)
        if self.training and isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():  # put back onto its bound, a parameter can come back from there
                bounded = self.log_scale.clamp(*self.log_bounds)
                if not torch.equal(bounded, self.log_scale):
                    self.log_scale.copy_(bounded)
            return params, self.log_scale
        return params, self.log_scale.clamp(*self.log_bounds)

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, torch.zeros_like(mean)]) if self.from_decoder else mean
