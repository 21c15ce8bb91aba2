r"""Draws from the posteriors of many datapoints, and their densities under the mixture of all of them."""

from __future__ import annotations

__all__ = ["Component", "log_others"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MixtureSameFamily, MultivariateNormal, Normal

_COPIES = 6  # of the log-densities of one block of points


class Component(NamedTuple):
    """The posteriors of some rows, draws from them, and the densities of these draws."""

    q: Any
    z: Float[Tensor, "draws rows *event"]
    log_q: Float[Tensor, "draws rows parts"]
    log_prior: Float[Tensor, "draws rows parts"]

    @classmethod
    def of(cls, q: Any, p: Any, num_draws: int) -> Component:
        z = q.sample(torch.Size([num_draws]))
        return cls(q, z, _log_densities(q, z), _log_densities(p, z))


def _log_densities(fn: Any, z: Tensor) -> Float[Tensor, "*batch parts"]:
    """Return log-densities of each dimension and, last, of all of them together; nan where they are not known."""
    event_dim = len(fn.event_shape)
    lead, size = z.shape[: z.ndim - event_dim], fn.event_shape.numel()
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        each = Normal(fn.mean, fn.variance.sqrt(), validate_args=False).log_prob(z)
        return torch.cat([each, fn.log_prob(z)[..., None]], -1)
    if isinstance(fn, MixtureSameFamily):
        whole = fn.log_prob(z)
        return torch.cat([whole.new_full((*whole.shape, size), torch.nan), whole[..., None]], -1)
    base: Any = fn.base_dist if isinstance(fn, Independent) else fn
    if (
        isinstance(base, Delta)
        or base.event_shape
        or len(base.batch_shape) != len(fn.batch_shape) + len(fn.event_shape)
    ):
        return z.new_full((*torch.broadcast_shapes(lead, fn.batch_shape), size + 1), torch.nan)
    each = base.log_prob(z)
    each = each.reshape(*each.shape[: each.ndim - event_dim], size)
    return torch.cat([each, each.sum(-1, keepdim=True)], -1)


def log_others(place: int, parts: list[Component], max_bytes: int) -> Float[Tensor, "draws rows parts"]:
    """Return, at the draws of one part, the log of the sum of all components but the draw's own, in float64."""
    part = parts[place]
    widest = max(other.z.shape[1] for other in parts)
    step = max(1, max_bytes // (_COPIES * part.log_q[:, 0].nbytes * widest))
    found = []
    for rows in torch.arange(part.z.shape[1], device=part.z.device).split(step):
        z, log_sum = part.z[:, rows].unsqueeze(2), torch.full_like(part.log_q[:, rows].double(), -torch.inf)
        for other in parts:
            cross = _log_densities(other.q, z)  # [draws, rows, components, parts]
            if other is part:
                cross[:, torch.arange(len(rows), device=rows.device), rows] = -torch.inf
            log_sum = torch.logaddexp(log_sum, cross.double().logsumexp(2))
        found.append(log_sum)
    return torch.cat(found, 1)
