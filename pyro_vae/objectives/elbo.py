r"""Evidence lower bound."""

from __future__ import annotations

__all__ = ["ELBO"]

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..sites import Sites, total
from .base import Objective


class ELBO(Objective):
    r"""Evidence lower bound, in nats per datapoint, from K particles.

    .. math:: \mathcal L(x) = \mathbb E_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)]
        = \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)) \le \log p(x)

    The gap is :math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))`. Both forms have the same expectation; the second,
    ``analytic_kl=True``, does not sample the KL term and so usually has the smaller variance. More particles make the
    estimate less noisy and leave the bound where it is; for a tighter bound see :class:`IWAE`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Arguments:
        num_particles: The number of particles K (L in the paper).
        gradient: ``"total"``.
        analytic_kl: Use the closed form of the KL divergence at each latent site.

    Errors:
        PairError: with ``analytic_kl``, where a closed form does not exist or the guide samples in another order than
            the model.

    Example:
        >>> ELBO().bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    def __init__(self, *, num_particles: int = 1, gradient: str = "total", analytic_kl: bool = False) -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        self.analytic_kl = analytic_kl

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_w.mean(0)

    def _sites(self, *pair_and_arguments: Any, **_: Any) -> Sites:
        return super()._sites(*pair_and_arguments, analytic_kl=self.analytic_kl)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        if not self.analytic_kl:
            return super()._bound(sites)
        return self.bound(total(sites.log_likelihood) - total(sites.kl))
