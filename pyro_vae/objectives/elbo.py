r"""Evidence lower bound."""

from __future__ import annotations

__all__ = ["ELBO"]


from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ..ops.weights import doubly_reparameterized
from ..pairs.sites import Sites
from .base import Objective


class ELBO(Objective):
    r"""Evidence lower bound, in nats per datapoint, from K particles.

    .. math:: \mathcal L(x) = \mathbb E_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)]
        = \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)) \le \log p(x)

    The gap is :math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))`. Both forms have the same expectation; the second,
    ``analytic_kl=True``, does not sample the KL term and so usually has the smaller variance. More particles make the
    estimate less noisy and leave the bound where it is; for a tighter bound see :class:`IWAE`.

    The gradient ``"path"`` (here the same as ``"dreg"``) vanishes at the exact posterior, draw by draw. Score-function
    gradients also train discrete latent variables; ``"rloo"`` is the least noisy of them.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114
        | Sticking the Landing (Roeder et al., 2017)  https://arxiv.org/abs/1703.09194
        | Neural Variational Inference and Learning (Mnih & Gregor, 2014)  https://arxiv.org/abs/1402.0030

    Arguments:
        num_particles: The number of particles K (L in the first paper).
        gradient: ``"total"``, ``"path"``, ``"dreg"``, ``"reinforce"``, ``"reinforce_baseline"``, ``"rloo"``; see
            :mod:`pyro_vae.objectives.gradients`.
        analytic_kl: Use the closed form of the KL divergence at each latent site; with ``"total"`` only.

    Errors:
        ConfigError: for ``analytic_kl`` with another gradient.
        PairError: with ``analytic_kl``, where a closed form does not exist or the guide samples in another order than
            the model.

    Example:
        >>> ELBO().bound(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """

    gradients = ("total", "path", "dreg", "reinforce", "reinforce_baseline", "rloo")

    def __init__(self, *, num_particles: int = 1, gradient: str = "total", analytic_kl: bool = False) -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        if analytic_kl and gradient != "total":
            raise ConfigError(f"analytic_kl leaves no sampled KL term: expected gradient='total', found {gradient!r}")
        self.analytic_kl = analytic_kl

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_w.mean(0)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        return sites.elbo if self.gradient == "total" else super()._bound(sites)

    def _signal(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        return log_w / len(log_w)

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        return doubly_reparameterized(log_w, alpha=1.0)
