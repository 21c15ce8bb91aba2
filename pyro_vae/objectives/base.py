r"""The base class of all objectives: the sockets into Pyro and torch, and the scale."""

from __future__ import annotations

__all__ = ["Estimate", "Objective", "require_several", "require_unmasked"]

from typing import Any, Literal

import pyro.infer
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from ..errors import ConfigError, PairError, require_count, require_one_of
from ..pairs.pair import Pair
from ..pairs.pathwise import GradientPath
from ..pairs.running import Program, Vectorized, replay, trace
from ..pairs.sites import Sites, draw_sites
from ..pairs.vectorization import VectorizationCache
from .gradients import PATHS, Coefficients, attached, leave_one_out, over_other_datapoints, sensitivity
from .module import Estimate, ObjectiveModule


class Objective(pyro.infer.ELBO):
    r"""An objective that any Pyro pair can be trained on, usually a bound on :math:`\log p(x)`.

    A subclass defines :meth:`bound`, from log-weights ``[particles, batch]`` to nats per datapoint ``[batch]``. The
    base class does the rest: an objective is a ``loss=`` for stock :class:`pyro.infer.SVI`, and
    ``objective(model, guide)`` is an ``nn.Module`` that owns the pair's parameters, for any torch optimiser.

    .. math:: \text{loss} = -\sum_b s_b\, \mathcal L(x_b)

    with :math:`s` the scale of subsampled plates and ``poutine.scale``, applied *after* the bound, and
    :math:`\mathcal L` the true bound, whatever the ``gradient`` is.

    Arguments:
        num_particles: The number of particles K.
        gradient: The gradient estimator, one of the subclass's ``gradients``; see
            :mod:`pyro_vae.objectives.gradients`.

    Errors:
        ConfigError: for a gradient that the subclass does not offer, or one that needs more particles.
        PairError: for pairs that are not one data plate with local latents, and for a latent site that cannot be
            reparameterised where the gradient needs it.
    """

    gradients: tuple[str, ...] = ("total",)
    side: Literal["lower", "not a bound"] = "lower"
    """The direction in which the value errs in expectation, per datapoint."""
    num_groups: int = 1
    """The number of groups of ``num_particles`` that are drawn."""
    analytic_kl: bool = False
    """True if the KL divergence of each latent site is taken in closed form."""
    step: int = 0
    """The number of training steps done, for subclasses with a schedule: calls of ``SVI.step``, losses of the module
    that have a gradient, or steps of ``fit``. Evaluations of a bound do not count."""

    def __init__(self, *, num_particles: int = 1, gradient: str = "total") -> None:
        num_particles = require_count("num_particles", num_particles)
        require_one_of("gradient", gradient, self.gradients)
        if gradient in ("rloo", "vimco"):
            require_several(f"gradient={gradient!r}", num_particles)
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.gradient = gradient
        self._cache = VectorizationCache()

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        """Return the bound of log-weights, in nats per datapoint; for data use ``objective(model, guide).bound(x)``."""
        raise NotImplementedError(
            f"{type(self).__name__} is no function of log-weights alone: use objective(model, guide).bound(x)"
        )

    def estimate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Estimate:
        """Return the bound per datapoint with its gradient attached, the ELBO of the same draws, and the scale."""
        sites = self._sites(Pair(model, guide, args, kwargs))
        self._require_reparameterized(sites)
        return Estimate(self._bound(sites), sites.elbo.detach(), sites.scale)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a scalar tensor to call ``backward`` on."""
        return self.estimate(model, guide, *args, **kwargs).loss

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number; nothing is trained."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number, and add its gradients to the parameters' ``.grad``; ``SVI.step`` calls this."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
            self.step += 1
        return loss.item()

    def __call__(self, model: Program, guide: Program) -> ObjectiveModule:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the objective of this pair as an ``nn.Module`` that owns the pair's parameters."""
        return ObjectiveModule(self, model, guide)

    @property
    def _path(self) -> GradientPath:
        return PATHS[self.gradient]

    @property
    def _num_draws(self) -> int:
        """The number of draws that one estimate takes."""
        return self.num_groups * self.num_particles

    def _require_reparameterized(self, sites: Sites) -> None:
        if torch.is_grad_enabled() and self._path != "score" and not sites.reparameterized:
            raise PairError(
                "a latent site of the guide cannot be reparameterised (it has no rsample), so this gradient would miss "
                "a term: use a continuous distribution, a score-function gradient ('rloo' with ELBO, 'vimco' with "
                "IWAE, 'score' with ReweightedWakeSleep), or sum a discrete site out with pyro.infer.TraceEnum_ELBO"
            )

    def _sites(self, pair: Pair) -> Sites:
        return draw_sites(
            pair,
            num_particles=self._num_draws,
            vectorized=self._vectorized(pair),
            analytic_kl=self.analytic_kl,
            path=self._path,
        )

    def _vectorized(self, pair: Pair) -> Vectorized:
        if self._num_draws == 1:  # a single particle needs no leading dimension
            return Vectorized(model=True, guide=True)
        return self._cache.of(pair.model, pair.guide, pair.args, pair.kwargs)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        log_w = sites.log_w.detach()
        bound = self.bound(log_w)
        return attached(bound, sites, self._coefficients(log_w)) if torch.is_grad_enabled() else bound

    def _coefficients(self, log_w: Float[Tensor, "particles batch"]) -> Coefficients:
        v = sensitivity(self.bound, log_w)
        if self.gradient in ("total", "path"):
            return Coefficients(v, v)
        if self.gradient == "dreg":
            return Coefficients(v, self._doubly_reparameterized(log_w))
        signal = self._signal(log_w)
        if self.gradient == "reinforce_baseline":
            signal = signal - over_other_datapoints(signal)
        elif self.gradient != "reinforce":
            signal = self.bound(log_w) - leave_one_out(self.bound, log_w)
        return Coefficients(v, v - 1 / len(log_w) - signal)

    def _signal(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        """Return the learning signal of each particle's density: the part of the bound that depends on it, here all."""
        return self.bound(log_w).expand_as(log_w)

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        r"""Return :math:`v_k - \partial v_k / \partial \log w_k`, in closed form."""
        raise NotImplementedError

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace = trace(guide, args, kwargs)
        return replay(model, guide_trace, args, kwargs), guide_trace


def require_several(what: str, num_particles: int) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` for a single particle, which has no other to compare with."""
    if num_particles < 2:
        raise ConfigError(f"{what} compares particles: expected num_particles of at least 2, found {num_particles}")


def require_unmasked(sites: Sites) -> None:
    """Raise :class:`~pyro_vae.errors.PairError` where an objective of the whole minibatch would count masked rows."""
    if sites.masked:
        raise PairError(
            "found masked datapoints, which an objective of the whole minibatch cannot leave out: drop them"
        )
