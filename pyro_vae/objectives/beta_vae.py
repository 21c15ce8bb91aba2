r"""The ELBO with a weight on its KL term."""

from __future__ import annotations

__all__ = ["BetaVAE"]

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ..errors import require_number
from ..pairs.sites import Sites
from .base import Objective


class BetaVAE(Objective):
    r"""The beta-VAE's objective, in nats per datapoint, with a fixed weight or one that warms up.

    .. math:: \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    For :math:`\beta \ge 1` it is below the ELBO, and so a lower bound on :math:`\log p(x)`, if a loose one. With
    :math:`\beta < 1`, or a schedule, it is **not a bound**. :math:`\beta = 0` is an autoencoder with noise in its code.

    A schedule is called with the number of training steps done (``objective.step``, whatever the pair):
    :class:`~pyro_vae.schedules.LinearWarmup`, :class:`~pyro_vae.schedules.CyclicalWarmup`, or any function.

    References:
        | beta-VAE (Higgins et al., 2017)  https://openreview.net/forum?id=Sy2fzU9gl
        | Generating Sentences from a Continuous Space (Bowman et al., 2016), warm-up  https://arxiv.org/abs/1511.06349
        | Cyclical Annealing Schedule (Fu et al., 2019)  https://arxiv.org/abs/1903.10145

    Arguments:
        beta: The weight, at least 0, or a function from the step to the weight.
        num_particles: The number of particles K in the mean.
        analytic_kl: Use the closed form of the KL divergence at each latent site, as :class:`ELBO` does.

    Errors:
        ConfigError: for a negative or infinite weight.

    Example:
        >>> warmed_up = BetaVAE(beta=pv.schedules.LinearWarmup(num_steps=1000, end=4.0))
        >>> warmed_up.weight, warmed_up.side
        (0.0, 'not a bound')
    """

    def __init__(
        self, *, beta: float | Callable[[int], float] = 4.0, num_particles: int = 1, analytic_kl: bool = False
    ) -> None:
        super().__init__(num_particles=num_particles)
        self.beta = beta
        self.analytic_kl = analytic_kl
        self.side = "lower" if not callable(beta) and self.weight >= 1 else "not a bound"

    @property
    def weight(self) -> float:
        """The weight of the KL term at this step."""
        weight = self.beta(self.step) if callable(self.beta) else self.beta
        return require_number("beta", weight, least=0)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        return (sites.reconstruction - self.weight * sites.divergence).mean(0)
