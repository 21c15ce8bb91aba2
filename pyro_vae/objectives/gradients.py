r"""Gradient estimators of a bound: each is two coefficients per particle.

A bound :math:`\mathcal L(\log w_1, \ldots, \log w_K)` has derivatives :math:`v_k = \partial \mathcal L / \partial \log
w_k`, for the importance-weighted bound the normalised weights. The gradient estimate is

.. math:: \sum_k a_k\, \nabla_\theta \log p_\theta(x, z_k) + \begin{cases}
    \sum_k b_k\, \dfrac{d}{d\phi} \log w_k & \text{through the draws } z_k(\phi) \\
    -\sum_k b_k\, \nabla_\phi \log q_\phi(z_k \mid x) & \text{where the draws are constants}\end{cases}

with :math:`\theta` the model's parameters and :math:`\phi` the guide's. For ``total`` the derivative of
:math:`\log w` includes that of the density, for ``path`` and ``dreg`` it does not. ``score`` estimators need no
reparameterisation, so they also work for discrete latent variables.

| gradient | a | b | bias for the guide |
|---|---|---|---|
| ``total`` | v | v | none |
| ``path`` | v | v | none for the ELBO only |
| ``dreg`` | v | v - dv/dlog w | none |
| ``reinforce`` | v | (v - 1/K) - L | none |
| ``reinforce_baseline`` | v | (v - 1/K) - (L - L of the other datapoints) | none |
| ``score`` | as in the subclass's docstring | | none, or as stated there |
| ``rloo``, ``vimco`` | v | (v - 1/K) - (L - L without particle k) | none |

All but ``total`` assume that a datapoint's weights depend on its own draws only, as they do if the plate's rows are
conditionally independent. A decoder with batch normalisation in training mode mixes datapoints and needs ``total``.

The constant 1/K leaves expectations as they are, and makes the ELBO's ``reinforce`` equal to that of the textbooks.

| ``path``: Sticking the Landing (Roeder et al., 2017)  https://arxiv.org/abs/1703.09194
| ``dreg``: Doubly Reparameterized Gradient Estimators (Tucker et al., 2019)  https://arxiv.org/abs/1810.04152
| ``dreg`` of layered guides: Generalized Doubly-Reparameterized Gradient Estimators (Bauer & Mnih, 2021)
|   https://arxiv.org/abs/2101.11046
| ``reinforce``: Neural Variational Inference and Learning (Mnih & Gregor, 2014)  https://arxiv.org/abs/1402.0030
| ``rloo``: Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019)
|   https://openreview.net/forum?id=r1lgTGL5DE
| ``vimco``: Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)  https://arxiv.org/abs/1602.06725
"""

from __future__ import annotations

__all__ = [
    "PATHS",
    "Coefficients",
    "leave_one_out",
    "over_other_datapoints",
    "sensitivity",
]

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..pairs.pathwise import GradientPath
from ..pairs.sites import Sites
from ..pairs.traces import total

Bound = Callable[[Tensor], Tensor]

PATHS: dict[str, GradientPath] = {
    "total": "total",
    "score": "score",
    "path": "path",
    "dreg": "path",
    "reinforce": "score",
    "reinforce_baseline": "score",
    "rloo": "score",
    "vimco": "score",
}

_MAX_ENTRIES = 2**22  # in memory at once, of the K^2 per datapoint that leaving out each particle takes


class Coefficients(NamedTuple):
    """The constant factors of each particle's gradients."""

    model: Float[Tensor, "particles batch"]
    guide: Float[Tensor, "particles batch"]


def sensitivity(bound: Bound, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
    r"""Return :math:`v_k = \partial \mathcal L / \partial \log w_k`.

    Example:
        >>> sensitivity(lambda log_w: torch.logsumexp(log_w, 0), torch.tensor([[0.0], [0.0]]))
        tensor([[0.5000],
                [0.5000]])
    """
    with torch.enable_grad():
        leaf = log_w.detach().requires_grad_()
        return torch.autograd.grad(bound(leaf).sum(), leaf)[0]


def leave_one_out(bound: Bound, log_w: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
    r"""Return the bound with the k-th log-weight replaced by the others' mean, a baseline independent of :math:`z_k`.

    Example:
        >>> leave_one_out(lambda log_w: log_w.mean(0), torch.tensor([[0.0], [4.0]]))
        tensor([[4.],
                [0.]])
    """
    particles, batch = log_w.shape
    empty = log_w == -torch.inf  # their difference from the sum would be nan
    full = log_w.double().masked_fill(empty, 0.0)  # in float32 the difference of sums would depend on particle k
    others = ((full.sum(0) - full) / (particles - 1)).to(log_w)
    others = others.masked_fill((empty.sum(0) - empty.int()) > 0, -torch.inf)
    own = torch.eye(particles, dtype=torch.bool, device=log_w.device)[..., None]
    found = []
    for left_out in torch.arange(particles).split(max(1, _MAX_ENTRIES // log_w.numel())):
        replaced = torch.where(own[:, left_out], others[None, left_out], log_w[:, None])
        found.append(bound(replaced.reshape(particles, -1)).reshape(-1, batch))
    return torch.cat(found)


def over_other_datapoints(signal: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
    """Return the mean of a signal over the other datapoints of the batch; zero if there is no other.

    Example:
        >>> over_other_datapoints(torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([4.0000, 3.5000, 1.5000])
    """
    signal = signal.mean(0)
    return (signal.sum() - signal) / max(1, len(signal) - 1)


def attached(value: Tensor, sites: Sites, coefficients: Coefficients) -> Float[Tensor, " batch"]:
    r"""Return the value with the gradient of the coefficients attached, by a surrogate that is added and taken off.

    .. math:: \sum_k a_k \log p(x, z_k) - b_k \log q(z_k \mid x), \qquad a, b \text{ constant}

    Gradients of log p(x, z) reach the model's parameters with the factor ``model``; a hook on z scales those that go on
    to the guide by ``guide / model``.
    """
    model, guide = coefficients
    if model is not guide:
        ratio = torch.where(model == 0, 0.0, guide / model)  # zero gradients need no factor
        for z in sites.z.values():
            if z.requires_grad:
                z.register_hook(_scaled_by(ratio.reshape(ratio.shape + (1,) * (z.ndim - 2))))
    return _following(value, sites, model, guide)


def attached_apart(value: Tensor, sites: Sites, coefficients: Coefficients) -> Float[Tensor, " batch"]:
    """Return what :func:`attached` returns where the coefficients have no common factor, by a second pass back to z."""
    model, guide = coefficients
    draws = [z for z in sites.z.values() if z.requires_grad]
    missing = ((guide - model) * _finite(sites.log_p)).sum()
    slopes = torch.autograd.grad(missing, draws, retain_graph=True, allow_unused=True) if draws else []
    paths = [
        (slope * (z - z.detach())).reshape(*model.shape, -1).sum((0, -1))
        for z, slope in zip(draws, slopes, strict=True)
        if slope is not None
    ]
    return _following(value, sites, model, guide) + sum(paths, torch.zeros_like(value))


def _following(value: Tensor, sites: Sites, model: Tensor, guide: Tensor) -> Tensor:
    surrogate = (model * _finite(sites.log_p) - guide * total(sites.log_q)).sum(0)
    return value.detach() + (surrogate - surrogate.detach())


def _finite(log_p: Tensor) -> Tensor:
    """Return zeros for draws outside the model's support, where zero weight times infinity would be nan."""
    return log_p.masked_fill(log_p.detach().isinf(), 0.0)


def _scaled_by(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: (gradient * factor).to(gradient.dtype)  # the types of log p and z may differ
