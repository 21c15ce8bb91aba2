r"""The variational autoencoder with one latent vector."""

from __future__ import annotations

__all__ = ["VAE"]

from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .base import BaseVAE
from .likelihoods import Likelihood
from .posteriors import DiagonalNormal, Posterior
from .priors import Prior, VampPrior, require_standard_normal


class VAE(BaseVAE):
    r"""A variational autoencoder: networks, and the Pyro functions :meth:`model` and :meth:`guide` that use them.

    .. math:: p(z) = \mathcal N(0, I), \qquad p(x \mid z) = \text{likelihood}(\text{decoder}(z)),
        \qquad q(z \mid x) = \text{posterior}(\text{encoder}(x))

    It works in stock :class:`pyro.infer.SVI`, and Pyro's global state is untouched until it runs there. Particles and
    other leading dimensions are folded into the batch dimension of the networks, so any network that maps ``[n, ...]``
    to ``[n, ...]`` will do.

    Arguments:
        encoder: A module, ``[n, *data_shape] -> [n, *posterior.param_shape]``.
        decoder: A module, ``[n, latent_dim] -> [n, *likelihood.param_shape]``.
        prior: A module that returns p(z), such as :class:`~pyro_vae.priors.StandardNormal`.
        likelihood: A module that maps the decoder's output to p(x | z), see :mod:`pyro_vae.likelihoods`.
        posterior: A module that maps the encoder's output to q(z | x); by default a diagonal Gaussian.
        name: The prefix of the parameters in Pyro's store. VAEs trained by ``SVI`` in one process need different names.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(16,))
        >>> vae.encode(torch.zeros(5, 8, 8)).mean.shape, vae.sample(3).shape
        (torch.Size([5, 2]), torch.Size([3, 8, 8]))
    """

    guided_by = ("encoder.", "posterior.")

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Posterior | None = None,
        name: str = "vae",
    ) -> None:
        super().__init__(likelihood, name)
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.posterior = DiagonalNormal(prior.latent_dim) if posterior is None else posterior

    @property
    def families(self) -> dict[str, tuple[nn.Module, ...]]:
        return {"z": (self.prior, self.posterior), "x": (self.likelihood,)}

    @property
    def latent_dim(self) -> int:
        """The number of latent dimensions."""
        return self.prior.latent_dim

    @property
    def latent_dims(self) -> dict[str, int]:
        return {"z": self.latent_dim}

    def model(self, x: Any = None, num: int | None = None, *, mask: Any = None) -> Tensor:
        """The Pyro program ``z ~ p(z); x ~ p(x | z)`` in the plate ``data``; ``x=None`` generates ``num`` datapoints.

        ``mask``, ``[n, *data_shape]``, is true where x is observed; only those entries enter the likelihood.
        """
        self._register(guide=False)
        x, num, mask = self._observed(x, num, mask)
        if isinstance(self.prior, VampPrior):
            self.prior.require_shared(self.encoder, self.posterior)
        with pyro.plate("data", num):
            z = pyro.sample("z", self.prior())
            p = self.likelihood.observed(self.decode(z), mask)
            return pyro.sample("x", p, obs=x)  # pyright: ignore[reportArgumentType]

    def guide(self, x: Any, *, mask: Any = None) -> Tensor:
        """The Pyro program ``z ~ q(z | x)`` in the plate ``data``; the encoder sees zeros where ``mask`` is false."""
        self._register(guide=True)
        x, mask = self._checked(x, mask, batch=True)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self._posterior(x, mask))  # pyright: ignore[reportArgumentType]

    def encode(self, x: Any, *, mask: Any = None) -> Distribution:
        """q(z | x), batch ``[*lead]``, event ``[latent_dim]``, in the mode, training or evaluation, of the module."""
        return self._posterior(*self._checked(x, mask))

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), batch ``[*lead]``, event ``data_shape``, in the mode, training or evaluation, of the module."""
        return self._distribution(self.decoder, z, z.shape[-1:], self.likelihood)

    def sample_latents(self, num: int) -> Tensor:
        return self.prior().sample(torch.Size([num]))

    def from_normal(self, noise: dict[str, Tensor]) -> Tensor:
        require_standard_normal(self.prior)
        return noise["z"]

    def run_at_means(self, x: Tensor) -> None:
        self.decode(self.encode(x).mean)

    def _posterior(self, x: Tensor, mask: Tensor | None) -> Distribution:
        return self._distribution(self.encoder, x, self.data_shape, self.posterior, mask)
