r"""Jackknife variational inference."""

from __future__ import annotations

__all__ = ["JVI"]

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, require_count
from ..ops.weights import doubly_reparameterized, jackknife, normalized_weights
from .base import Objective
from .gradients import Coefficients


class JVI(Objective):
    r"""Jackknife variational inference: the importance-weighted bound, debiased; in nats per datapoint.

    .. math:: \hat L^J_m = \sum_{j=0}^m (-1)^j \frac{(K - j)^m}{(m - j)!\, j!} \hat L_{K-j}

    where :math:`\hat L_{K-j}` is the mean importance-weighted bound over all subsets of :math:`K - j` particles, as
    :func:`pyro_vae.weights.jackknife` computes it; :func:`pyro_vae.evidence.jackknife` streams it for evaluation. The
    bias falls from :math:`O(K^{-1})` to :math:`O(K^{-m-1})` and may have either sign, so this is **not a bound**. Its
    value grows without limit when one weight is far above the others, and a pair that maximised it would learn to
    spread its weights. So the value is reported, while the gradient is that of the importance-weighted bound of the
    same particles.

    References:
        | Debiasing Evidence Approximations (Nowozin, 2018)  https://openreview.net/forum?id=HyZoi-WRb

    Arguments:
        order: The order m; 0 is :class:`IWAE`. Above 1 all subsets are enumerated.
        num_particles: The number of particles K, more than the order.
        gradient: ``"total"`` or ``"dreg"``, of the importance-weighted bound; see
            :mod:`pyro_vae.objectives.gradients`.

    Errors:
        ConfigError: unless there are more particles than the order.

    Example:
        >>> JVI(num_particles=3).bound(torch.tensor([[1.0], [1.0], [1.0]]))
        tensor([1.])
    """

    gradients = ("total", "dreg")
    side = "not a bound"

    def __init__(self, *, order: int = 1, num_particles: int = 3, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.order = require_count("order", order, least=0)
        if self.order >= self.num_particles:
            raise ConfigError(f"order={order}: expected fewer than num_particles={num_particles}")

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return jackknife(log_w, self.order)

    def _coefficients(self, log_w: Float[Tensor, "particles batch"]) -> Coefficients:
        weights = normalized_weights(log_w)
        return Coefficients(weights, weights if self.gradient == "total" else doubly_reparameterized(log_w, alpha=0.0))
