r"""Hamiltonian Monte Carlo for many chains at once; a transition keeps nothing but the state of the chains."""

from __future__ import annotations

__all__ = ["Evaluation", "Info", "Kernel", "LogDensity", "State", "init", "jump", "kernel", "leapfrog"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Evaluation(NamedTuple):
    """A log-density and its gradient at positions ``[particles, batch, dim]``."""

    log_density: Float[Tensor, "particles batch"]
    gradient: Float[Tensor, "particles batch dim"]
    carried: tuple[Tensor, ...] = ()
    """Further values at the positions, each ``[particles, batch, ...]``; they stay with the position they belong to."""


class State(NamedTuple):
    """The positions of the chains, with the log-density and its gradient there."""

    position: Float[Tensor, "particles batch dim"]
    log_density: Float[Tensor, "particles batch"]
    gradient: Float[Tensor, "particles batch dim"]
    carried: tuple[Tensor, ...] = ()


class Info(NamedTuple):
    """The outcome of a transition, for diagnosis; the next transition does not need it."""

    accepted: Bool[Tensor, "particles batch"]
    acceptance: Float[Tensor, "particles batch"]
    r"""The probability of acceptance, :math:`\min(1, e^{-\Delta H})`; 0 for proposals that are not finite."""


LogDensity = Callable[[Tensor], Evaluation]
Kernel = Callable[..., tuple[State, Info]]
"""A transition ``(state, *, step_size, scale, num_steps)``, which evaluates all chains exactly ``num_steps`` times."""


def init(position: Float[Tensor, "particles batch dim"], log_density_fn: LogDensity) -> State:
    """Return the state of chains that start at ``position``, by one evaluation."""
    return State(position, *log_density_fn(position))


def kernel(log_density_fn: LogDensity) -> Kernel:
    r"""Return a transition that leaves a density invariant, for each chain separately.

    .. math:: H(u, v) = -\log \pi(u) + \tfrac12 \|v\|^2, \qquad
        v \leftarrow v + \tfrac{\epsilon}2\, s \nabla \log \pi(u), \quad u \leftarrow u + \epsilon\, s\, v, \quad
        v \leftarrow v + \tfrac{\epsilon}2\, s \nabla \log \pi(u)

    Momenta are drawn afresh from :math:`\mathcal N(0, I)`, and each chain accepts the end of ``num_steps`` leapfrog
    steps with probability :math:`\min(1, e^{-\Delta H})`. The step size :math:`\epsilon` (a number, ``[batch]`` or
    ``[particles, batch]``) and the scale s (``[batch, dim]``, or a shape that broadcasts to it) may depend on anything
    except the position of the chain: detailed balance requires this. A chain stays where it is if its trajectory
    becomes infinite or NaN.

    References:
        | MCMC Using Hamiltonian Dynamics (Neal, 2011)  https://arxiv.org/abs/1206.1901

    Example:
        >>> standard_normal = kernel(normal := lambda u: Evaluation(-0.5 * u.square().sum(-1), -u))
        >>> state = init(torch.zeros(4, 3, 2), normal)
        >>> state, info = standard_normal(state, step_size=torch.tensor(0.5), scale=torch.ones(2), num_steps=3)
        >>> state.position.shape, info.accepted.shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3]))
    """

    def transition(
        state: State, *, step_size: Float[Tensor, "..."], scale: Float[Tensor, "..."], num_steps: int
    ) -> tuple[State, Info]:
        momentum = torch.randn_like(state.position)
        proposal, end = leapfrog(
            log_density_fn, state, momentum, stride=step_size[..., None] * scale, num_steps=num_steps
        )
        change = proposal.log_density - state.log_density - 0.5 * (end.square() - momentum.square()).sum(-1)
        acceptance = torch.where(proposal.log_density.isfinite(), change.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        accepted = torch.rand_like(acceptance) < acceptance
        return _where(accepted, proposal, state), Info(accepted, acceptance)

    return transition


def jump(
    log_density_fn: LogDensity,
    state: State,
    position: Float[Tensor, "proposals particles batch dim"],
    log_w: Float[Tensor, "several particles batch"],
) -> State:
    r"""Move each chain to one of N independent draws from a density r, or leave it where it is; by one evaluation.

    .. math:: \Pr(k) = \frac{w_k}{\sum_{j=0}^N w_j}, \qquad w = \frac{\pi(u)}{r(u)}

    where :math:`k = 0` is the current position: iterated sampling importance resampling. The move leaves :math:`\pi`
    invariant, and it connects modes that no trajectory connects if r has some of its mass in each of them.

    Arguments:
        log_density_fn: The log-density :math:`\log \pi` and its gradient.
        state: The current state of the chains.
        position: The draws from r.
        log_w: The log-weights, up to a constant for each chain: first that of the state, then those of the draws.

    References:
        | Particle Markov Chain Monte Carlo Methods (Andrieu et al., 2010)
        | https://doi.org/10.1111/j.1467-9868.2009.00736.x
        | Local-Global MCMC Kernels: The Best of Both Worlds (Samsonov et al., 2022)  https://arxiv.org/abs/2111.02702
    """
    log_w = torch.where(log_w.isnan(), -torch.inf, log_w)
    gumbel = -torch.empty_like(log_w).exponential_().log()
    chosen = (log_w + gumbel).argmax(0)
    end = torch.cat([state.position[None], position]).gather(0, chosen[None, ..., None].expand_as(position[:1]))[0]
    return _where(chosen > 0, init(end, log_density_fn), state)


def leapfrog(
    log_density_fn: LogDensity,
    state: State,
    momentum: Float[Tensor, "particles batch dim"],
    *,
    stride: Float[Tensor, "..."],
    num_steps: int,
) -> tuple[State, Float[Tensor, "particles batch dim"]]:
    r"""Return the end of a trajectory of steps :math:`\epsilon\, s` and its momentum, nan where it diverged."""
    for _ in range(num_steps):
        momentum = momentum + 0.5 * stride * state.gradient
        moved = state.position + stride * momentum
        finite = moved.isfinite().all(-1, keepdim=True)  # the density is evaluated at finite positions only
        momentum = torch.where(finite, momentum, torch.nan)
        position = torch.where(finite, moved, state.position)
        state = State(position, *log_density_fn(position))
        momentum = momentum + 0.5 * stride * state.gradient
    return state, momentum


def _where(chosen: Tensor, one: State, other: State) -> State:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen.reshape(*chosen.shape, *[1] * (a.ndim - 2)), a, b)

    parts = (pick(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    return State(*parts, carried=tuple(map(pick, one.carried, other.carried)))
