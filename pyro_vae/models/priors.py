"""Priors p(z): modules that return a distribution over a latent vector."""

from __future__ import annotations

__all__ = ["GaussianMixture", "Prior", "StandardNormal", "VampPrior"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..data.arrays import as_batch
from ..errors import ConfigError, require_count
from ..pairs.memory import ignored_by_footprint
from .nn import bounded
from .posteriors import Posterior


class Prior(nn.Module):
    """The base class: called without arguments, it returns p(z), with event shape ``[latent_dim]``."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> Distribution:
        """p(z)."""
        raise NotImplementedError


class StandardNormal(Prior):
    r"""The prior :math:`p(z) = \mathcal N(0, I)` over ``latent_dim`` dimensions.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # Buffers follow the module's device and dtype; they are constants and not part of the saved state.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


class GaussianMixture(Prior):
    r"""A mixture of diagonal Gaussians with weights, locations and scales that are learned with the networks.

    .. math:: p(z) = \sum_{c=1}^C \pi_c \, \mathcal N(z; \mu_c, \mathrm{diag}\, \sigma_c^2)

    It starts with equal weights, unit scales and locations drawn from N(0, I).

    Arguments:
        latent_dim: The number of latent dimensions.
        num_components: The number of components C.
        min_scale, max_scale: The bounds on :math:`\sigma`. Without them a component could collapse onto the code of a
            single datapoint, where its density would grow without limit.

    References:
        | Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul et al., 2016)
        | https://arxiv.org/abs/1611.02648

    Example:
        >>> GaussianMixture(2, num_components=5)().log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self, latent_dim: int, *, num_components: int = 10, min_scale: float = 1e-2, max_scale: float = 1e2
    ) -> None:
        super().__init__(latent_dim)
        num = require_count("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num))
        self.loc = nn.Parameter(torch.randn(num, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num, latent_dim))
        self.log_bounds = (math.log(min_scale), math.log(max_scale))

    def forward(self) -> Distribution:
        scale = bounded(self.log_scale, *self.log_bounds, training=self.training).exp()
        return _mixture(self.logits, dist.Normal(self.loc, scale, validate_args=False).to_event(1))


class VampPrior(Prior):
    r"""The mixture of posteriors at learned pseudo-inputs, the *variational mixture of posteriors*.

    .. math:: p(z) = \frac1C \sum_{c=1}^C q(z \mid u_c)

    If all training data were its pseudo-inputs it would be the aggregate posterior, the prior that maximises the ELBO.
    The encoder is shared with q(z | x), and both terms train it.

    Arguments:
        pseudo_inputs: The initial :math:`u`, ``[num_components, *data_shape]``, for instance some of the training data.
        encoder, posterior: The encoder and posterior of the VAE, which owns them.
        latent_dim: The number of latent dimensions.
        bounds: The smallest and the largest possible value of the data; pseudo-inputs stay within them.

    Errors:
        DataError: for pseudo-inputs that are empty or not finite.
        ConfigError: when the VAE runs, if its encoder or posterior has been replaced.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018)  https://arxiv.org/abs/1705.07120

    Example:
        >>> posterior = pv.posteriors.DiagonalNormal(2)
        >>> encoder = pv.nn.MLP((8, 8), (16,), posterior.param_shape)
        >>> prior = VampPrior(torch.rand(5, 8, 8), encoder, posterior, latent_dim=2)
        >>> prior().log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        pseudo_inputs: Any,
        encoder: nn.Module,
        posterior: Posterior,
        *,
        latent_dim: int,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        super().__init__(latent_dim)
        like = next(encoder.parameters())
        self.pseudo_inputs = nn.Parameter(as_batch(pseudo_inputs).to(like).clone())
        self.bounds = bounds
        # In a tuple they are not submodules, so that their parameters are registered and saved once, by the VAE.
        self._amortised = (encoder, posterior)

    def require_shared(self, encoder: nn.Module, posterior: nn.Module) -> None:
        """Raise :class:`~pyro_vae.errors.ConfigError` unless the prior uses this encoder and this posterior."""
        if self._amortised != (encoder, posterior):
            raise ConfigError(
                "the VampPrior follows another encoder or posterior than those of its VAE, which would be neither "
                "trained nor saved: after replacing one of them, give the VAE a new VampPrior of both"
            )

    def forward(self) -> Distribution:
        encoder, posterior = self._amortised
        with ignored_by_footprint():
            params = encoder(bounded(self.pseudo_inputs, *self.bounds, training=self.training))
            components = posterior(params.reshape(len(params), *posterior.param_shape))
        return _mixture(self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)), components)


def _mixture(logits: Tensor, components: Distribution) -> Distribution:
    weights = dist.Categorical(logits=logits, validate_args=False)
    return dist.MixtureSameFamily(weights, components, validate_args=False)


def require_standard_normal(prior: Prior) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` unless the prior is N(0, I)."""
    if not isinstance(prior, StandardNormal):
        raise ConfigError(
            f"found a {type(prior).__name__} prior, expected a StandardNormal one, since standard normal noise has to "
            "be z itself: train the VAE with a StandardNormal prior"
        )
