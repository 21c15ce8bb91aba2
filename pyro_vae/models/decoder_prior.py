r"""A trained decoder as the prior of something else: one primitive in any Pyro model."""

from __future__ import annotations

__all__ = ["DecoderPrior", "decoder_prior"]

import copy

import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from ..errors import ConfigError, ShapeError
from .base import Pair


class DecoderPrior:
    """What :func:`decoder_prior` returns: called inside a Pyro model, it draws a field."""

    def __init__(self, vae: Pair, name: str) -> None:
        self.name = name
        self._frozen = copy.deepcopy(vae).eval().requires_grad_(False)
        like = next(self._frozen.parameters())
        self._zeros = {site: like.new_zeros(size) for site, size in self._frozen.latent_dims.items()}
        self._frozen.from_normal(self._zeros)  # or it is said now why there is none

    def __call__(self) -> Tensor:
        r"""The field :math:`\mathbb E[x \mid z]`, ``[*plates, *data_shape]``, with its noise as sites ``name/...``."""
        noise = {
            site: pyro.sample(f"{self.name}/{site}", dist.Normal(zero, 1.0).to_event(1))
            for site, zero in self._zeros.items()
        }
        return pyro.deterministic(self.name, self.at(noise).mean, event_dim=len(self._frozen.data_shape))

    def at(self, noise: dict[str, Tensor]) -> Distribution:
        """p(x | z) at standard normal values ``[*lead, latent_dim]`` for each latent site, event ``data_shape``.

        Errors:
            ShapeError: for other sites or sizes than the VAE's, which are those that the draws of ``name/...`` have.
        """
        sizes = self._frozen.latent_dims
        found = {site: tuple(value.shape) for site, value in noise.items()} if isinstance(noise, dict) else type(noise)
        if not isinstance(found, dict) or {site: shape[-1:] for site, shape in found.items()} != {
            site: (size,) for site, size in sizes.items()
        }:
            raise ShapeError(f"noise: found {found}, expected values [..., size] of the sites and sizes {sizes}")
        return self._frozen.decode(self._frozen.from_normal(noise))


def decoder_prior(vae: Pair, *, name: str = "field") -> DecoderPrior:
    r"""A trained decoder as a prior over fields, such as images or functions, inside any Pyro model.

    .. math:: \varepsilon \sim \mathcal N(0, I), \qquad f = \mathbb E[x \mid z(\varepsilon)]

    The decoder is a copy, frozen and in evaluation mode: nothing is registered with Pyro, nothing trains it, and
    training the VAE further does not change it. Its noise is white, the site ``name/z`` (of layers ``name/z1``,
    ``name/z2``, ...), so that NUTS, ``AutoNormal`` and ``AutoLaplaceApproximation`` start in good coordinates;
    ``NUTS(..., jit_compile=True)`` works. ``f`` is noted as the site ``name``. Inside a plate there is a field for each
    of its members.

    Arguments:
        vae: A VAE or HierarchicalVAE whose (top) prior is N(0, I).
        name: Of the field's site, and the prefix of its noise.

    Errors:
        ConfigError: for a VAE with another prior.

    References:
        | Compressed Sensing Using Generative Models (Bora et al., 2017)  https://arxiv.org/abs/1703.03208
        | PriorVAE: Encoding Spatial Priors with Variational Autoencoders (Semenova et al., 2022)
        | https://arxiv.org/abs/2110.10422

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="gaussian")
        >>> prior = pv.decoder_prior(vae)
        >>> def model(y):
        ...     pyro.sample("y", dist.Normal(prior()[:3], 0.1).to_event(1), obs=y)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3))
        >>> [*trace.stochastic_nodes], [*trace.param_nodes], trace.nodes["field"]["value"].shape
        (['field/z'], [], torch.Size([6]))
    """
    if not isinstance(vae, Pair):
        raise ConfigError(f"found {type(vae).__name__}, expected a VAE or HierarchicalVAE, whose decoder is known")
    return DecoderPrior(vae, name)
