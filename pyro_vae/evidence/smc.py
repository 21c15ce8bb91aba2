r"""Annealed sequential Monte Carlo: chains that are resampled on the way."""

from __future__ import annotations

__all__ = ["smc"]

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_count, require_one_of
from ..ops.hmc import State
from ..ops.resampling import systematic
from ..ops.weights import ess, log_mean_exp
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..samplers.chunks import blockwise, in_pieces
from ..samplers.tempering import Schedule, Start, TemperedPath, anneal, temperatures
from ..samplers.tuning import annealing_evaluations, tune
from .base import LogEvidence
from .from_chains import Summary, collected
from .prior_check import prior_check


def smc(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 16,
    num_populations: int = 16,
    num_temperatures: int = 100,
    num_steps: int = 2,
    schedule: Schedule = "sigmoid",
    start: Start = "guide",
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by sequential Monte Carlo along the path of :func:`ais`.

    .. math:: \log \hat p(x) = \log \frac1P \sum_{p=1}^P \hat Z_p, \qquad
        \hat Z = \prod_{r} \frac1N \sum_{n=1}^N w_n^{(r)}

    In each of P independent populations, N chains are resampled (systematically) whenever their effective sample size
    falls below N / 2, so that none is wasted where the posterior has no mass; :math:`w^{(r)}` are the weights gathered
    from one resampling to the next. Each :math:`\hat Z_p` is unbiased for p(x), so ``side`` is ``"lower"``; ``stderr``
    and ``ess`` are those of P weights. Everything else is as for :func:`ais`.

    Arguments:
        model, guide, x: As for :func:`ais`.
        num_particles: The number of chains N in a population.
        num_populations: The number of populations P; ``num_particles`` of the result is P N.
        num_temperatures, num_steps, schedule, start, seed, max_bytes, progress: As for :func:`ais`. A population is
            never split, so a block takes more than ``max_bytes`` if one datapoint's population does.

    Errors:
        ConfigError, DataError, PairError, StaleParamStoreError: As for :func:`ais`.

    References:
        | Sequential Monte Carlo Samplers (Del Moral, Doucet & Jasra, 2006)
        | https://doi.org/10.1111/j.1467-9868.2006.00553.x

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = smc(problem.model, problem.guide(), x, start="prior", num_temperatures=20)
        >>> bool(((evidence.value - problem.log_evidence(x)).abs() < 5 * evidence.stderr).all())
        True
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one is not resampled")
    why = ", since one population has no error bar"
    num_populations = require_count("num_populations", num_populations, least=2, why=why)
    num_steps = require_count("num_steps", num_steps)
    betas = temperatures(require_count("num_temperatures", num_temperatures), schedule)
    require_one_of("start", start, ("guide", "prior"))
    pair = Pair.of(model, guide, x)

    def estimate(path: TemperedPath, span: slice, max_particles: int) -> Summary:
        steps = tune(path, betas, num_steps=num_steps, most=max_particles)

        def populations(num: int) -> Tensor:
            state = path.begin(path.draw(num_particles * num), 0.0)
            log_w = anneal(state, betas, steps, regroup=lambda log_w, state: resampled(log_w, state, num_particles))
            return log_mean_exp(log_w.unflatten(0, (num_particles, num)))

        together = max(1, max_particles // num_particles)
        return Summary.of(in_pieces(populations, num_populations, together), path.num_evaluations)

    num_chains = num_populations * num_particles
    summaries = blockwise(
        estimate,
        pair,
        start=start,
        num_chains=num_chains,
        evaluations=partial(annealing_evaluations, num_chains, num_temperatures, num_steps),
        seed=(seed, "smc"),
        max_bytes=max_bytes,
        progress=progress,
    )
    evidence = collected(summaries, side="lower", num_particles=num_chains)
    return prior_check(evidence, pair, seed=seed, max_bytes=max_bytes)


def resampled(
    log_w: Float[Tensor, "chains batch"], state: State, num_particles: int
) -> tuple[Float[Tensor, "chains batch"], State]:
    """Resample the populations, ``[particles, populations]`` in ``chains``, that lost half of their effective size.

    Afterwards all weights of such a population are equal to their mean, from which the estimate goes on.
    """
    groups = log_w.unflatten(0, (num_particles, -1))
    num_populations, rows = groups.shape[1:]
    poor = ess(groups) < num_particles / 2
    if not poor.any():
        return log_w, state
    chosen = systematic(groups.flatten(1)).unflatten(1, (num_populations, rows))
    unchanged = torch.arange(num_particles, device=log_w.device)[:, None, None]
    population = torch.arange(num_populations, device=log_w.device)[:, None]
    index = (torch.where(poor, chosen, unchanged) * num_populations + population).flatten(0, 1)
    groups = torch.where(poor, log_mean_exp(groups), groups)
    row = torch.arange(rows, device=log_w.device)
    position, log_density, gradient, carried = state
    moved = (part[index, row] for part in (position, log_density, gradient))
    return groups.flatten(0, 1), State(*moved, carried=tuple(part[index, row] for part in carried))
