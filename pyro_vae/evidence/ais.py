r"""Annealed importance sampling."""

from __future__ import annotations

__all__ = ["ais"]

from functools import partial
from typing import Any

from ..errors import require_count, require_one_of
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..samplers.chunks import blockwise, in_pieces
from ..samplers.tempering import Schedule, Start, TemperedPath, anneal, temperatures
from ..samplers.tuning import annealing_evaluations, tune
from .base import LogEvidence
from .from_chains import Summary, collected
from .prior_check import prior_check


def ais(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 16,
    num_temperatures: int = 100,
    num_steps: int = 2,
    schedule: Schedule = "sigmoid",
    start: Start = "guide",
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by annealed importance sampling.

    .. math:: \log \hat p(x) = \log \frac1M \sum_{m=1}^M w_m, \qquad
        \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, u_{t-1})}{q_0(u_{t-1})}, \qquad
        u_0 \sim q_0, \quad u_t \sim \text{HMC}(u_{t-1} \to \pi_{\beta_t}), \quad
        \pi_\beta \propto q_0^{1-\beta}\, p(x, \cdot)^\beta

    :math:`E[w] = p(x)` however badly the chains mix, so the estimate is a lower bound in expectation, and ``side`` is
    ``"lower"``; it grows to :math:`\log p(x)` with T. ``stderr`` and ``ess`` are those of M weights.

    A pilot run on draws of its own finds the step sizes, per temperature and datapoint; then they are frozen, since a
    step size that follows the chains it moves would void the bound. Each transition costs ``num_steps`` evaluations of
    the density and its gradient.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents.
        x: Data ``[n, ...]``, any array type.
        num_particles: The number of independent chains M per datapoint.
        num_temperatures: The number T of weight updates, with T - 1 transitions between; T = 1 is importance sampling.
        num_steps: The number of leapfrog steps in a transition.
        schedule: ``"sigmoid"`` or ``"linear"``, see :func:`~pyro_vae.samplers.tempering.temperatures`.
        start: The density q0: ``"guide"``, or ``"prior"``, which uses only the scale of the guide's draws.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: The approximate memory of a block of chains, in bytes; other blocks give other draws.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for numbers out of range and unknown options.
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair, discrete latents, or a guide that draws from a point
            mass (with ``start="prior"`` it may).
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | Annealed Importance Sampling (Neal, 2001)  https://arxiv.org/abs/physics/9803008
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = ais(problem.model, problem.guide(inflate=2.0), x, num_temperatures=20)
        >>> bool(((evidence.value - problem.log_evidence(x)).abs() < 5 * evidence.stderr).all())
        True
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one chain has no error bar")
    num_steps = require_count("num_steps", num_steps)
    betas = temperatures(require_count("num_temperatures", num_temperatures), schedule)
    require_one_of("start", start, ("guide", "prior"))
    pair = Pair.of(model, guide, x)

    def estimate(path: TemperedPath, span: slice, max_particles: int) -> Summary:
        steps = tune(path, betas, num_steps=num_steps, most=max_particles)
        log_w = in_pieces(lambda n: anneal(path.begin(path.draw(n), 0.0), betas, steps), num_particles, max_particles)
        return Summary.of(log_w, path.num_evaluations)

    summaries = blockwise(
        estimate,
        pair,
        start=start,
        num_chains=num_particles,
        evaluations=partial(annealing_evaluations, num_particles, num_temperatures, num_steps),
        seed=(seed, "ais"),
        max_bytes=max_bytes,
        progress=progress,
    )
    evidence = collected(summaries, side="lower", num_particles=num_particles, chains=num_temperatures > 1)
    return prior_check(evidence, pair, seed=seed, max_bytes=max_bytes)
