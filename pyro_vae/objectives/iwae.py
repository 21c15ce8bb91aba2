r"""Importance-weighted bound."""

from __future__ import annotations

__all__ = ["IWAE"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ..ops.weights import doubly_reparameterized, log_mean_exp, normalized_weights
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.sites import draw, weigh_chosen
from .base import Estimate, Objective
from .gradients import Coefficients, attached


class IWAE(Objective):
    r"""Importance-weighted bound, in nats per datapoint.

    .. math:: \mathcal L_K(x) = \mathbb E\Big[\log \frac1K \sum_{k=1}^K w_k\Big] \le \log p(x),
        \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    :math:`K = 1` is the ELBO; the bound tightens with :math:`K` and reaches :math:`\log p(x)` in the limit. The
    signal-to-noise ratio of the guide's ``"total"`` gradient falls as :math:`K^{-1/2}`, that of ``"dreg"`` grows as
    :math:`K^{1/2}`. ``"path"`` is biased for the guide here: it drops a score term with an expectation other than zero.

    With ``resampled=True`` one particle is drawn in proportion to its weight, and only that one is back-propagated
    through: the gradient has the same expectation and more noise, for one backward pass through the decoder at any K.
    The decoder runs twice, so dropout or batch normalisation in training mode gives the two runs different weights.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), section 3 for ``resampled``
        | https://arxiv.org/abs/1509.00519
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019)  https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: The number of particles K.
        gradient: ``"total"``, ``"path"``, ``"dreg"``, ``"reinforce"``, ``"reinforce_baseline"``, ``"vimco"``; see
            :mod:`pyro_vae.objectives.gradients`.
        resampled: Back-propagate through one particle per datapoint; with ``"total"`` or ``"dreg"``.

    Errors:
        ConfigError: for ``resampled`` with another gradient.

    Example:
        >>> IWAE(num_particles=2).bound(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """

    gradients = ("total", "path", "dreg", "reinforce", "reinforce_baseline", "vimco")

    def __init__(self, *, num_particles: int = 1, gradient: str = "total", resampled: bool = False) -> None:
        super().__init__(num_particles=num_particles, gradient=gradient)
        if resampled and gradient not in ("total", "dreg"):
            raise ConfigError(f"resampled=True: expected gradient='total' or 'dreg', found {gradient!r}")
        self.resampled = resampled

    def bound(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
        return log_mean_exp(log_w)

    def estimate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Estimate:
        if not (self.resampled and torch.is_grad_enabled()):
            return super().estimate(model, guide, *args, **kwargs)
        pair = Pair(model, guide, args, kwargs)
        vectorized = self._vectorized(pair)
        drawn = draw(pair, self.num_particles, vectorized, self._path)
        log_w, index, sites = weigh_chosen(pair, drawn, self.num_particles, vectorized, self._path)
        self._require_reparameterized(sites)
        one = torch.ones_like(log_w[:1])
        weight = normalized_weights(log_w).gather(0, index[None])
        coefficients = Coefficients(one, weight if self.gradient == "dreg" else one)
        return Estimate(attached(self.bound(log_w), sites, coefficients), log_w.mean(0), sites.scale)

    def _doubly_reparameterized(self, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
        return doubly_reparameterized(log_w, alpha=0.0)
