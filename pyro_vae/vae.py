r"""The variational autoencoder as a Pyro pair."""

from __future__ import annotations

__all__ = ["VAE"]

from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .arrays import as_tensor
from .errors import DataError, ShapeError, StaleParamStoreError
from .likelihoods import Likelihood
from .modules import evaluating, registering
from .posteriors import DiagonalNormal
from .priors import StandardNormal


class VAE(nn.Module):
    r"""A variational autoencoder: networks, and the Pyro functions :meth:`model` and :meth:`guide` that use them.

    .. math:: p(z) = \mathcal N(0, I), \qquad p(x \mid z) = \text{likelihood}(\text{decoder}(z)),
        \qquad q(z \mid x) = \text{posterior}(\text{encoder}(x))

    The pair works in stock :class:`pyro.infer.SVI`, and nothing of Pyro's global state is touched until it runs there.
    Particles and other leading dimensions are folded into the networks' batch dimension, so any network that maps
    ``[n, ...]`` to ``[n, ...]`` will do.

    Arguments:
        encoder: A module, ``[n, *data_shape] -> [n, *posterior.param_shape]``.
        decoder: A module, ``[n, latent_dim] -> [n, *likelihood.param_shape]``.
        prior: A module that returns p(z), such as :class:`~pyro_vae.priors.StandardNormal`.
        likelihood: A module that turns the decoder's output into p(x | z), see :mod:`pyro_vae.likelihoods`.
        posterior: A module that turns the encoder's output into q(z | x); by default a diagonal Gaussian.
        name: The prefix of the parameters in Pyro's store. Two VAEs trained by ``SVI`` in one process need two names.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(16,))
        >>> vae.encode(torch.zeros(5, 8, 8)).mean.shape, vae.sample(3).shape
        (torch.Size([5, 2]), torch.Size([3, 8, 8]))
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: StandardNormal,
        likelihood: Likelihood,
        posterior: DiagonalNormal | None = None,
        name: str = "vae",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = DiagonalNormal(prior.latent_dim) if posterior is None else posterior
        self.name = name
        self.recipe: dict[str, Any] | None = None
        """The preset and its arguments, when a preset made this VAE: what a checkpoint needs to build it again."""

    @property
    def takes_particles(self) -> bool:
        """Whether particles are known to be computed one by one; parts that were made elsewhere have to be asked."""
        parts = (self, self.prior, self.posterior, self.likelihood)
        return all(type(part).__module__.startswith(f"{__package__}.") for part in parts)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one datapoint."""
        return self.likelihood.data_shape

    @property
    def latent_dim(self) -> int:
        """The number of latent dimensions."""
        return self.prior.latent_dim

    def model(self, x: Any = None, num: int | None = None) -> Tensor:
        """The Pyro program ``z ~ p(z); x ~ p(x | z)`` in the plate ``data``; with ``x=None`` it generates ``num``."""
        self._register(guide=False)
        if x is not None:
            x = self._checked(x, batch=True)
            num = len(x)
        with pyro.plate("data", 1 if num is None else num):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)  # pyright: ignore[reportArgumentType]

    def guide(self, x: Any) -> Tensor:
        """The Pyro program ``z ~ q(z | x)`` in the plate ``data``."""
        self._register(guide=True)
        x = self._checked(x, batch=True)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self._posterior(x))  # pyright: ignore[reportArgumentType]

    def encode(self, x: Any) -> Distribution:
        """q(z | x), batch ``[*lead]``, event ``[latent_dim]``; batch norms and dropouts are in the mode they are in."""
        return self._posterior(self._checked(x))

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), batch ``[*lead]``, event ``data_shape``; batch norms and dropouts are in the mode they are in."""
        lead = z.shape[:-1]
        params = self.decoder(z.reshape(-1, z.shape[-1]))
        return self.likelihood(_unfold(params, lead, self.likelihood.param_shape, "decoder"))

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Ancestral samples ``[num, *data_shape]``: z from the prior, x from p(x | z)."""
        with evaluating(self):
            return self.decode(self.prior().sample(torch.Size([num]))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Any) -> Tensor:
        """The mean image E[x | z] at the posterior mean z = E[z | x], of the shape of ``x``."""
        with evaluating(self):
            return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def clamped_scales(self, x: Any) -> dict[str, int]:
        """How many scales are at their bounds, of q(z | x) and, at its mean, of p(x | z): ``{"z": ..., "x": ...}``.

        Anything above 0 deserves a look.
        """
        x = self._checked(x, batch=True)
        held = {"z": 0, "x": 0}

        def note(site: str, part: Any, args: tuple) -> None:
            held[site] += int(part.hits(*args))

        hooks = [
            part.register_forward_pre_hook(partial(note, site))
            for site, part in (("z", self.posterior), ("x", self.likelihood))
        ]
        try:
            with evaluating(self):
                for rows in x.split(256):
                    self.decode(self.encode(rows).mean)
        finally:
            for hook in hooks:
                hook.remove()
        return held

    def _posterior(self, x: Tensor) -> Distribution:
        lead = x.shape[: x.ndim - len(self.data_shape)]
        params = self.encoder(x.reshape(-1, *self.data_shape))
        return self.posterior(_unfold(params, lead, self.posterior.param_shape, "encoder"))

    def _checked(self, x: Any, *, batch: bool = False) -> Tensor:
        """``x`` as a floating tensor of the module's dtype and device, its shape and range checked.

        ``batch`` asks for exactly one leading dimension: any other would broadcast against the data plate.
        """
        x = as_tensor(x)
        ndim = len(self.data_shape)
        if x.ndim <= ndim or (batch and x.ndim > ndim + 1) or x.shape[x.ndim - ndim :] != self.data_shape:
            hint = ""
            if x.ndim and x.numel() and x[0].numel() == torch.Size(self.data_shape).numel():
                hint = f": use x.reshape(-1, {', '.join(map(str, self.data_shape))})"
            expected = ", ".join(["n", *map(str, self.data_shape)])
            raise ShapeError(f"x: expected shape ({expected}), got {tuple(x.shape)}{hint}")
        if not x.numel():
            raise DataError(f"x: expected at least one datapoint, got shape {tuple(x.shape)}")
        like = next(self.parameters())
        x = x.to(device=like.device, dtype=like.dtype)
        self.likelihood.check(x)
        return x

    def _register(self, *, guide: bool) -> None:
        """Register the guide's or all other parameters with Pyro, and make sure that Pyro holds *these* ones."""
        if not registering():
            return
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad or name.startswith(("encoder.", "posterior.")) is not guide:
                continue
            full = f"{self.name}$$${name}"
            if not parameter.is_contiguous():  # Pyro's store would hold, and train, a contiguous copy
                parameter.data = parameter.data.contiguous()
            if pyro.param(full, parameter) is not parameter:
                raise StaleParamStoreError(
                    f"Pyro's parameter store already holds {full!r} of another module, which would be trained in "
                    f"this one's place: give this VAE its own name (name=...), or run it in "
                    "`with pyro.get_param_store().scope():`"
                )


def _unfold(params: Tensor, lead: torch.Size, shape: tuple[int, ...], net: str) -> Tensor:
    if params[:1].numel() != torch.Size(shape).numel() and lead.numel():
        raise ShapeError(f"{net}: expected an output of shape {('n', *shape)}, got {tuple(params.shape)}")
    return params.reshape(*lead, *shape)
