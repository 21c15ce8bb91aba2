r"""Step sizes and scales of the chains: found by a pilot run on draws of its own, and frozen before the estimate."""

from __future__ import annotations

__all__ = ["Steps", "pilot_evaluations", "tune"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PairError
from ..ops.hmc import Info, State, kernel
from .tempering import Path, reheated

_CHAINS, _WARM_UP, _TEMPERATURES, _DRAWS = 4, 8, 25, 32
_ACCEPTANCE = 0.75


class Steps(NamedTuple):
    """What a transition needs to know, and what does not depend on where any chain is."""

    path: Path
    betas: Float[Tensor, " levels"]
    num_steps: int
    precisions: tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]
    """One over the variances at both ends of the path, between which they are interpolated."""
    sizes: Float[Tensor, "levels batch"]

    def __call__(self, t: int, state: State) -> State:
        """The transition at the temperature of this number."""
        return self.move(self.betas[t].item(), self.sizes[t], state)[0]

    def move(self, beta: float, size: Float[Tensor, " batch"], state: State) -> tuple[State, Info]:
        """A transition, its step size jittered, so that no trajectory closes on itself every time."""
        jitter = 0.4 + 0.8 * torch.rand_like(state.log_density)
        first, second = self.precisions
        scale = ((1 - beta) * first + beta * second).rsqrt()
        step = kernel(self.path.at(beta))
        return step(reheated(state, beta), step_size=size * jitter, scale=scale, num_steps=self.num_steps)


def tune(path: Path, betas: Float[Tensor, " levels"], *, num_steps: int, most: int) -> Steps:
    """Steps at which about three quarters of the proposals are accepted, per temperature and datapoint.

    Four chains go up the temperatures, at most 25 of them, and down again; after each transition the step size follows
    the acceptance of the chains of a datapoint. The geometric mean of both ways is what is used: one lags behind
    where the other runs ahead.

    Arguments:
        most: How many chains of each datapoint fit into memory.
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


def pilot_evaluations(num_temperatures: int, num_steps: int, most: int) -> int:
    """How many evaluations of each datapoint :func:`tune` makes."""
    if num_temperatures < 2:
        return 0
    return min(_CHAINS, most) * (1 + (_WARM_UP + 2 * len(_grid(num_temperatures - 1))) * num_steps)


def _followed(steps: Steps, t: int, state: State, log_size: Tensor, rate: float) -> tuple[State, Tensor]:
    state, info = steps.move(steps.betas[t].item(), log_size.exp(), state)
    return state, log_size + rate * (info.acceptance.mean(0) - _ACCEPTANCE)


def _grid(last: int) -> list[int]:
    """Numbers from 1 to ``last``, evenly spread."""
    return torch.linspace(1, last, min(last, _TEMPERATURES)).round().long().tolist()


def _interpolated(numbers: list[int], values: Tensor, size: int) -> Tensor:
    """``[numbers, batch]`` -> ``[size, batch]``, linearly in between and constant beyond."""
    known = torch.tensor(numbers)
    wanted = torch.arange(size).clamp(numbers[0], numbers[-1])
    right = torch.searchsorted(known, wanted).clamp(min=min(1, len(numbers) - 1))
    left = (right - 1).clamp(min=0)
    share = (wanted - known[left]) / (known[right] - known[left]).clamp(min=1)
    share = share.to(values)[:, None]
    return (1 - share) * values[left] + share * values[right]


def _precisions(path: Path, most: int) -> tuple[Tensor, Tensor]:
    """At both ends: of the prior and the guide, or of the guide."""
    guide, is_point = _spread(path.density.draw, most)
    if path.start == "guide":
        if bool(is_point.any()):
            raise PairError(
                "the guide draws the same value again and again (a point mass), expected a density: start='prior' "
                "needs none of the guide"
            )
        return guide, guide
    prior, _ = _spread(path.density.draw_prior, most)
    return prior, torch.where(is_point, prior, guide)


def _spread(draw: Callable[[int], Tensor], most: int) -> tuple[Tensor, Tensor]:
    """One over the variance of draws, and where they are all the same."""
    blocks = [draw(min(most, _DRAWS - done)) for done in range(0, _DRAWS, most)]
    u = torch.cat(blocks)
    variance = u.var(0).clamp(min=torch.finfo(u.dtype).tiny ** 0.5)
    return variance.reciprocal(), (u == u[:1]).all(0)
