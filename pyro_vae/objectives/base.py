r"""What all objectives share: the sockets into Pyro and torch, and the scale."""

from __future__ import annotations

__all__ = ["Objective", "ObjectiveModule"]

from typing import Any

import pyro.infer
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from ..errors import ConfigError, PairError, require_count
from ..modules import leaves, modules_behind, unregistered
from ..probing import Verdicts
from ..sites import Sites, Vectorized, draw_sites
from ..traces import Program, replay, trace


class Objective(pyro.infer.ELBO):
    r"""A bound on :math:`\log p(x)` that any Pyro pair can be trained on.

    A member defines :meth:`bound`, from log-weights ``[particles, batch]`` to nats per datapoint ``[batch]``. The rest
    is here: it goes into stock :class:`pyro.infer.SVI` as ``loss=``, and ``objective(model, guide)`` is an
    ``nn.Module`` that owns the pair's parameters, for any torch optimiser.

    .. math:: \text{loss} = -\sum_b s_b\, \mathcal L(x_b)

    with :math:`s` the scale of subsampled plates and ``poutine.scale``, applied *after* the bound, and
    :math:`\mathcal L` the true bound.

    Arguments:
        num_particles: The number of particles K.
        gradient: How the gradient is estimated; ``"total"`` is that of the bound itself by the reparameterisation
            trick, unbiased for every bound.

    Errors:
        PairError: for pairs that are not one data plate with local latents, and for a latent site whose distribution
            cannot be reparameterised, where ``"total"`` would miss a term.
    """

    gradients: tuple[str, ...] = ("total",)

    def __init__(self, *, num_particles: int = 1, gradient: str = "total") -> None:
        num_particles = require_count("num_particles", num_particles)
        if gradient not in self.gradients:
            raise ConfigError(f"gradient={gradient!r}: expected one of {', '.join(map(repr, self.gradients))}")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.gradient = gradient
        self._verdicts = Verdicts()

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        """The bound, to maximise, in nats per datapoint."""
        raise NotImplementedError

    def bound_and_scale(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, " batch"], Any]:
        """The bound per datapoint, unscaled, with its gradient attached; and the scale that the pair asks for."""
        sites = self._sites(model, guide, args, kwargs)
        if torch.is_grad_enabled() and not sites.reparameterized:
            raise PairError(
                "a latent site of the guide cannot be reparameterised (it has no rsample), so this gradient would miss "
                "a term: use a continuous distribution, or sum a discrete site out with pyro.infer.TraceEnum_ELBO"
            )
        return self._bound(sites), sites.scale

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor to call ``backward`` on."""
        bound, scale = self.bound_and_scale(model, guide, *args, **kwargs)
        return -(scale * bound).sum()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; nothing is trained."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, its gradients added to the parameters' ``.grad``: what ``SVI.step`` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def __call__(self, model: Program, guide: Program) -> ObjectiveModule:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective of this pair as an ``nn.Module`` that owns the pair's parameters."""
        return ObjectiveModule(self, model, guide)

    def _sites(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], *, analytic_kl: bool = False
    ) -> Sites:
        one = Vectorized(model=True, guide=True)  # nobody need be asked about a single particle
        return draw_sites(
            model,
            guide,
            args,
            kwargs,
            num_particles=self.num_particles,
            vectorized=one if self.num_particles == 1 else self._verdicts.of(model, guide, args, kwargs),
            analytic_kl=analytic_kl,
        )

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        return self.bound(sites.log_w)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace = trace(guide, args, kwargs)
        return replay(model, guide_trace, args, kwargs), guide_trace


class ObjectiveModule(nn.Module):
    """``module(x)`` is the loss of a pair; ``module.parameters()`` are the pair's.

    The parameters are those of every ``nn.Module`` behind the pair: the owner of a bound method, a module that is
    called itself, and the modules that a plain function refers to. Pyro's global store is neither read nor written
    for them.

    Errors:
        PairError: if no module is found, or if the pair turns out to use one that was not found: its parameters would
            silently not train.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,))
        >>> loss = pv.objectives.IWAE(num_particles=4)(vae.model, vae.guide)
        >>> len(list(loss.parameters())) == len(list(vae.parameters()))
        True
        >>> loss(torch.ones(3, 4)).backward()
    """

    def __init__(self, objective: Objective, model: Program, guide: Program) -> None:
        super().__init__()
        self.objective = objective
        self.owned = nn.ModuleList(modules_behind(model, guide))
        if not any(True for _ in self.owned.parameters()):
            raise PairError(
                "found no parameters behind this model and guide: pass methods of an nn.Module, or functions that use "
                "one; train a pair that only calls pyro.param with pyro.infer.SVI"
            )
        # In a tuple, so that a model that is a module itself is not registered a second time.
        self.pair = (unregistered()(model), unregistered()(guide))
        self._all_owned = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy owns copies of the parameters; functions that close over the original still use the original's.
        super().__setstate__({**state, "_all_owned": False})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        bound, scale = self.bound_and_scale(*args, **kwargs)
        return -(scale * bound).sum()

    def bound(self, *args: Any, **kwargs: Any) -> Float[Tensor, " batch"]:
        """The bound per datapoint, unscaled, in nats, with its gradient attached."""
        return self.bound_and_scale(*args, **kwargs)[0]

    def bound_and_scale(self, *args: Any, **kwargs: Any) -> tuple[Float[Tensor, " batch"], Any]:
        """As :meth:`Objective.bound_and_scale`, of this pair."""
        bound, scale = self.objective.bound_and_scale(*self.pair, *args, **kwargs)
        if torch.is_grad_enabled() and not self._all_owned:
            self._require_all_owned(bound, *args, *kwargs.values())
        return bound, scale

    def _require_all_owned(self, bound: Tensor, *inputs: Any) -> None:
        """Once, at the first step: what the bound depends on and this module does not own would not be trained."""
        owned = set(self.parameters())
        for leaf in leaves(bound, *inputs):
            if leaf not in owned:
                raise PairError(
                    f"the pair uses a parameter of shape {tuple(leaf.shape)} that was not found behind its functions "
                    "and would not be trained: make model and guide methods of an nn.Module that owns all parameters, "
                    "or train with pyro.infer.SVI"
                )
        self._all_owned = True
