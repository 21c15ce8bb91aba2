r"""The estimators of the bounds benchmark, each as a function of a budget of decoder evaluations per image."""

from __future__ import annotations

__all__ = ["ROSTER", "Entry", "Run", "powered"]

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from pyro_vae.data.arrays import as_batch
from pyro_vae.evidence import LogEvidence, ais, elbo, importance, jackknife, psis, smc
from pyro_vae.ops import weights
from pyro_vae.ops.pareto import pareto_k
from pyro_vae.ops.streaming import LogMoments
from pyro_vae.ops.verdicts import judge
from pyro_vae.pairs.handlers import untouched
from pyro_vae.pairs.inputs import suited
from pyro_vae.pairs.particles import particle_chunks
from pyro_vae.pairs.progress import progress_bar
from pyro_vae.pairs.traces import Program
from pyro_vae.samplers.fitted_proposal import REFINEMENT_EVALUATIONS
from pyro_vae.samplers.tuning import pilot_evaluations
from pyro_vae.workflows.comparison import Estimator

_STEPS, _CHAINS, _POPULATIONS = 2, 16, 16
_ENOUGH = 10**6  # chains: for the pilot, memory is no limit here


class Run(NamedTuple):
    """An estimator with its budget set."""

    estimator: Estimator
    num_temperatures: int | None


class Entry(NamedTuple):
    """A row of the roster."""

    name: str
    estimates: Literal["log p(x)", "a bound"]
    """What it converges to; of a bound, verdicts and intervals do not speak of log p(x)."""
    make: Callable[[int], Run | None]
    """From a budget to the estimator, ``None`` where the budget is too small for it."""


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
    r"""The Renyi bound of order alpha from the draws of :func:`~pyro_vae.evidence.importance`; CUBO 2 is alpha = -1.

    .. math:: \frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}

    Error, effective draws and k-hat are those of the weights' powers.
    """
    x = suited(as_batch(x), model, guide)
    blocks: dict[int, list[torch.Tensor]] = {}
    with untouched(model, guide, seed=(seed, "evidence")), progress_bar(len(x) * num_particles, progress) as bar:
        for rows, log_w in particle_chunks(model, guide, x, num_particles=num_particles, max_bytes=max_bytes):
            blocks.setdefault(rows.start, []).append(log_w.double())
            bar.update(log_w.numel())
    log_w = torch.cat([torch.cat(parts) for parts in blocks.values()], 1)
    powers = LogMoments.of((1 - alpha) * log_w)
    value, stderr = weights.renyi(log_w, alpha), powers.stderr / abs(1 - alpha)
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
    def make(budget: int) -> Run | None:
        return Run(partial(estimator, num_particles=budget, **options), None) if budget >= least else None

    return make


def _refined(budget: int) -> Run | None:
    """With what is left of the budget when a Gaussian has been optimised for each image, and at least 100 draws."""
    left = budget - REFINEMENT_EVALUATIONS
    return Run(partial(importance, num_particles=left, proposal="refined"), None) if left >= 100 else None


def _annealed(estimator: Callable[..., LogEvidence], chains: int, **options: Any) -> Callable[[int], Run | None]:
    """With as many temperatures as the budget allows, pilots included, and at least 2."""

    def cost(num: int) -> int:
        return pilot_evaluations(num, _STEPS, _ENOUGH) + chains * (1 + (num - 1) * _STEPS)

    def make(budget: int) -> Run | None:
        num = next((num for num in range(budget // (chains * _STEPS) + 1, 1, -1) if cost(num) <= budget), None)
        if num is None:
            return None
        return Run(partial(estimator, num_temperatures=num, num_steps=_STEPS, **options), num)

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
