r"""Thermodynamic variational objective."""

from __future__ import annotations

__all__ = ["TVO"]

from jaxtyping import Float
from torch import Tensor

from ..errors import require_count
from ..ops.weights import tvo
from .base import Objective


class TVO(Objective):
    r"""Thermodynamic variational objective, the left Riemann sum over T equal pieces, in nats per datapoint.

    .. math:: \mathbb E\Big[\frac1T \sum_{t=0}^{T-1} \sum_{k=1}^K \tilde w_k^{(t/T)} \log w_k\Big] \le \log p(x),
        \qquad \tilde w^{(\beta)} = \mathrm{softmax}(\beta \log w)

    :math:`T = 1` is the ELBO. For given draws it lies below the importance-weighted bound of the same K particles, so
    it is a lower bound for any K and T. The gradient is that of this estimate, not the paper's covariance estimator:
    ``"vimco"`` is for discrete latent variables.

    References:
        | The Thermodynamic Variational Objective (Masrani et al., 2019)  https://arxiv.org/abs/1907.00031

    Arguments:
        num_pieces: The number of pieces T.
        num_particles: The number of particles K.
        gradient: ``"total"`` or ``"vimco"``; see :mod:`pyro_vae.objectives.gradients`.

    Example:
        >>> TVO(num_pieces=1).bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    gradients = ("total", "vimco")

    def __init__(self, *, num_pieces: int = 5, num_particles: int = 5, gradient: str = "total") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.num_pieces = require_count("num_pieces", num_pieces)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return tvo(log_w, self.num_pieces)
