r"""The estimators of the bounds benchmark, each as a function of a budget of decoder evaluations per image."""

from __future__ import annotations

__all__ = ["ROSTER", "Entry", "Run", "powered"]

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from pyro_vae.evidence import LogEvidence, ais, elbo, importance, jackknife, psis, smc
from pyro_vae.ops import weights
from pyro_vae.ops.pareto import pareto_k
from pyro_vae.ops.streaming import LogMoments
from pyro_vae.ops.verdicts import judge
from pyro_vae.pairs.pair import Pair
from pyro_vae.pairs.particles import particle_blocks
from pyro_vae.pairs.progress import progress_bar
from pyro_vae.pairs.running import Program
from pyro_vae.samplers.fitted_proposal import FIT_EVALUATIONS
from pyro_vae.samplers.tuning import annealing_evaluations
from pyro_vae.workflows.comparison import Estimator

_STEPS = 2  # leapfrog steps in a transition
_CHAINS = 16
_POPULATIONS = 16
_LEAST_REFINED = 100  # draws from a Gaussian that was optimised for each image
_ENOUGH = 10**6  # chains that fit into memory; for the pilot, memory is no limit here


class Run(NamedTuple):
    """An estimator at a fixed budget."""

    estimator: Estimator
    num_temperatures: int | None


class Entry(NamedTuple):
    """An estimator of the benchmark, before its budget is fixed."""

    name: str
    estimates: Literal["log p(x)", "a bound"]
    """The limit of the estimates; the intervals and verdicts of a bound say nothing about log p(x)."""
    make: Callable[[int], Run | None]
    """A function that returns the estimator at a budget, ``None`` if the budget is too small for it."""


def powered(
    model: Program,
    guide: Program,
    x: Any,
    *,
    alpha: float,
    num_particles: int,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""The Renyi bound of order alpha from the draws of ``pv.evidence.importance``; CUBO 2 has alpha = -1.

    .. math:: \frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}

    The error, the effective sample size and k-hat are those of the powers :math:`w_k^{1 - \alpha}`.
    """
    pair = Pair.of(model, guide, x)
    blocks: dict[int, list[torch.Tensor]] = {}
    with pair.evaluation(seed, "evidence"), progress_bar(len(pair) * num_particles, progress) as bar:
        for rows, log_w in particle_blocks(pair, num_particles=num_particles, max_bytes=max_bytes):
            blocks.setdefault(rows.start, []).append(log_w.double())
            bar.update(log_w.numel())
    log_w = torch.cat([torch.cat(parts) for parts in blocks.values()], 1)
    powers = LogMoments.of((1 - alpha) * log_w)
    value = weights.renyi(log_w, alpha)
    stderr = powers.stderr / abs(1 - alpha)
    k = pareto_k((1 - alpha) * log_w)
    counts = torch.full(value.shape, num_particles)
    return LogEvidence(
        value=value,
        stderr=stderr,
        side="lower" if alpha >= 0 else "point",
        ess=powers.ess,
        pareto_k=k,
        judgement=judge(value=value, stderr=stderr, ess=powers.ess, pareto_k=k, num_particles=num_particles),
        num_particles=counts,
        num_evaluations=counts,
    )


def _drawn(estimator: Callable[..., LogEvidence], least: int = 2, **options: Any) -> Callable[[int], Run | None]:
    """Spend the budget on draws; the estimator needs at least ``least`` of them."""

    def make(budget: int) -> Run | None:
        if budget < least:
            return None
        return Run(partial(estimator, num_particles=budget, **options), None)

    return make


def _refined(budget: int) -> Run | None:
    """Optimise a Gaussian for each image, and spend the rest of the budget on draws from it."""
    left = budget - FIT_EVALUATIONS
    if left < _LEAST_REFINED:
        return None
    return Run(partial(importance, num_particles=left, proposal="refined"), None)


def _annealed(estimator: Callable[..., LogEvidence], chains: int, **options: Any) -> Callable[[int], Run | None]:
    """Run chains with the largest number of temperatures, at least 2, that the budget allows, pilots included."""

    def make(budget: int) -> Run | None:
        most = budget // (chains * _STEPS) + 1
        for num in range(most, 1, -1):
            if annealing_evaluations(chains, num, _STEPS, _ENOUGH) <= budget:
                return Run(partial(estimator, num_temperatures=num, num_steps=_STEPS, **options), num)
        return None

    return make


ROSTER = (
    Entry("ELBO", "a bound", _drawn(elbo)),
    Entry("Renyi 0.5", "a bound", _drawn(powered, alpha=0.5)),
    Entry("CUBO 2", "a bound", _drawn(powered, alpha=-1.0)),
    Entry("IS", "log p(x)", _drawn(importance)),
    Entry("IS, refined", "log p(x)", _refined),
    Entry("JVI-1", "log p(x)", _drawn(jackknife, order=1)),
    Entry("JVI-2", "log p(x)", _drawn(jackknife, least=3, order=2)),
    Entry("PSIS", "log p(x)", _drawn(psis)),
    Entry("AIS", "log p(x)", _annealed(ais, _CHAINS, num_particles=_CHAINS)),
    Entry(
        "SMC",
        "log p(x)",
        _annealed(smc, _CHAINS * _POPULATIONS, num_particles=_CHAINS, num_populations=_POPULATIONS),
    ),
)
