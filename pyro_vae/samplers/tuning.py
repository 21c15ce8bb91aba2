r"""Step sizes and scales of the chains: found by a pilot run on draws of its own, and frozen before the estimate."""

from __future__ import annotations

__all__ = ["Steps", "annealing_evaluations", "tune"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PairError
from ..ops.hmc import Info, State, kernel
from .tempering import TemperedPath, reheated

_CHAINS, _WARM_UP, _TEMPERATURES, _DRAWS = 4, 8, 25, 32
_ACCEPTANCE = 0.75


class Steps(NamedTuple):
    """Step sizes and scales of the transitions; they do not depend on the position of any chain."""

    path: TemperedPath
    betas: Float[Tensor, " levels"]
    num_steps: int
    precisions: tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]
    """The reciprocals of the variances at both ends of the path, between which they are interpolated."""
    sizes: Float[Tensor, "levels batch"]

    def __call__(self, t: int, state: State) -> State:
        """Return the state after the transition at temperature number ``t``."""
        return self.move(self.betas[t].item(), self.sizes[t], state)[0]

    def move(self, beta: float, size: Float[Tensor, " batch"], state: State) -> tuple[State, Info]:
        """Return the state after a transition with a jittered step size, so that no trajectory is always periodic."""
        jitter = 0.4 + 0.8 * torch.rand_like(state.log_density)
        first, second = self.precisions
        scale = ((1 - beta) * first + beta * second).rsqrt()
        step = kernel(self.path.at(beta))
        return step(reheated(state, beta), step_size=size * jitter, scale=scale, num_steps=self.num_steps)


def tune(path: TemperedPath, betas: Float[Tensor, " levels"], *, num_steps: int, most: int) -> Steps:
    """Return steps at which about three quarters of the proposals are accepted, per temperature and datapoint.

    Four chains go up the temperatures, at most 25 of them, and down again; after each transition the step size follows
    the acceptance of the chains of a datapoint. The geometric mean of both ways is used, since one lags behind where
    the other runs ahead.

    Arguments:
        most: The number of chains of each datapoint that fit into memory.
    """
    u = path.draw(min(_CHAINS, most))
    rows, dim = u.shape[1:]
    steps = Steps(path, betas, num_steps, _precisions(path, most), u.new_ones(len(betas), rows))
    last = len(betas) - 2
    if last < 1:
        return steps
    numbers = _grid(last)
    state = path.begin(u, 0.0)
    log_size = u.new_full((rows,), -0.25).mul(torch.tensor(float(dim)).log())
    for rate in torch.linspace(1.5, 0.5, _WARM_UP).tolist():
        state, log_size = _followed(steps, numbers[0], state, log_size, rate)
    ways = []
    for way in (numbers, numbers[::-1]):
        sizes = []
        for t in way:
            state, log_size = _followed(steps, t, state, log_size, 0.5)
            sizes.append(log_size)
        ways.append(torch.stack(sizes))
    return steps._replace(sizes=_interpolated(numbers, (ways[0] + ways[1].flip(0)) / 2, len(betas)).exp())


def annealing_evaluations(num_chains: int, num_temperatures: int, num_steps: int, most: int) -> int:
    """Return the number of evaluations of each datapoint by annealed chains, those of :func:`tune` included."""
    chains = num_chains * (1 + (num_temperatures - 1) * num_steps)
    if num_temperatures < 2:
        return chains
    return chains + min(_CHAINS, most) * (1 + (_WARM_UP + 2 * len(_grid(num_temperatures - 1))) * num_steps)


def _followed(steps: Steps, t: int, state: State, log_size: Tensor, rate: float) -> tuple[State, Tensor]:
    state, info = steps.move(steps.betas[t].item(), log_size.exp(), state)
    return state, log_size + rate * (info.acceptance.mean(0) - _ACCEPTANCE)


def _grid(last: int) -> list[int]:
    """Return numbers from 1 to ``last``, evenly spread."""
    return torch.linspace(1, last, min(last, _TEMPERATURES)).round().long().tolist()


def _interpolated(numbers: list[int], values: Tensor, size: int) -> Tensor:
    """Interpolate ``[numbers, batch]`` to ``[size, batch]``, linearly in between and constant beyond."""
    known = torch.tensor(numbers)
    wanted = torch.arange(size).clamp(numbers[0], numbers[-1])
    right = torch.searchsorted(known, wanted).clamp(min=min(1, len(numbers) - 1))
    left = (right - 1).clamp(min=0)
    share = (wanted - known[left]) / (known[right] - known[left]).clamp(min=1)
    share = share.to(values)[:, None]
    return (1 - share) * values[left] + share * values[right]


def _precisions(path: TemperedPath, most: int) -> tuple[Tensor, Tensor]:
    """Return the precisions at both ends: of the prior and the guide, or of the guide alone."""
    guide, is_point = _spread(path.density.draw, most)
    if path.start == "guide":
        if bool(is_point.any()):
            raise PairError(
                "the guide draws the same value every time (a point mass), expected a density: use start='prior', "
                "which needs none"
            )
        return guide, guide
    prior, _ = _spread(path.density.draw_prior, most)
    return prior, torch.where(is_point, prior, guide)


def _spread(draw: Callable[[int], Tensor], most: int) -> tuple[Tensor, Tensor]:
    """Return the reciprocal of the variance of draws, and where they are all the same."""
    blocks = [draw(min(most, _DRAWS - done)) for done in range(0, _DRAWS, most)]
    u = torch.cat(blocks)
    variance = u.var(0).clamp(min=torch.finfo(u.dtype).tiny ** 0.5)
    return variance.reciprocal(), (u == u[:1]).all(0)
