"""Posterior families q(z | x): modules that map the encoder's output to a distribution over z."""

from __future__ import annotations

__all__ = ["DiagonalNormal", "FullNormal", "Posterior"]

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class Posterior(nn.Module):
    """The base class: a map from encoder output ``[*lead, *param_shape]`` to a distribution over ``[latent_dim]``."""

    def __init__(
        self, latent_dim: int, param_shape: Sequence[int], *, min_scale: float = 1e-4, max_scale: float = 1e4
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.param_shape = tuple(param_shape)
        self.log_bounds = (math.log(min_scale), math.log(max_scale))

    def forward(self, params: Tensor) -> Distribution:
        """Return the distribution of z, with event shape ``[latent_dim]``."""
        raise NotImplementedError

    def log_scale(self, params: Tensor) -> Tensor:
        """Return the log-scales in the encoder's output, before they are clamped."""
        raise NotImplementedError

    def hits(self, params: Tensor) -> Tensor:
        """Return the number of clamped scales, as a scalar tensor."""
        log_scale = self.log_scale(params)
        low, high = self.log_bounds
        return ((log_scale < low) | (log_scale > high)).sum()


class DiagonalNormal(Posterior):
    r"""The diagonal Gaussian :math:`q(z \mid x) = \mathcal N(\mu(x), \mathrm{diag}\,\sigma(x)^2)`, with bounded scales.

    The encoder returns ``[*lead, 2, latent_dim]``: the location and the log-scale. The log-scale is clamped, so that no
    input can make :math:`\sigma` zero or infinite; :meth:`hits` counts the clamped scales. Their gradient is zero, so
    that it cannot push them ever further beyond the bound.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale, max_scale: The bounds on :math:`\sigma`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> q = DiagonalNormal(3)(torch.zeros(5, 2, 3))
        >>> q.rsample().shape, q.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e4) -> None:
        super().__init__(latent_dim, (2, latent_dim), min_scale=min_scale, max_scale=max_scale)

    def forward(self, params: Tensor) -> Distribution:
        scale = self.log_scale(params).clamp(*self.log_bounds).exp()
        return dist.Normal(params.select(-2, 0), scale, validate_args=False).to_event(1)

    def log_scale(self, params: Tensor) -> Tensor:
        return params.select(-2, 1)


class FullNormal(Posterior):
    r"""The Gaussian with full covariance, :math:`q(z \mid x) = \mathcal N(\mu, L L^\top)`, by its Cholesky factor.

    The encoder returns ``[*lead, latent_dim (latent_dim + 3) / 2]``: the location, the logarithm of the diagonal of
    :math:`L`, and the entries below the diagonal, row by row, in units of their row's diagonal entry. The diagonal is
    bounded like the scales of :class:`DiagonalNormal`, which is this family with zeros below the diagonal.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale, max_scale: The bounds on the diagonal of :math:`L`.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), for families beyond diagonal ones
        | https://arxiv.org/abs/1505.05770

    Example:
        >>> q = FullNormal(3)(torch.zeros(5, 9))
        >>> q.rsample().shape, q.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e4) -> None:
        num_params = latent_dim * (latent_dim + 3) // 2
        super().__init__(latent_dim, (num_params,), min_scale=min_scale, max_scale=max_scale)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, params: Tensor) -> Distribution:
        loc, below = params[..., : self.latent_dim], params[..., 2 * self.latent_dim :]
        scale = self.log_scale(params).clamp(*self.log_bounds).exp()
        factor = torch.diag_embed(torch.ones_like(loc))
        factor[..., self.rows, self.columns] = below
        return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * factor, validate_args=False)

    def log_scale(self, params: Tensor) -> Tensor:
        return params[..., self.latent_dim : 2 * self.latent_dim]


def moved(q: Any, noise: Tensor) -> Tensor:
    """Transform standard normal values to draws from q, a Gaussian of either family.

    Example:
        >>> moved(DiagonalNormal(2)(torch.zeros(2, 2)), torch.ones(2))
        tensor([1., 1.])
    """
    if isinstance(q, dist.MultivariateNormal):
        return q.loc + (q.scale_tril @ noise[..., None])[..., 0]
    return q.base_dist.loc + q.base_dist.scale * noise
