r"""Importance-weighted bound."""

from __future__ import annotations

__all__ = ["IWAE"]

from jaxtyping import Float
from torch import Tensor

from ..weights import log_mean_exp
from .base import Objective


class IWAE(Objective):
    r"""Importance-weighted bound, in nats per datapoint.

    .. math:: \mathcal L_K(x) = \mathbb E\Big[\log \frac1K \sum_{k=1}^K w_k\Big] \le \log p(x),
        \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    :math:`K = 1` is the ELBO; the bound tightens with :math:`K` and reaches :math:`\log p(x)` in the limit.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)  https://arxiv.org/abs/1509.00519

    Arguments:
        num_particles: The number of particles K.
        gradient: ``"total"``.

    Example:
        >>> IWAE(num_particles=2).bound(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_mean_exp(log_w)
