r"""The ELBO with a weight on the total correlation of the aggregate posterior."""

from __future__ import annotations

__all__ = ["BetaTCVAE", "log_aggregate"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from ..errors import PairError, require_count, require_number
from ..pairs.sites import Sites
from .base import Objective, require_unmasked


class BetaTCVAE(Objective):
    r"""The beta-TCVAE's objective, in nats per datapoint.

    .. math:: \mathcal L(x) - (\beta - 1)\, \mathrm{TC}, \qquad
        \mathrm{TC} = \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_j q(z_j)\Big), \quad
        q(z) = \frac1N \sum_{n=1}^N q(z \mid x_n)

    with :math:`\mathcal L` the ELBO. The total correlation is a property of the whole data set; the value of each
    datapoint has its own term of it, with q(z) estimated without bias from the minibatch: its own posterior weighs 1/N,
    the others share the rest. The logarithm of that estimate is biased, so this is **not a bound**. With several latent
    sites, the total correlation is that of the guide's first one.

    References:
        | Isolating Sources of Disentanglement in VAEs (Chen et al., 2018)  https://arxiv.org/abs/1802.04942

    Arguments:
        beta: The weight of the total correlation; 1 is the ELBO.
        num_data: The size N of the training set.

    Errors:
        ConfigError: for a beta that is negative or infinite.
        PairError: for masked datapoints; for a q(z | x) that is neither a product over a vector's dimensions nor a
            multivariate normal.

    Example:
        >>> BetaTCVAE(beta=6.0, num_data=60_000).side
        'not a bound'
    """

    side = "not a bound"

    def __init__(self, *, beta: float = 6.0, num_data: int) -> None:
        super().__init__()
        self.beta = require_number("beta", beta, least=0)
        self.num_data = require_count("num_data", num_data)

    def _bound(self, sites: Sites) -> Float[Tensor, " batch"]:
        require_unmasked(sites)
        name, q = next(iter(sites.q.items()))
        z = sites.z[name][0][:, None]
        each = _marginals(name, q).log_prob(z)
        whole = q.log_prob(z) if isinstance(q, MultivariateNormal) else each.sum(-1)
        joint = log_aggregate(whole, self.num_data)
        product = log_aggregate(each, self.num_data).sum(-1)
        return sites.elbo - (self.beta - 1) * (joint - product)


def _marginals(name: str, q: Any) -> Any:
    """Return the distributions of the single dimensions of a vector."""
    if isinstance(q, MultivariateNormal):
        return Normal(q.mean, q.stddev, validate_args=False)
    if not isinstance(q, Independent) or len(q.event_shape) != 1 or q.base_dist.event_shape:
        raise PairError(
            f"site {name!r}: expected a q(z | x) with known marginals, a product over a vector's dimensions or a "
            f"MultivariateNormal, found {q}"
        )
    return q.base_dist


def log_aggregate(log_q: Float[Tensor, "batch batch *latent"], num_data: int) -> Float[Tensor, "batch *latent"]:
    r"""Return the log of an unbiased estimate of :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` at a minibatch's draws.

    .. math:: \frac1N\, q(z_i \mid x_i) + \frac{N - 1}{N (B - 1)} \sum_{j \ne i} q(z_i \mid x_j)

    since a draw's own datapoint is always in the batch, and the others are there by chance.

    Arguments:
        log_q: :math:`\log q(z_i \mid x_j)`, in ``[i, j]``.
        num_data: The size N of the data set; the batch size counts if it is larger.

    Example:
        >>> torch.allclose(log_aggregate(torch.zeros(3, 3), num_data=10), torch.zeros(3), atol=1e-6)
        True
    """
    batch = len(log_q)
    own = 1.0 if batch == 1 else 1 / max(num_data, batch)
    weights = torch.full((batch, batch), (1 - own) / max(1, batch - 1)).to(log_q).fill_diagonal_(own).log()
    return torch.logsumexp(log_q + weights.reshape(batch, batch, *[1] * (log_q.ndim - 2)), 1)
