"""Posterior families q(z | x): modules that turn the encoder's output into a distribution over z."""

from __future__ import annotations

__all__ = ["DiagonalNormal"]

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution


class DiagonalNormal(nn.Module):
    r"""Diagonal Gaussian :math:`q(z \mid x) = \mathcal N(\mu(x), \mathrm{diag}\,\sigma(x)^2)` with a bounded scale.

    The encoder returns ``[*lead, 2, latent_dim]``: the location and the log-scale. The log-scale is clamped, so that no
    input can make :math:`\sigma` zero or infinite; :meth:`hits` counts how often that happened. Where it is clamped its
    gradient is zero, as it should be: passed on, it would push ever further beyond the bound.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale, max_scale: The bounds on :math:`\sigma`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> q = DiagonalNormal(3)(torch.zeros(5, 2, 3))
        >>> q.rsample().shape, q.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e4) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.param_shape = (2, latent_dim)
        self.log_bounds = (math.log(min_scale), math.log(max_scale))

    def forward(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        scale = log_scale.clamp(*self.log_bounds).exp()
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def hits(self, params: Tensor) -> Tensor:
        """How many scales were clamped, as a scalar tensor."""
        log_scale = params.unbind(-2)[1]
        low, high = self.log_bounds
        return ((log_scale < low) | (log_scale > high)).sum()
