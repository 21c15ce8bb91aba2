r"""A trained decoder as a prior over fields, in one call inside any Pyro model."""

from __future__ import annotations

__all__ = ["DecoderPrior", "decoder_prior"]

import copy

import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from ..errors import ConfigError, ShapeError
from .base import BaseVAE


class DecoderPrior:
    """A frozen decoder that draws a field when it is called inside a Pyro model; see :func:`decoder_prior`."""

    def __init__(self, vae: BaseVAE, name: str) -> None:
        self.name = name
        self._frozen = copy.deepcopy(vae).eval().requires_grad_(False)
        like = next(self._frozen.parameters())
        self._zeros = {site: like.new_zeros(size) for site, size in self._frozen.latent_dims.items()}
        self._frozen.from_normal(self._zeros)  # refuses a prior other than N(0, I) at once

    def __call__(self) -> Tensor:
        r"""Draw the field :math:`\mathbb E[x \mid z]`, ``[*plates, *data_shape]``, with noise sites ``name/...``."""
        noise = {
            site: pyro.sample(f"{self.name}/{site}", dist.Normal(zero, 1.0).to_event(1))
            for site, zero in self._zeros.items()
        }
        return pyro.deterministic(self.name, self.at(noise).mean, event_dim=len(self._frozen.data_shape))

    def at(self, noise: dict[str, Tensor]) -> Distribution:
        """p(x | z) at standard normal values ``[*lead, latent_dim]`` for each latent site, event ``data_shape``.

        Errors:
            ShapeError: for sites or sizes other than those of the VAE, which the draws ``name/...`` have.
        """
        sizes = self._frozen.latent_dims
        shapes = {site: tuple(value.shape) for site, value in noise.items()} if isinstance(noise, dict) else {}
        if {site: shape[-1:] for site, shape in shapes.items()} != {site: (size,) for site, size in sizes.items()}:
            found = shapes if isinstance(noise, dict) else type(noise)
            raise ShapeError(f"noise: found {found}, expected values [..., size] of the sites and sizes {sizes}")
        return self._frozen.decode(self._frozen.from_normal(noise))


def decoder_prior(vae: BaseVAE, *, name: str = "field") -> DecoderPrior:
    r"""A trained decoder as a prior over fields, such as images or functions, inside any Pyro model.

    .. math:: \varepsilon \sim \mathcal N(0, I), \qquad f = \mathbb E[x \mid z(\varepsilon)]

    The decoder is a copy, frozen and in evaluation mode: it is not registered with Pyro and never trained, and further
    training of the VAE does not change it. Its noise is white, the site ``name/z`` (for several layers ``name/z1``,
    ``name/z2``, ...), so that NUTS, ``AutoNormal`` and ``AutoLaplaceApproximation`` start in good coordinates;
    ``NUTS(..., jit_compile=True)`` works. The field f is the deterministic site ``name``. Inside a plate each member
    has its own field.

    Arguments:
        vae: A VAE or HierarchicalVAE with the (top) prior N(0, I).
        name: The name of the field's site, and the prefix of its noise sites.

    Errors:
        ConfigError: for a VAE with another prior, and for anything else.

    References:
        | Compressed Sensing Using Generative Models (Bora et al., 2017)  https://arxiv.org/abs/1703.03208
        | PriorVAE: Encoding Spatial Priors with Variational Autoencoders (Semenova et al., 2022)
        | https://arxiv.org/abs/2110.10422

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="gaussian")
        >>> prior = pv.decoder_prior(vae)
        >>> def model(y):
        ...     pyro.sample("y", dist.Normal(prior()[:3], 0.1).to_event(1), obs=y)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3))
        >>> [*trace.stochastic_nodes], [*trace.param_nodes], trace.nodes["field"]["value"].shape
        (['field/z'], [], torch.Size([6]))
    """
    if not isinstance(vae, BaseVAE):
        raise ConfigError(f"found {type(vae).__name__}, expected a VAE or HierarchicalVAE")
    return DecoderPrior(vae, name)
