r"""An objective of one pair as an ``nn.Module``."""

from __future__ import annotations

__all__ = ["Estimate", "ObjectiveModule"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import PairError
from ..pairs.handlers import unregistered
from ..pairs.modules import leaves, modules_behind
from ..pairs.running import Program


class Estimate(NamedTuple):
    """The results of one run of a pair."""

    bound: Float[Tensor, " batch"]
    """The objective's value per datapoint, unscaled, in nats, with its gradient attached."""
    elbo: Float[Tensor, " batch"]
    """The ELBO of the same draws, whatever the objective is."""
    scale: Any
    """The scale of the pair's subsampled plates and of ``poutine.scale``."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        r"""The loss :math:`-\sum_b s_b\, \mathcal L(x_b)`."""
        return -(self.scale * self.bound).sum()


class ObjectiveModule(nn.Module):
    """The objective of one pair: ``module(x)`` is the loss, and ``module.parameters()`` are those of the pair.

    The parameters are those of every ``nn.Module`` behind the pair: the owner of a bound method, a module that is
    called itself, and the modules that a plain function refers to. Pyro's global store is neither read nor written
    for them.

    Errors:
        PairError: if no module is found, or if the pair uses one that was not found and would silently not train.

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,))
        >>> loss = pv.objectives.IWAE(num_particles=4)(vae.model, vae.guide)
        >>> len(list(loss.parameters())) == len(list(vae.parameters()))
        True
        >>> loss(torch.ones(3, 4)).backward()
    """

    def __init__(self, objective: Any, model: Program, guide: Program) -> None:
        super().__init__()
        self.objective = objective
        self.owned = nn.ModuleList(modules_behind(model, guide))
        if not any(True for _ in self.owned.parameters()):
            raise PairError(
                "found no parameters behind this model and guide: pass methods of an nn.Module, or functions that use "
                "one; train a pair that only calls pyro.param with pyro.infer.SVI"
            )
        # The pair is a tuple, so that a model that is a module is not registered a second time.
        self.pair = (unregistered()(model), unregistered()(guide))
        self._all_owned = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy owns copies of the parameters; functions that close over the original still use the original's.
        super().__setstate__({**state, "_all_owned": False})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, minus the scaled sum of the bound, to call ``backward`` on."""
        loss = self.estimate(*args, **kwargs).loss
        self.objective.step += loss.requires_grad
        return loss

    def bound(self, *args: Any, **kwargs: Any) -> Float[Tensor, " batch"]:
        """Return the bound per datapoint, unscaled, in nats, with its gradient attached."""
        return self.estimate(*args, **kwargs).bound

    def estimate(self, *args: Any, **kwargs: Any) -> Estimate:
        """Return the bound per datapoint with its gradient attached, the ELBO of the same draws, and the scale."""
        found = self.objective.estimate(*self.pair, *args, **kwargs)
        if torch.is_grad_enabled() and not self._all_owned:
            self._require_all_owned(found.bound, *args, *kwargs.values())
        return found

    def _require_all_owned(self, bound: Tensor, *inputs: Any) -> None:
        """Raise :class:`~pyro_vae.errors.PairError` for parameters of the bound that this module does not own."""
        owned = set(self.parameters())
        for leaf in leaves(bound, *inputs):
            if leaf not in owned:
                raise PairError(
                    f"the pair uses a parameter of shape {tuple(leaf.shape)} that was not found behind its functions "
                    "and would not be trained: make model and guide methods of an nn.Module that owns all parameters, "
                    "or train with pyro.infer.SVI"
                )
        self._all_owned = True
