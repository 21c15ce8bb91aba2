r"""Local variational inference: the best member of a family for each datapoint, chosen and compared on fresh draws."""

from __future__ import annotations

__all__ = ["Plan", "best_member", "compared"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.streaming import Moments
from ..pairs.density import Density
from .families import Family, Parameters
from .gaussian_fit import GuideGaussian

_LAYERS = 0.4  # of the learning rate for a flow's layers, which are less steady than the Gaussian that they bend

# Below this slope Adam's steps are proportionate to it, so that it goes into an optimum and stays there: that of the
# Gaussian, in learning rates (half of Newton's step, were the guide the posterior), and that of a flow's layers.
_SLOPE, _LAYER_SLOPE = 2.0, 1e-3


class Plan(NamedTuple):
    """Settings of the optimiser, and the number of draws to compare on; ``most`` particles fit into memory at once."""

    num_steps: int
    num_particles: int
    learning_rate: float
    step_particles: int
    most: int


def best_member(density: Density, member: Family, plan: Plan, on_progress: Callable[[int], Any]) -> Parameters:
    """Return the member's parameters, optimised from its start, or the start for datapoints where that is better."""
    return _better(density, member, _optimised(density, member, plan, on_progress), plan)


def _optimised(density: Density, member: Family, plan: Plan, on_progress: Callable[[int], Any]) -> Parameters:
    """Return the member's parameters after Adam on the ELBO of all datapoints; the member itself keeps its start."""
    leaf = [parameter.clone().requires_grad_() for parameter in member.parameters]
    gaussian, layers = leaf[:2], leaf[2:]
    rate = max(plan.learning_rate, 1e-9)  # 0 would be divided by
    groups = [{"params": gaussian}, *({"params": [part], "lr": _LAYERS * rate, "eps": _LAYER_SLOPE} for part in layers)]
    adam = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99), eps=_SLOPE * rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, plan.num_steps))
    for _ in range(plan.num_steps):
        noise = _noise(member, -(-min(plan.step_particles, plan.most) // 2))
        noise = torch.cat([noise, -noise])  # antithetic: no noise in the location's slope near a Gaussian optimum
        with torch.enable_grad():
            u, _ = member.draw(noise, leaf)
            elbo = (density.terms(u, q=False).log_p - member.log_density(u, leaf)).mean(0)
            slopes = torch.autograd.grad(elbo.sum(), leaf)
        for parameter, slope in zip(leaf, slopes, strict=True):
            parameter.grad = -slope.nan_to_num(0.0, 0.0, 0.0)  # a draw beyond what the model can score moves nothing
        adam.step()
        cosine.step()
        on_progress(1)
    return [parameter.detach() for parameter in leaf]


@torch.no_grad()
def _better(density: Density, member: Family, found: Parameters, plan: Plan) -> Parameters:
    """Return, per datapoint, the better of the start and the optimum, compared on the same fresh draws."""
    gain = member.loc.new_zeros(len(member.loc))
    for block in _blocks(max(1, plan.num_particles // 2), plan.most):
        noise = _noise(member, block)
        gain = gain + (_log_w(density, member, noise, found) - _log_w(density, member, noise, member.parameters)).sum(0)
    pairs = zip(found, member.parameters, strict=True)
    return [torch.where((gain > 0).reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in pairs]


@torch.no_grad()
def compared(
    density: Density, start: GuideGaussian, member: Family, best: Parameters, plan: Plan
) -> tuple[Moments, Moments, Tensor]:
    """Return the guide's and the member's log-weights on fresh draws, and the standard error of their difference."""
    totals: list[Moments] = []
    for block in _blocks(plan.num_particles, plan.most):
        u = density.draw(block)
        noise = start.noise(u) if start.exact else _noise(member, block)
        one, other = density.terms(u).log_w, _log_w(density, member, noise, best)
        moments = [Moments.of(part) for part in (one, other, other - one)]
        totals = [old.merge(new) for old, new in zip(totals, moments, strict=True)] if totals else moments
    guide, local, difference = totals
    return guide, local, difference.stderr if start.exact else torch.hypot(guide.stderr, local.stderr)


def _log_w(density: Density, member: Family, noise: Tensor, parameters: Parameters) -> Float[Tensor, "particles batch"]:
    u, log_q = member.draw(noise, parameters)
    return density.terms(u, q=False).log_p - log_q


def _noise(member: Family, num: int) -> Float[Tensor, "particles batch latent"]:
    return torch.randn(num, *member.loc.shape, dtype=member.loc.dtype, device=member.loc.device)


def _blocks(num: int, most: int) -> list[int]:
    return [min(most, num - done) for done in range(0, num, most)]
