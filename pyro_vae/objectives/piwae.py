r"""One bound for the model, another for the guide."""

from __future__ import annotations

__all__ = ["PIWAE"]

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_count
from ..ops.weights import doubly_reparameterized, grouped, log_mean_exp, normalized_weights, ungrouped
from ..pairs.sites import Sites
from .base import Objective
from .gradients import Coefficients, attached_apart


class PIWAE(Objective):
    r"""Partially importance-weighted bounds: the model follows the bound of all M K particles, the guide that of K.

    .. math:: \theta: \mathbb E\Big[\log \frac1{MK} \sum_{m, k} w_{mk}\Big], \qquad
        \phi: \mathbb E\Big[\frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{mk}\Big]

    Both are lower bounds on :math:`\log p(x)` in nats per datapoint; the value reported is the first, tighter one. The
    model gains from many particles, while the guide's gradient keeps the signal of few.

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Arguments:
        num_groups: The number M of groups.
        num_particles: The number K of particles of each.
        gradient: ``"total"`` or ``"dreg"``; see :mod:`pyro_vae.objectives.gradients`.

    Example:
        >>> PIWAE(num_groups=2, num_particles=1).bound(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """

    gradients = ("total", "dreg")

    def __init__(self, *, num_groups: int = 2, num_particles: int = 2, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.num_groups = require_count("num_groups", num_groups)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_mean_exp(log_w)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        log_w = sites.log_w.detach()
        bound = self.bound(log_w)
        return attached_apart(bound, sites, self._coefficients(log_w)) if torch.is_grad_enabled() else bound

    def _coefficients(self, log_w: Float[Tensor, "particles batch"]) -> Coefficients:
        groups = grouped(log_w, self.num_groups)
        each = normalized_weights(groups) if self.gradient == "total" else doubly_reparameterized(groups, alpha=0.0)
        return Coefficients(normalized_weights(log_w), ungrouped(each) / self.num_groups)
