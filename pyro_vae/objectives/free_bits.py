r"""The ELBO with a KL term that is free up to a threshold."""

from __future__ import annotations

__all__ = ["FreeBits"]


from jaxtyping import Float
from torch import Tensor

from ..errors import require_number
from ..pairs.sites import Sites
from ..pairs.traces import total
from .base import Objective, require_unmasked


class FreeBits(Objective):
    r"""Free bits, in nats per datapoint: no latent dimension gains by a KL divergence below a threshold.

    .. math:: \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \sum_j \max\Big(\lambda,\;
        \frac1B \sum_b \mathrm{KL}(q(z_j \mid x_b) \,\|\, p(z_j))\Big)

    The KL term is a mean over the minibatch and the same for every datapoint, so this is **not a bound** for a
    datapoint (its mean over the batch is below that of the ELBO). It prevents an early collapse of dimensions.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), appendix C.8
        | https://arxiv.org/abs/1606.04934

    Arguments:
        threshold: The threshold :math:`\lambda` of each latent dimension in nats, or of the whole site if its
            distribution is not a product over dimensions.
        num_particles: The number of particles K.
        analytic_kl: Use the closed form of the KL divergence at each latent site. Otherwise it is estimated
            from the draws, and the threshold is for the whole site.

    Errors:
        ConfigError: for a threshold that is negative or infinite.
        PairError: for masked datapoints; with ``analytic_kl``, where a closed form does not exist or the guide samples
            in another order than the model.

    Example:
        >>> FreeBits(threshold=0.1).side
        'not a bound'
    """

    side = "not a bound"

    def __init__(self, *, threshold: float = 0.1, num_particles: int = 1, analytic_kl: bool = True) -> None:
        super().__init__(num_particles=num_particles)
        self.analytic_kl = analytic_kl
        self.threshold = require_number("threshold", threshold, least=0)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        require_unmasked(sites)
        terms = sites.kl or {
            name: (log_q - sites.log_prior.get(name, 0.0))[..., None] for name, log_q in sites.log_q.items()
        }
        clamped = {name: kl.mean((0, 1)).clamp(min=self.threshold).sum() for name, kl in terms.items()}
        return sites.reconstruction.mean(0) - total(clamped)
