r"""What every autoencoder of ours is: networks, a likelihood, and the Pyro functions that use them."""

from __future__ import annotations

__all__ = ["Pair"]

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


class Pair(nn.Module):
    """A module that owns its networks, with the Pyro functions :meth:`model` and :meth:`guide`.

    Arguments:
        likelihood: A module that turns the decoder's output into p(x | z), see :mod:`pyro_vae.likelihoods`.
        name: The prefix of the parameters in Pyro's store.
    """

    prior: Prior
    guided_by: ClassVar[tuple[str, ...]]
    """The names of the parts whose parameters are the guide's; all others are the model's."""

    def __init__(self, likelihood: Likelihood, name: str) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.name = name
        self.recipe: dict[str, Any] | None = None
        """The preset and its arguments, when a preset made this pair: what a checkpoint needs to build it again."""

    def model(self, x: Any = None, num: int | None = None, *, mask: Any = None) -> Tensor:
        """The Pyro program of p(z) and p(x | z) in the plate ``data``; with ``x=None`` it generates ``num``.

        ``mask`` is true where x is observed, ``[n, *data_shape]``: the likelihood is then of those entries alone.
        """
        raise NotImplementedError

    def guide(self, x: Any, *, mask: Any = None) -> Tensor:
        """The Pyro program of q(z | x) in the plate ``data``, of the entries of x where ``mask`` is true."""
        raise NotImplementedError

    def encode(self, x: Any, *, mask: Any = None) -> Distribution:
        """q(z | x) of the z that the decoder reads, batch ``[*lead]``, of the entries of x where ``mask`` is true."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), batch ``[*lead]``, event ``data_shape``."""
        raise NotImplementedError

    def sample_latents(self, num: int) -> Tensor:
        """Ancestral draws ``[num, *]`` of the z that the decoder reads."""
        raise NotImplementedError

    def from_normal(self, noise: dict[str, Tensor]) -> Tensor:
        """The z that the decoder reads, as a function of standard normal values ``[*lead, latent_dim]`` for each site.

        Errors:
            ConfigError: for a prior that is no such function.
        """
        raise NotImplementedError

    def run_at_means(self, x: Tensor) -> None:
        """Run all networks on data, every latent variable at its posterior mean."""
        raise NotImplementedError

    @property
    def families(self) -> dict[str, tuple[nn.Module, ...]]:
        """Site name -> the modules that make its distributions."""
        raise NotImplementedError

    @property
    def latent_dims(self) -> dict[str, int]:
        """Latent site name -> the number of its dimensions."""
        raise NotImplementedError

    @property
    def takes_particles(self) -> bool:
        """Whether particles are known to be computed one by one; parts that were made elsewhere have to be asked."""
        parts = [self, *(part for made in self.families.values() for part in made)]
        return all(type(part).__module__.startswith(f"{__package__}.") for part in parts)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one datapoint."""
        return self.likelihood.data_shape

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Ancestral samples ``[num, *data_shape]``: z from the prior, x from p(x | z)."""
        with evaluating(self):
            return self.decode(self.sample_latents(require_count("num", num))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Any) -> Tensor:
        """The mean image E[x | z] at the posterior mean z = E[z | x], of the shape of ``x``."""
        with evaluating(self):
            return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def clamped_scales(self, x: Any) -> dict[str, int]:
        """Site name -> how many scales are at their bounds, with all latents at their means: ``{"z": ..., "x": ...}``.

        Anything above 0 deserves a look.
        """
        x, _ = self._checked(x, batch=True)
        held = dict.fromkeys(self.families, 0)

        def note(site: str, part: Any, args: tuple) -> None:
            held[site] += int(part.hits(*args))

        hooks = [
            part.register_forward_pre_hook(partial(note, site))
            for site, made in self.families.items()
            for part in made
            if isinstance(part, (Posterior, Likelihood))
        ]
        try:
            with evaluating(self):
                for rows in x.split(256):
                    self.run_at_means(rows)
        finally:
            for hook in hooks:
                hook.remove()
        return held

    def _distribution(
        self, net: nn.Module, value: Tensor, shape: tuple[Any, ...], family: Any, mask: Tensor | None = None
    ) -> Any:
        """What ``family`` makes of the network's output at values ``[*lead, *shape]``, which it sees as one batch.

        Sizes are numbers, or tensors while Pyro compiles a model.
        """
        lead = value.shape[: value.ndim - len(shape)]
        seen = [part.reshape(-1, *shape) for part in (value, mask) if part is not None]
        params = net(*seen if isinstance(net, TakesMask) else seen[:1])
        if params[:1].numel() != torch.Size(family.param_shape).numel() and lead.numel():
            name = next(name for name, part in self.named_modules() if part is net)
            raise ShapeError(
                f"{name}: expected an output of shape {('n', *family.param_shape)}, got {tuple(params.shape)}"
            )
        return family(params.reshape(*lead, *family.param_shape))

    def _observed(self, x: Any, num: int | None, mask: Any) -> tuple[Tensor | None, int, Tensor | None]:
        """What a model observes, of how many datapoints (generated: one unless asked for more), and its mask."""
        if x is None:
            return None, 1 if num is None else require_count("num", num), None
        x, mask = self._checked(x, mask, batch=True)
        if num is not None and require_count("num", num) != len(x):
            raise ConfigError(f"num={num}: expected nothing beside x, whose {len(x)} datapoints are observed")
        return x, len(x), mask

    def _checked(self, x: Any, mask: Any = None, *, batch: bool = False) -> tuple[Tensor, Tensor | None]:
        """``x`` as a floating tensor of the module's dtype and device, its shape and range checked, and its mask.

        What is not observed is zero; where all of it is, there is no mask. ``batch`` asks for exactly one leading
        dimension: any other would broadcast against the data plate.
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
        """Register the guide's or all other parameters with Pyro, and make sure that Pyro holds *these* ones."""
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
                    f"Pyro's parameter store already holds {full!r} of another module, which would be trained in "
                    f"this one's place: give this VAE its own name (name=...), or run it in "
                    "`with pyro.get_param_store().scope():`"
                )
