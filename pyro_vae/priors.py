"""Priors p(z): modules that return a distribution over one latent vector."""

from __future__ import annotations

__all__ = ["StandardNormal"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class StandardNormal(nn.Module):
    r"""The prior :math:`p(z) = \mathcal N(0, I)` over ``latent_dim`` dimensions.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        # Buffers follow the module's device and dtype; they are constants and so not part of the saved state.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
