"""Real-valued pixels."""

from __future__ import annotations

__all__ = ["Gaussian"]

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from .base import LocationScale


class Gaussian(LocationScale):
    r"""Independent Gaussian pixels, :math:`p(x \mid z) = \mathcal N(\mu_x(z), \mathrm{diag}\,\sigma_x^2)`.

    Arguments:
        data_shape: The shape of one datapoint.
        scale: ``"decoder"`` for :math:`(\mu_x(z), \sigma_x(z))` from a decoder that returns ``[2, *data_shape]``, the
            location and the log-scale; ``"learned"`` for one scale per pixel, learned and the same for all z; or a
            fixed number.
        min_scale, max_scale: The bounds on a scale that is learned or from the decoder. The lower one matters: the
            density of data that never vary (the black border of images, or binary pixels) grows without limit as the
            scale goes to zero. Beyond a bound the gradient of the scale is zero, so that it does not run away;
            :meth:`hits` counts the scales at a bound.
        start_scale: The initial value of a learned scale, or of the decoder's if it starts at :meth:`output_bias`.

    Errors:
        DataError: for non-finite data, with their number and the first index.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202

    Example:
        >>> Gaussian((3,))(torch.zeros(5, 2, 3)).log_prob(torch.zeros(5, 3))[0]
        tensor(-2.7568)
    """

    def forward(self, params: Tensor) -> Distribution:
        ndim = len(self.data_shape)
        loc, log_scale = self._parts(params)
        return dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(ndim)

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, torch.full_like(mean, self.log_start)]) if self.from_decoder else mean
