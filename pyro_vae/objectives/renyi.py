r"""Variational Renyi bound."""

from __future__ import annotations

__all__ = ["Renyi"]

from jaxtyping import Float
from torch import Tensor

from ..errors import require_number
from ..ops.weights import doubly_reparameterized, renyi
from .base import Objective


class Renyi(Objective):
    r"""Variational Renyi bound of order alpha, in nats per datapoint.

    .. math:: \mathcal L_{\alpha, K}(x) = \mathbb E\Big[\frac1{1 - \alpha} \log \frac1K \sum_{k=1}^K w_k^{1 - \alpha}
        \Big], \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    :math:`\alpha = 1` is the ELBO and :math:`\alpha = 0` the importance-weighted bound; for given draws it does
    not increase with :math:`\alpha`. It is a lower bound for :math:`\alpha \ge 0`. For :math:`\alpha < 0` its limit is
    an upper bound, but it is biased downwards for any finite K, so it is **not a bound**.

    References:
        | Renyi Divergence Variational Inference (Li & Turner, 2016)  https://arxiv.org/abs/1602.02311
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019)  https://arxiv.org/abs/1810.04152

    Arguments:
        alpha: The order, a finite number.
        num_particles: The number of particles K.
        gradient: ``"total"``, ``"path"`` (biased for the guide unless alpha = 1), ``"dreg"``, ``"vimco"``; see
            :mod:`pyro_vae.objectives.gradients`.

    Errors:
        ConfigError: for an infinite alpha or nan.

    Example:
        >>> Renyi(alpha=1.0).bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
        >>> Renyi(alpha=-1.0).side
        'not a bound'
    """

    gradients = ("total", "path", "dreg", "vimco")

    def __init__(self, *, alpha: float = 0.5, num_particles: int = 2, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.alpha = require_number("alpha", alpha)
        self.side = "lower" if alpha >= 0 else "not a bound"

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return renyi(log_w, self.alpha)

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        return doubly_reparameterized(log_w, self.alpha)
