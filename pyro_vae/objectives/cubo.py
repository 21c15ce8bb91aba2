r"""Chi upper bound."""

from __future__ import annotations

__all__ = ["CUBO"]

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, require_number
from ..ops.weights import cubo, normalized_weights
from .base import Objective, require_several
from .gradients import Coefficients


class CUBO(Objective):
    r"""Chi upper bound of order n, in nats per datapoint, which the *guide* descends.

    .. math:: \mathrm{CUBO}_n(x) = \frac1n \log \mathbb E_{q(z \mid x)}[w^n] \ge \log p(x),
        \qquad w = \frac{p(x, z)}{q(z \mid x)}

    The gap is a divergence of the posterior from the guide that punishes guides that are too narrow. No model can be
    trained on an upper bound, up or down: the model's parameters ascend the importance-weighted bound of the same
    particles. The estimate from K particles is biased downwards, so the value is **not a bound**, and a guide that
    descended it would leave the posterior. The guide follows the gradient of the limit instead,

    .. math:: -\nabla_\phi \mathrm{CUBO}_n = \frac{n - 1}n\,
        \frac{\mathbb E_q[w^n\, \nabla_\phi \log q_\phi(z \mid x)]}{\mathbb E_q[w^n]}

    with both expectations estimated from the K particles: consistent, with a bias of order 1/K.

    References:
        | Variational Inference via chi Upper Bound Minimization (Dieng et al., 2017)  https://arxiv.org/abs/1611.00328

    Arguments:
        order: The order n, above 1.
        num_particles: The number of particles K.
        gradient: ``"score"`` as above, or ``"dreg"``, the same through reparameterised draws, with less noise.

    Errors:
        ConfigError: for an order that is not above 1, or infinite; for a single particle, where the guide's
            expected gradient is zero.

    Example:
        >>> CUBO().bound(torch.tensor([[3.0], [3.0]]))
        tensor([3.])
    """

    gradients = ("score", "dreg")
    side = "not a bound"

    def __init__(self, *, order: float = 2.0, num_particles: int = 5, gradient: str = "score") -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        if require_number("order", order) <= 1:
            raise ConfigError(f"order={order}: expected a number above 1")
        self.order = order
        require_several("CUBO", self.num_particles)

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return cubo(log_w, self.order)

    def _coefficients(self, log_w: Float[Tensor, "particles batch"]) -> Coefficients:
        weights = normalized_weights(self.order * log_w)
        if self.gradient == "score":
            return Coefficients(normalized_weights(log_w), (1 / self.order - 1) * weights)
        # The derivative of a weight by its log w is n weight (1 - weight): the second reparameterisation.
        return Coefficients(normalized_weights(log_w), (self.order - 1) * weights * (1 - weights))
