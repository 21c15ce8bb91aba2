r"""Hamiltonian Monte Carlo for many chains at once: one transition, without memory of the ones before."""

from __future__ import annotations

__all__ = ["Evaluation", "Info", "Kernel", "LogDensity", "State", "init", "jump", "kernel", "leapfrog"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Evaluation(NamedTuple):
    """What a log-density says at positions ``[particles, batch, dim]``."""

    log_density: Float[Tensor, "particles batch"]
    gradient: Float[Tensor, "particles batch dim"]
    carried: tuple[Tensor, ...] = ()
    """Whatever else is known there, each ``[particles, batch, ...]``: kept with the position, never computed twice."""


class State(NamedTuple):
    """Where the chains are, and what the density was found to be there."""

    position: Float[Tensor, "particles batch dim"]
    log_density: Float[Tensor, "particles batch"]
    gradient: Float[Tensor, "particles batch dim"]
    carried: tuple[Tensor, ...] = ()


class Info(NamedTuple):
    """What a transition did; no part of the chain."""

    accepted: Bool[Tensor, "particles batch"]
    acceptance: Float[Tensor, "particles batch"]
    r"""The probability of accepting, :math:`\min(1, e^{-\Delta H})`; 0 for proposals that are not finite."""


LogDensity = Callable[[Tensor], Evaluation]
Kernel = Callable[..., tuple[State, Info]]
"""One transition ``(state, *, step_size, scale, num_steps)``: exactly ``num_steps`` evaluations at all positions."""


def init(position: Float[Tensor, "particles batch dim"], log_density_fn: LogDensity) -> State:
    """The state of chains that start at ``position``: one evaluation."""
    return State(position, *log_density_fn(position))


def kernel(log_density_fn: LogDensity) -> Kernel:
    r"""A transition that leaves a density unchanged, chain by chain.

    .. math:: H(u, v) = -\log \pi(u) + \tfrac12 \|v\|^2, \qquad
        v \leftarrow v + \tfrac{\epsilon}2\, s \nabla \log \pi(u), \quad u \leftarrow u + \epsilon\, s\, v, \quad
        v \leftarrow v + \tfrac{\epsilon}2\, s \nabla \log \pi(u)

    Momenta are drawn anew from :math:`\mathcal N(0, I)`; the end of ``num_steps`` leapfrog steps is accepted with
    probability :math:`\min(1, e^{-\Delta H})`, each chain by itself. The step size :math:`\epsilon` (a number,
    ``[batch]`` or ``[particles, batch]``) and the scale s (``[batch, dim]``, or what broadcasts to it) may depend on
    anything but where the chain is: that is what detailed balance rests on. A chain whose trajectory leaves the finite
    numbers stays where it is.

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
    r"""To one of N independent draws of a density r, wherever the chain is, or not at all: one evaluation.

    .. math:: \Pr(k) = \frac{w_k}{\sum_{j=0}^N w_j}, \qquad w = \frac{\pi(u)}{r(u)}

    with 0 for where the chain is: iterated sampling importance resampling. It leaves :math:`\pi` unchanged and goes
    between modes that no trajectory connects, if r has some of its mass in each.

    Arguments:
        log_density_fn: Of :math:`\pi` and its gradient.
        state: Where the chains are.
        position: The draws of r.
        log_w: Up to a constant for each chain, the log-weights: first that of the state, then those of the draws.

    References:
        | Particle Markov Chain Monte Carlo Methods (Andrieu et al., 2010)
        | https://doi.org/10.1111/j.1467-9868.2009.00736.x
        | Local-Global MCMC Kernels: The Best of Both Worlds (Samsonov et al., 2022)  https://arxiv.org/abs/2111.02702
    """
    known = torch.where(log_w.isnan(), -torch.inf, log_w)
    gumbel = -torch.empty_like(known).exponential_().log()
    chosen = (known + gumbel).argmax(0)
    there = torch.cat([state.position[None], position]).gather(0, chosen[None, ..., None].expand_as(position[:1]))[0]
    return _where(chosen > 0, init(there, log_density_fn), state)


def leapfrog(
    log_density_fn: LogDensity,
    state: State,
    momentum: Float[Tensor, "particles batch dim"],
    *,
    stride: Float[Tensor, "..."],
    num_steps: int,
) -> tuple[State, Float[Tensor, "particles batch dim"]]:
    r"""The end of a trajectory of steps :math:`\epsilon\, s` and its momentum, which is nan where it broke off."""
    for _ in range(num_steps):
        momentum = momentum + 0.5 * stride * state.gradient
        moved = state.position + stride * momentum
        whole = moved.isfinite().all(-1, keepdim=True)  # densities are not asked about positions that are no numbers
        momentum = torch.where(whole, momentum, torch.nan)
        position = torch.where(whole, moved, state.position)
        state = State(position, *log_density_fn(position))
        momentum = momentum + 0.5 * stride * state.gradient
    return state, momentum


def _where(chosen: Tensor, one: State, other: State) -> State:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen.reshape(*chosen.shape, *[1] * (a.ndim - 2)), a, b)

    parts = (pick(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    return State(*parts, carried=tuple(map(pick, one.carried, other.carried)))
