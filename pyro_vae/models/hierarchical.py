r"""The variational autoencoder with several stochastic layers."""

from __future__ import annotations

__all__ = ["HierarchicalVAE"]

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..errors import ConfigError
from .base import BaseVAE
from .likelihoods import Likelihood
from .posteriors import DiagonalNormal, Posterior, moved
from .priors import Prior, require_standard_normal


class HierarchicalVAE(BaseVAE):
    r"""A variational autoencoder with a chain of latent variables, generated top-down and inferred bottom-up.

    .. math:: p(x, z_1, \dots, z_L) = p(z_L) \, p(z_{L-1} \mid z_L) \cdots p(z_1 \mid z_2) \, p(x \mid z_1), \qquad
        q(z_1, \dots, z_L \mid x) = q(z_1 \mid x) \, q(z_2 \mid z_1) \cdots q(z_L \mid z_{L-1})

    Its sites are ``z1`` to ``zL`` and ``x``. Networks are listed from the data upwards, and as in a
    :class:`~pyro_vae.VAE` any network that maps ``[n, ...]`` to ``[n, ...]`` will do.

    Arguments:
        encoders: One network for each layer: the first takes x, the next :math:`z_1`, and so on.
        posteriors: One module for each layer, which maps the encoder's output to q of that layer's z.
        decoders: One network for each layer: the first takes :math:`z_1` and returns the likelihood's parameters, the
            next takes :math:`z_2`, and so on.
        prior: A module that returns :math:`p(z_L)`.
        likelihood: A module that maps the first decoder's output to :math:`p(x \mid z_1)`.
        conditionals: One module for each layer except the last, which maps a decoder's output to
            :math:`p(z_l \mid z_{l+1})`; by default diagonal Gaussians.
        name: The prefix of the parameters in Pyro's store. VAEs trained by ``SVI`` in one process need different names.

    Errors:
        ConfigError: for lists of lengths that do not match.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), for two layers  https://arxiv.org/abs/1509.00519
        | Ladder Variational Autoencoders (Sønderby et al., 2016), for more  https://arxiv.org/abs/1602.02282

    Example:
        >>> vae = pv.presets.burda_two_layer_vae(data_shape=(8, 8))
        >>> vae.latent_dims, vae.sample(3).shape
        ({'z1': 100, 'z2': 50}, torch.Size([3, 8, 8]))
    """

    guided_by = ("encoders.", "posteriors.")

    def __init__(
        self,
        *,
        encoders: Sequence[nn.Module],
        posteriors: Sequence[Posterior],
        decoders: Sequence[nn.Module],
        prior: Prior,
        likelihood: Likelihood,
        conditionals: Sequence[Posterior] | None = None,
        name: str = "vae",
    ) -> None:
        super().__init__(likelihood, name)
        if conditionals is None:
            conditionals = [DiagonalNormal(part.latent_dim) for part in posteriors[:-1]]
        sizes = [len(part) for part in (encoders, posteriors, decoders, conditionals)]
        if not len(encoders) or sizes != [len(encoders)] * 3 + [len(encoders) - 1]:
            raise ConfigError(
                "expected equal numbers of encoders, posteriors and decoders, and one conditional fewer, found {}, {}, "
                "{} and {}".format(*sizes)
            )
        self.encoders = nn.ModuleList(encoders)
        self.posteriors = nn.ModuleList(posteriors)
        self.decoders = nn.ModuleList(decoders)
        self.conditionals = nn.ModuleList(conditionals)
        self.prior = prior
        self._latent_dims = {f"z{layer}": part.latent_dim for layer, part in enumerate(posteriors, 1)}

    @property
    def families(self) -> dict[str, tuple[nn.Module, ...]]:
        layers = zip([*self.conditionals, self.prior], self.posteriors, strict=True)
        return {**{f"z{layer}": modules for layer, modules in enumerate(layers, 1)}, "x": (self.likelihood,)}

    @property
    def latent_dims(self) -> dict[str, int]:
        return dict(self._latent_dims)

    def model(self, x: Any = None, num: int | None = None, *, mask: Any = None) -> Tensor:
        """The Pyro program ``zL ~ p(zL); ...; x ~ p(x | z1)`` in the plate ``data``; ``x=None`` generates ``num``.

        ``mask``, ``[n, *data_shape]``, is true where x is observed; only those entries enter the likelihood.
        """
        self._register(guide=False)
        x, num, mask = self._observed(x, num, mask)
        with pyro.plate("data", num):
            p = self.prior()
            for layer in reversed(range(len(self.decoders))):
                z = pyro.sample(f"z{layer + 1}", p)  # pyright: ignore[reportArgumentType]
                p = self._below(layer, z)
            return pyro.sample("x", self.likelihood.observed(p, mask), obs=x)  # pyright: ignore[reportArgumentType]

    def guide(self, x: Any, *, mask: Any = None) -> Tensor:
        """The Pyro program ``z1 ~ q(z1 | x); z2 ~ q(z2 | z1); ...`` in the plate ``data``.

        The first encoder sees zeros where ``mask`` is false.
        """
        self._register(guide=True)
        value, mask = self._checked(x, mask, batch=True)
        with pyro.plate("data", len(value)):
            for layer in range(len(self.encoders)):
                value = pyro.sample(f"z{layer + 1}", self._above(layer, value, mask))  # pyright: ignore[reportArgumentType]
        return value

    def encode(self, x: Any, *, mask: Any = None) -> Distribution:
        """q(z1 | x), batch ``[*lead]``, in the mode, training or evaluation, of the module."""
        return self._above(0, *self._checked(x, mask))

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z1), batch ``[*lead]``, event ``data_shape``, in the mode, training or evaluation, of the module."""
        return self._below(0, z)

    def sample_latents(self, num: int) -> Tensor:
        z = self.prior().sample(torch.Size([num]))
        for layer in reversed(range(1, len(self.decoders))):
            z = self._below(layer, z).sample()
        return z

    def from_normal(self, noise: dict[str, Tensor]) -> Tensor:
        require_standard_normal(self.prior)
        z = noise[f"z{len(self.decoders)}"]
        for layer in reversed(range(1, len(self.decoders))):
            z = moved(self._below(layer, z), noise[f"z{layer}"])
        return z

    def run_at_means(self, x: Tensor) -> None:
        value, mask = self._checked(x)
        for layer in range(len(self.encoders)):
            value = self._above(layer, value, mask).mean
            self._below(layer, value)

    def _above(self, layer: int, value: Tensor, mask: Tensor | None) -> Distribution:
        """q of a layer's z, given the z of the layer below, or the data and their mask."""
        shape, mask = (value.shape[-1:], None) if layer else (self.data_shape, mask)
        return self._distribution(self.encoders[layer], value, shape, self.posteriors[layer], mask)

    def _below(self, layer: int, z: Tensor) -> Distribution:
        """p of the variable below a layer, which is another z or the data, given the layer's z."""
        family = self.conditionals[layer - 1] if layer else self.likelihood
        return self._distribution(self.decoders[layer], z, z.shape[-1:], family)
