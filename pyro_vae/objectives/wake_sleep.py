r"""Reweighted wake-sleep."""

from __future__ import annotations

__all__ = ["ReweightedWakeSleep"]

from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from ..errors import PairError, require_number
from ..ops.weights import log_mean_exp, normalized_weights
from ..pairs.handlers import evaluating
from ..pairs.pathwise import log_density
from ..pairs.running import Program, replay, trace
from ..pairs.running import subsample as rows
from ..pairs.traces import guide_sites, sample_sites, total
from .base import Estimate, Objective, require_several
from .gradients import Coefficients


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep: model and guide follow different objectives, datapoint by datapoint.

    .. math::
        \theta: \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k), \qquad
        \phi: \lambda \sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k \mid x)
        + (1 - \lambda) \nabla_\phi \log q_\phi(z' \mid x'), \quad (x', z') \sim p_\theta

    with :math:`\tilde w` the normalised weights of K draws from the guide. The model ascends the importance-weighted
    bound (*wake-theta*), which is the value reported: a lower bound on :math:`\log p(x)`, in nats per datapoint. The
    guide descends :math:`\mathrm{KL}(p(z \mid x) \,\|\, q)` at the data (*wake-phi*) and at dreams of the model
    (*sleep-phi*), in the proportion ``insomnia``. Nothing is reparameterised, so latent variables may be discrete.

    References:
        | Reweighted Wake-Sleep (Bornschein & Bengio, 2015)  https://arxiv.org/abs/1406.2751
        | Revisiting Reweighted Wake-Sleep (Le et al., 2019)  https://arxiv.org/abs/1805.10469

    Arguments:
        num_particles: The number of particles K.
        insomnia: The share :math:`\lambda` of wake-phi, in [0, 1].
        gradient: ``"score"``, or ``"dreg"`` for wake-phi through reparameterised draws (Tucker et al., 2019).

    Errors:
        ConfigError: for an ``insomnia`` outside of [0, 1]; for a single particle, which has weight 1, so that
            the expected gradient of wake-phi is zero.
        PairError: with ``insomnia`` below 1, for a model that does not observe exactly its argument in one site, so
            that a dream cannot replace the data, and for auxiliary sites in the guide.

    Example:
        >>> ReweightedWakeSleep(num_particles=2).bound(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """

    gradients = ("score", "dreg")

    def __init__(self, *, num_particles: int = 5, insomnia: float = 1.0, gradient: str = "score") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.insomnia = require_number("insomnia", insomnia, least=0, most=1)
        if insomnia > 0:
            require_several("ReweightedWakeSleep", self.num_particles)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_mean_exp(log_w)

    def estimate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Estimate:
        found = super().estimate(model, guide, *args, **kwargs)
        if self.insomnia == 1 or not torch.is_grad_enabled():
            return found
        sleep = (1 - self.insomnia) * _dreamed(model, guide, args, kwargs)
        return found._replace(bound=found.bound + (sleep - sleep.detach()))

    def _coefficients(self, log_w: Float[Tensor, "particles batch"]) -> Coefficients:
        weights = normalized_weights(log_w)
        wake = -weights if self.gradient == "score" else weights * (1 - weights)
        return Coefficients(weights, self.insomnia * wake)


def _dreamed(model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Float[Tensor, " batch"]:
    """Return the guide's log-density of the latent values behind data that the model generates, one per datapoint."""
    with torch.no_grad(), evaluating(model):  # so that batch-normalisation statistics stay as they are
        dream = trace(poutine.uncondition(model), args, kwargs)
    args, kwargs = _with_dream(dream, args, kwargs)
    q = guide_sites(replay(guide, dream, args, kwargs))
    if auxiliary := sorted(name for name, site in q.items() if site["infer"].get("is_auxiliary")):
        raise PairError(f"auxiliary sites {auxiliary} of the guide have no value in a dream: use insomnia=1")
    return total(log_density(q, 1, "score"))[0]


def _with_dream(dream: poutine.Trace, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments with the model's dream in place of the data that it observes."""
    sites = [site for site in sample_sites(dream).values() if site["infer"].get("was_observed")]
    arguments = [*enumerate(args), *kwargs.items()]
    for key, x in arguments if len(sites) == 1 else []:
        if not isinstance(x, Tensor) or x.ndim == 0:
            continue
        index, observed, dreamed = rows(dream, len(x)), sites[0]["infer"]["obs"], sites[0]["value"]
        if x[index].shape == observed.shape and torch.equal(x[index].to(observed), observed):
            filled = x.clone()
            filled[index] = dreamed.to(x)
            if not torch.equal(filled[index].to(dreamed), dreamed):
                raise PairError(f"a dream of {dreamed.dtype} does not fit data of {x.dtype}: pass floating data")
            if isinstance(key, int):
                return (*args[:key], filled, *args[key + 1 :]), kwargs
            return args, {**kwargs, key: filled}
    raise PairError(
        f"sleep-phi puts the model's dream in the place of the data: expected one observed site that holds an "
        f"argument as it was passed, found {[site['name'] for site in sites]}: use insomnia=1"
    )
