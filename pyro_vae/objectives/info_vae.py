r"""The ELBO with a penalty on the distance of the aggregate posterior from the prior."""

from __future__ import annotations

__all__ = ["InfoVAE", "mmd"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_number
from ..pairs.handlers import evaluating
from ..pairs.pair import Pair
from ..pairs.running import Program, trace
from ..pairs.traces import latent_sites
from .base import Estimate, Objective, require_unmasked


class InfoVAE(Objective):
    r"""The InfoVAE's objective with the maximum mean discrepancy (MMD), in nats per datapoint.

    .. math:: \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \kappa\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
        - \mu\, \mathrm{MMD}^2(q(z), p(z)), \qquad q(z) = \frac1N \sum_n q(z \mid x_n)

    In the paper's letters :math:`\kappa = 1 - \alpha` and :math:`\mu = \alpha + \lambda - 1`; with :math:`\kappa = 0`
    it is the MMD-VAE. The discrepancy is between the minibatch's draws, which stand for the aggregate posterior, and an
    equal number of draws from the model's prior; it is the same for every datapoint. This is **not a bound**.

    References:
        | InfoVAE: Balancing Learning and Inference in Variational Autoencoders (Zhao et al., 2019)
        | https://arxiv.org/abs/1706.02262

    Arguments:
        mmd_weight: :math:`\mu`, at least 0; discrepancies are small, so typical weights are 100 or 1000.
        kl_weight: :math:`\kappa`, at least 0.
        num_particles: The number of particles K; the discrepancy is averaged over them.

    Errors:
        ConfigError: for a weight that is negative or infinite.
        PairError: for masked datapoints.

    Example:
        >>> InfoVAE(mmd_weight=1000.0).side
        'not a bound'
    """

    side = "not a bound"

    def __init__(self, *, mmd_weight: float, kl_weight: float = 0.0, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        self.mmd_weight = require_number("mmd_weight", mmd_weight, least=0)
        self.kl_weight = require_number("kl_weight", kl_weight, least=0)

    def estimate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Estimate:
        sites = self._sites(Pair(model, guide, args, kwargs))
        self._require_reparameterized(sites)
        require_unmasked(sites)
        with evaluating(model):  # so that this run leaves batch-normalisation statistics as they are
            prior = {name: site["value"] for name, site in latent_sites(trace(model, args, kwargs)).items()}
        draws, z = _flat({name: prior[name][None] for name in prior})[0], _flat({name: sites.z[name] for name in prior})
        discrepancy = torch.stack([mmd(one, draws) for one in z]).mean()
        bound = (sites.reconstruction - self.kl_weight * sites.divergence).mean(0) - self.mmd_weight * discrepancy
        return Estimate(bound, sites.elbo.detach(), sites.scale)


def _flat(z: dict[str, Tensor]) -> Float[Tensor, "particles batch latent"]:
    """Return all latent sites, concatenated."""
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in z.values()], -1)


def mmd(z: Float[Tensor, "batch latent"], other: Float[Tensor, "batch latent"]) -> Float[Tensor, ""]:
    r"""Return the squared maximum mean discrepancy between two samples of one size, estimated without bias.

    .. math:: \mathrm{MMD}^2(q, p) = \mathbb E[k(z, z')] + \mathbb E[k(y, y')] - 2\, \mathbb E[k(z, y)], \qquad
        k(z, y) = \exp\Big(-\frac{\|z - y\|^2}{2 d}\Big), \quad z \sim q,\; y \sim p

    with d the dimension, so that the exponent is -1 at the mean squared distance of two standard normal draws. The
    estimate may be negative; it is zero for one point in each sample.

    References:
        | A Kernel Two-Sample Test (Gretton et al., 2012)  https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> mmd(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor(0.)
    """
    size, dimension = z.shape
    if size == 1:
        return torch.zeros_like(z.sum())
    within = sum(_kernel(sample, sample, dimension).sum() - size for sample in (z, other)) / (size * (size - 1))
    return within - 2 * _kernel(z, other, dimension).mean()


def _kernel(z: Tensor, other: Tensor, dimension: int) -> Float[Tensor, "batch batch"]:
    return (-(z[:, None] - other).square().sum(-1) / (2 * dimension)).exp()
