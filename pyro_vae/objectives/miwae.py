r"""Mean of several importance-weighted bounds."""

from __future__ import annotations

__all__ = ["MIWAE"]

from jaxtyping import Float
from torch import Tensor

from ..errors import require_count
from ..ops.weights import doubly_reparameterized, grouped, log_mean_exp, ungrouped
from .base import Objective


class MIWAE(Objective):
    r"""Mean of M importance-weighted bounds of K particles each, in nats per datapoint.

    .. math:: \mathcal L_{M, K}(x) = \mathbb E\Big[\frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{mk}\Big]
        = \mathcal L_K(x) \le \log p(x)

    The bound is that of K particles, from M K draws: M reduces the noise, and K tightens the bound. (Not to be
    confused with the method for missing data of the same name.)

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Arguments:
        num_groups: The number M of bounds that are averaged.
        num_particles: The number K of particles of each.
        gradient: ``"total"``, ``"path"`` (biased for the guide unless K = 1), ``"dreg"``; see
            :mod:`pyro_vae.objectives.gradients`.

    Example:
        >>> MIWAE(num_groups=2, num_particles=1).bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    gradients = ("total", "path", "dreg")

    def __init__(self, *, num_groups: int = 2, num_particles: int = 2, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.num_groups = require_count("num_groups", num_groups)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_mean_exp(grouped(log_w, self.num_groups)).mean(0)

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        each = doubly_reparameterized(grouped(log_w, self.num_groups), alpha=0.0) / self.num_groups
        return ungrouped(each)
