r"""The base class of the autoencoders: networks, a likelihood, and the Pyro functions that use them."""

from __future__ import annotations

__all__ = ["BaseVAE"]

from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..data.arrays import as_mask, as_tensor
from ..errors import ConfigError, DataError, ShapeError, StaleParamStoreError, require_count
from ..pairs.handlers import evaluating, registering
from .likelihoods import Likelihood
from .nn import TakesMask
from .posteriors import Posterior
from .priors import Prior


class BaseVAE(nn.Module):
    """A module that owns its networks, with the Pyro functions :meth:`model` and :meth:`guide`.

    Arguments:
        likelihood: A module that maps the decoder's output to p(x | z), see :mod:`pyro_vae.likelihoods`.
        name: The prefix of the parameters in Pyro's store.
    """

    prior: Prior
    guided_by: ClassVar[tuple[str, ...]]
    """The names of the parts with the guide's parameters; all other parameters are the model's."""

    def __init__(self, likelihood: Likelihood, name: str) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.name = name
        self.recipe: dict[str, Any] | None = None
        """The preset that built this VAE, and its arguments, from which a checkpoint rebuilds it; None without one."""

    def model(self, x: Any = None, num: int | None = None, *, mask: Any = None) -> Tensor:
        """The Pyro program of p(z) and p(x | z) in the plate ``data``; ``x=None`` generates ``num`` datapoints.

        ``mask``, ``[n, *data_shape]``, is true where x is observed; only those entries enter the likelihood.
        """
        raise NotImplementedError

    def guide(self, x: Any, *, mask: Any = None) -> Tensor:
        """The Pyro program of q(z | x) in the plate ``data``, given the entries of x where ``mask`` is true."""
        raise NotImplementedError

    def encode(self, x: Any, *, mask: Any = None) -> Distribution:
        """q(z | x) of the z that the decoder takes, batch ``[*lead]``, given the entries where ``mask`` is true."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), batch ``[*lead]``, event ``data_shape``."""
        raise NotImplementedError

    def sample_latents(self, num: int) -> Tensor:
        """Ancestral draws ``[num, latent_dim]`` of the z that the decoder takes."""
        raise NotImplementedError

    def from_normal(self, noise: dict[str, Tensor]) -> Tensor:
        """The z that the decoder takes, as a function of standard normal values ``[*lead, latent_dim]`` for each site.

        Errors:
            ConfigError: for a prior other than N(0, I).
        """
        raise NotImplementedError

    def run_at_means(self, x: Tensor) -> None:
        """Run all networks on data, with every latent variable at its posterior mean."""
        raise NotImplementedError

    @property
    def families(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules that return the distributions of each site, by site name."""
        raise NotImplementedError

    @property
    def latent_dims(self) -> dict[str, int]:
        """The number of dimensions of each latent site, by site name."""
        raise NotImplementedError

    @property
    def takes_particles(self) -> bool:
        """Whether the programs are known to treat each particle separately; parts from elsewhere have to be probed."""
        parts = [self, *(module for modules in self.families.values() for module in modules)]
        return all(type(part).__module__.startswith(f"{__package__}.") for part in parts)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one datapoint."""
        return self.likelihood.data_shape

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Draw ancestral samples ``[num, *data_shape]``: z from the prior, x from p(x | z)."""
        with evaluating(self):
            return self.decode(self.sample_latents(require_count("num", num))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Any) -> Tensor:
        """Return the mean E[x | z] at the posterior mean z = E[z | x], in the shape of ``x``."""
        with evaluating(self):
            return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def clamped_scales(self, x: Any) -> dict[str, int]:
        """Count the scales at their bounds by site, ``{"z": ..., "x": ...}``, with all latent variables at their means.

        Any count above 0 deserves a look.
        """
        x, _ = self._checked(x, batch=True)
        counts = dict.fromkeys(self.families, 0)

        def count(site: str, part: Any, args: tuple) -> None:
            counts[site] += int(part.hits(*args))

        hooks = [
            part.register_forward_pre_hook(partial(count, site))
            for site, parts in self.families.items()
            for part in parts
            if isinstance(part, (Posterior, Likelihood))
        ]
        try:
            with evaluating(self):
                for rows in x.split(256):
                    self.run_at_means(rows)
        finally:
            for hook in hooks:
                hook.remove()
        return counts

    def _distribution(
        self, net: nn.Module, value: Tensor, shape: tuple[Any, ...], family: Any, mask: Tensor | None = None
    ) -> Any:
        """Run a network on values ``[*lead, *shape]``, folded into one batch, and return ``family`` of its output.

        Sizes are numbers, or tensors while Pyro compiles a model.
        """
        lead = value.shape[: value.ndim - len(shape)]
        inputs = [part.reshape(-1, *shape) for part in (value, mask) if part is not None]
        params = net(*inputs if isinstance(net, TakesMask) else inputs[:1])
        if params[:1].numel() != torch.Size(family.param_shape).numel() and lead.numel():
            name = next(name for name, part in self.named_modules() if part is net)
            raise ShapeError(
                f"{name}: expected an output of shape {('n', *family.param_shape)}, got {tuple(params.shape)}"
            )
        return family(params.reshape(*lead, *family.param_shape))

    def _observed(self, x: Any, num: int | None, mask: Any) -> tuple[Tensor | None, int, Tensor | None]:
        """Return the data that a model observes, the number of datapoints (1 by default without data) and the mask."""
        if x is None:
            return None, 1 if num is None else require_count("num", num), None
        x, mask = self._checked(x, mask, batch=True)
        if num is not None and require_count("num", num) != len(x):
            raise ConfigError(f"num={num}: found {len(x)} datapoints in x: leave num out, or pass x=None to generate")
        return x, len(x), mask

    def _checked(self, x: Any, mask: Any = None, *, batch: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return ``x`` as a checked floating tensor of the module's dtype and device, and its mask.

        Entries that are not observed become zero; a mask that is true everywhere becomes None. ``batch`` requires
        exactly one leading dimension, because others would broadcast against the data plate.
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
        if mask is not None and (mask := as_mask(mask, x)) is not None:
            x = x.masked_fill(~mask, 0.0)
        self.likelihood.check(x)
        return x, mask

    def _register(self, *, guide: bool) -> None:
        """Register the guide's or the model's parameters with Pyro, and require that its store holds *these* ones."""
        if not registering():
            return
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad or name.startswith(self.guided_by) is not guide:
                continue
            full = f"{self.name}$$${name}"
            if not parameter.is_contiguous():  # Pyro's store would hold, and train, a contiguous copy
                parameter.data = parameter.data.contiguous()
            if pyro.param(full, parameter) is not parameter:
                raise StaleParamStoreError(
                    f"Pyro's parameter store already holds {full!r} of another module, which would be trained instead "
                    "of this one: give this VAE its own name (name=...), or run it in "
                    "`with pyro.get_param_store().scope():`"
                )
