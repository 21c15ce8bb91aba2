r"""Values with another gradient attached, from which automatic differentiation computes an estimator.

The surrogate is :math:`\sum_k a_k \log p(x, z_k) - b_k \log q(z_k \mid x)` with the coefficients a and b of
:mod:`pyro_vae.objectives.gradients` as constants. It is added and taken off again, so the value stays what it was.
"""

from __future__ import annotations

__all__ = ["attached", "attached_apart"]

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..pairs.sites import Sites
from ..pairs.traces import total
from .gradients import Coefficients


def attached(value: Tensor, sites: Sites, coefficients: Coefficients) -> Float[Tensor, " batch"]:
    """Return the value with the gradient of the coefficients attached.

    Model and guide meet in log p(x, z): its own parameters get ``model``, and a hook on z scales what goes on to the
    guide by ``guide / model``.
    """
    model, guide = coefficients
    if model is not guide:
        ratio = torch.where(model == 0, 0.0, guide / model)  # where there is nothing to scale
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
    return lambda gradient: (gradient * factor).to(gradient.dtype)  # log p may be of another type than z
