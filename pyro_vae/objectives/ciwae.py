r"""Convex combination of the ELBO and the importance-weighted bound."""

from __future__ import annotations

__all__ = ["CIWAE"]

from jaxtyping import Float
from torch import Tensor

from ..errors import require_number
from ..ops.weights import doubly_reparameterized, log_mean_exp
from .base import Objective


class CIWAE(Objective):
    r"""Convex combination of the ELBO and the importance-weighted bound, in nats per datapoint.

    .. math:: \mathbb E\Big[\beta\, \frac1K \sum_{k=1}^K \log w_k + (1 - \beta) \log \frac1K \sum_{k=1}^K w_k\Big]
        \le \log p(x)

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Arguments:
        beta: The share of the ELBO, in [0, 1].
        num_particles: The number of particles K.
        gradient: ``"total"``, ``"path"`` (biased for the guide unless beta = 1), ``"dreg"``; see
            :mod:`pyro_vae.objectives.gradients`.

    Errors:
        ConfigError: for a beta outside of [0, 1].

    Example:
        >>> CIWAE(beta=1.0).bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    gradients = ("total", "path", "dreg")

    def __init__(self, *, beta: float = 0.5, num_particles: int = 2, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.beta = require_number("beta", beta, least=0, most=1)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        iwae = log_mean_exp(log_w)
        # A particle of weight zero makes the ELBO minus infinity, and 0 times that would be nan.
        return iwae if self.beta == 0 else self.beta * log_w.mean(0) + (1 - self.beta) * iwae

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        elbo, iwae = (doubly_reparameterized(log_w, alpha) for alpha in (1.0, 0.0))
        return self.beta * elbo + (1 - self.beta) * iwae
