r"""Bounds on log p(x) from both sides, on data that were simulated from the model."""

from __future__ import annotations

__all__ = ["Sandwich", "sandwich"]

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..data.arrays import as_tensor, require_finite
from ..errors import ConfigError, PairError, ShapeError, require_count, require_one_of
from ..ops.streaming import LogMoments
from ..pairs.pair import Pair, suited
from ..pairs.running import Program
from ..samplers.chunks import blockwise, in_pieces
from ..samplers.tempering import Schedule, Start, TemperedPath, anneal, temperatures
from ..samplers.tuning import annealing_evaluations, tune
from .base import LogEvidence
from .from_chains import Summary, collected

Method = Literal["ais", "iwae"]
_WHY = ", since fewer have no error bar"


class Sandwich(NamedTuple):
    """Two estimates of log p(x), which is between their expectations."""

    lower: LogEvidence
    upper: LogEvidence


def sandwich(
    model: Program,
    guide: Program,
    x: Any,
    z_true: dict[str, Any],
    *,
    method: Method = "ais",
    num_particles: int | None = None,
    num_temperatures: int = 100,
    num_steps: int = 2,
    schedule: Schedule = "sigmoid",
    start: Start = "guide",
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> Sandwich:
    r"""Estimate :math:`\log p(x)` from below and from above, where an exact draw from the posterior is known.

    Where x and z are drawn together from the model, z is a draw from :math:`p(z \mid x)`. See
    :func:`pyro_vae.simulation.simulate`.

    ``"ais"``, bidirectional Monte Carlo: chains from q0 to the posterior as in :func:`ais`, and chains from ``z_true``
    back to q0 by the same transitions,

    .. math:: E\Big[\log \tfrac1M \sum_m w_m\Big] \le \log p(x) \le
        E\Big[-\log \tfrac1M \sum_m 1 / w_m^{\text{reverse}}\Big]

    ``"iwae"``: K draws from the guide, and the same number with ``z_true`` in place of one of them,

    .. math:: E\Big[\log \tfrac1K \sum_{k=1}^K w_k\Big] \le \log p(x) \le
        E\Big[\log \tfrac1K \Big(w(z_{\text{true}}) + \sum_{k=1}^{K-1} w_k\Big)\Big]

    The expectation of an upper bound is over ``z_true``, too, of which there is one for each datapoint. Its ``stderr``
    is the standard deviation over other chains or draws from the same ``z_true``, so a single datapoint's value may lie
    below log p(x) by more than that: the mean over datapoints is the bound.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents.
        x: Simulated data ``[n, ...]``.
        z_true: The latent values that generated them: site name -> ``[n, *event]``.
        method: ``"ais"`` or ``"iwae"``, which is cheap, and wide where the guide is far from the posterior.
        num_particles: The number of chains in each direction (by default 16), or of draws (by default 1000).
        num_temperatures, num_steps, schedule, start: As for :func:`ais`; ``"iwae"`` ignores them.
        seed, max_bytes, progress: As for :func:`ais`.

    Errors:
        ConfigError, DataError, PairError, StaleParamStoreError: As for :func:`ais`; and for ``z_true`` without a value
            of each site for each datapoint.

    References:
        | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al., 2015)
        | https://arxiv.org/abs/1511.02543

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x, z = pv.simulation.simulate(problem.model, torch.zeros(100, 2))
        >>> lower, upper = sandwich(problem.model, problem.guide(), x, z, start="prior", num_temperatures=5)
        >>> lower.mean < problem.log_evidence(x).mean().item() < upper.mean
        True
    """
    require_one_of("method", method, ("ais", "iwae"))
    num_particles = (16 if method == "ais" else 1000) if num_particles is None else num_particles
    num_particles = require_count("num_particles", num_particles, least=2 if method == "ais" else 3, why=_WHY)
    num_steps = require_count("num_steps", num_steps)
    betas = temperatures(require_count("num_temperatures", num_temperatures), schedule)
    require_one_of("start", start, ("guide", "prior"))
    if not isinstance(z_true, Mapping):
        raise ConfigError(f"z_true: expected a dictionary of site names and values, found {type(z_true).__name__}")
    pair = Pair.of(model, guide, x)
    z = {name: suited(_values(name, value, len(pair)), model, guide) for name, value in z_true.items()}
    if method == "ais":
        cost = partial(annealing_evaluations, 2 * num_particles, num_temperatures, num_steps)
        estimate = partial(_by_chains, betas=betas, num_steps=num_steps, num_particles=num_particles)
    else:
        cost, estimate = lambda max_particles: num_particles + 1, partial(_by_draws, num_particles=num_particles)
    summaries = blockwise(
        lambda path, span, num: estimate(path, {name: value[span] for name, value in z.items()}, num),
        pair,
        start=start if method == "ais" else "guide",
        num_chains=num_particles,
        evaluations=cost,
        seed=(seed, "sandwich", method),
        max_bytes=max_bytes,
        progress=progress,
    )
    lower, upper = map(list, zip(*summaries, strict=True))
    return Sandwich(
        collected(lower, side="lower", num_particles=num_particles, simulated=True),
        collected(upper, side="upper", num_particles=num_particles, simulated=True),
    )


def _by_chains(
    path: TemperedPath, z: dict[str, Tensor], max_particles: int, *, betas: Tensor, num_steps: int, num_particles: int
) -> tuple[Summary, Summary]:
    """Return the estimates by chains from q0 to the posterior, and from its draw back by the same transitions."""
    steps = tune(path, betas, num_steps=num_steps, most=max_particles)
    true = _coordinates(path, z)

    def back(num: int) -> Tensor:
        return anneal(path.begin(true.expand(num, *true.shape[1:]), 1.0), betas, steps, reverse=True)

    log_w = in_pieces(lambda num: anneal(path.begin(path.draw(num), 0.0), betas, steps), num_particles, max_particles)
    num_evaluations = path.num_evaluations  # the reverse chains take as many
    reverse = in_pieces(back, num_particles, max_particles)
    return Summary.of(log_w, num_evaluations), Summary.of(reverse, num_evaluations, inverse=True)


def _by_draws(
    path: TemperedPath, z: dict[str, Tensor], max_particles: int, *, num_particles: int
) -> tuple[Summary, Summary]:
    """Return the importance-weighted bound, and its upper twin with the known draw in place of one particle."""
    path.density.require_guide()
    true = path.log_weights(_coordinates(path, z))
    log_w = in_pieces(lambda num: path.log_weights(path.draw(num)), num_particles, max_particles)
    return Summary.of(log_w, num_particles), _completed(log_w[1:], true)


def _completed(log_w: Tensor, true: Tensor) -> Summary:
    """Return the estimate from the draws and the known draw, which adds no error."""
    drawn, both = LogMoments.of(log_w), Summary.of(torch.cat([log_w, true]), len(log_w) + 1)
    return both._replace(stderr=drawn.stderr * (drawn.log_sum - torch.logaddexp(drawn.log_sum, true[0])).exp())


def _values(name: str, value: Any, num: int) -> Tensor:
    value = as_tensor(value, name=f"z_true[{name!r}]").detach()
    if not value.ndim or len(value) != num:
        raise ShapeError(
            f"z_true[{name!r}]: found shape {tuple(value.shape)}, expected ({num}, ...), one per datapoint"
        )
    require_finite(value, name=f"z_true[{name!r}]")
    return value


def _coordinates(path: TemperedPath, z: dict[str, Tensor]) -> Tensor:
    """Return ``z_true`` in unconstrained coordinates, ``[1, batch, dim]``."""
    expected = {name: tuple(value.shape[2:]) for name, value in path.density.values(path.density.draw(1)).items()}
    given = {name: tuple(value.shape[1:]) for name, value in z.items()}
    if expected != given:
        raise PairError(f"z_true has sites and shapes {given}, expected those of the pair, {expected}")
    u = path.density.coordinates({name: value[None] for name, value in z.items()})
    require_finite(u, name="z_true in unconstrained coordinates")
    return u
