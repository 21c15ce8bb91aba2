r"""The choice of an estimator, and every estimator by its short name."""

from __future__ import annotations

__all__ = ["ESTIMATORS", "Recommendation", "estimate", "recommend", "require_estimator"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError, PairError, require_count, require_number, require_one_of
from ..ops.choices import Proposal
from ..pairs.density import Density
from ..pairs.pair import Pair
from ..pairs.running import Program
from .ais import ais
from .base import LogEvidence
from .budget import require_proposal
from .importance import importance
from .psis import psis
from .quadrature import quadrature
from .smc import smc

ESTIMATORS: dict[str, Callable[..., LogEvidence]] = {
    "is": importance,
    "psis": psis,
    "ais": ais,
    "smc": smc,
    "grid": quadrature,
}
_PILOT_ROWS, _PILOT_DRAWS = 64, 2000
_GRID_DIMENSIONS = 2
_ENOUGH = 0.9  # share of the pilot's datapoints
_TARGET = 0.05  # nats


class Recommendation(NamedTuple):
    """A recommended estimator by its short name, its proposal, and the reason."""

    estimator: str
    proposal: str
    """The proposal of importance sampling; the others have none."""
    reason: str


def require_estimator(name: str) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` unless the name is ``"auto"`` or one of :data:`ESTIMATORS`."""
    require_one_of("estimator", name, ("auto", *ESTIMATORS))


def recommend(model: Program, guide: Program, x: Any, *, seed: int = 0) -> Recommendation:
    r"""Recommend an estimator of :math:`\log p(x)` for this pair and these data.

    For one or two continuous latent dimensions it is the grid, which is exact. Otherwise 2000 draws for each of 64
    datapoints decide, from the guide and, if that is not enough, from the ``"refined"`` proposal. The recommendation is
    importance sampling from the first of the two with which nine datapoints in ten are ``ok``; else its Pareto-smoothed
    form from the second, if nine in ten are not ``unreliable``; else annealed importance sampling, which needs no
    close Gaussian. Discrete latents, having no gradients, leave importance sampling from the guide, smoothed or not.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type.
        seed: The seed of the pilot's draws.

    Errors:
        DataError, PairError: As for :func:`importance`.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> chosen = recommend(problem.model, problem.guide(), problem.sample(5, seed=0))
        >>> chosen.estimator, chosen.reason
        ('grid', '1 latent dimension: a grid gives log p(x) to rounding')
    """
    pair = Pair.of(model, guide, x)
    with pair.evaluation(seed, "recommend"):
        few = pair.first(_PILOT_ROWS)
        try:
            dim, why = Density(few).dim, ""
        except PairError as error:  # discrete latents, for instance
            dim, why = None, str(error)
        own = int(torch.randint(2**62, ()))  # a seed of its own: the pilot must not judge by the estimate's draws
    if dim is not None and dim <= _GRID_DIMENSIONS:
        plural = "s" if dim > 1 else ""
        return Recommendation("grid", "guide", f"{dim} latent dimension{plural}: a grid gives log p(x) to rounding")
    pilot = importance(model, guide, few, num_particles=_PILOT_DRAWS, seed=own)
    text = f"of {len(few)} datapoints with {_PILOT_DRAWS} draws each, {pilot.share('ok'):.0%} are ok from the guide"
    if pilot.share("ok") >= _ENOUGH:
        return Recommendation("is", "guide", text)
    if dim is None:
        return Recommendation("psis", "guide", f"{text}, and nothing else can be used ({why})")
    pilot = importance(model, guide, few, num_particles=_PILOT_DRAWS, proposal="refined", seed=own)
    ok, unreliable = pilot.share("ok"), pilot.share("unreliable")
    text = f"{text}, {ok:.0%} from a refined proposal"
    if ok >= _ENOUGH:
        return Recommendation("is", "refined", text)
    text = f"{text}, where {unreliable:.0%} are unreliable"
    return (
        Recommendation("psis", "refined", text) if 1 - unreliable >= _ENOUGH else Recommendation("ais", "guide", text)
    )


def estimate(
    model: Program,
    guide: Program,
    x: Any,
    *,
    estimator: str | Recommendation = "auto",
    num_particles: int | None = None,
    target_stderr: float | None = None,
    proposal: Proposal | None = None,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` by the named estimator, or by the one that :func:`recommend` chooses.

    Arguments:
        model, guide, x, seed, max_bytes, progress: As for :func:`importance`.
        estimator: ``"auto"``, or ``"is"`` (:func:`importance`), ``"psis"``, ``"ais"``, ``"smc"``, ``"grid"``
            (:func:`quadrature`); or a recommendation. A recommended estimator ignores those options that it lacks.
        num_particles: The number of draws or chains per datapoint, by default the estimator's own; a grid has none.
        target_stderr: The standard error to reach in nats per datapoint, for ``"is"`` and ``"psis"``; a grid is
            exact to rounding anyway, and chains have no such rule. For a recommendation the default is 0.05, unless
            ``num_particles`` is given.
        proposal: The proposal of ``"is"`` and ``"psis"``, see :func:`importance`.

    Errors:
        ConfigError: for an unknown name, or an option that the estimator does not have.
        DataError, PairError: As for :func:`importance`.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> estimate(problem.model, problem.guide(), problem.sample(5, seed=0), estimator="is").side
        'lower'
    """
    given = _given(num_particles, target_stderr, proposal)
    require_estimator(estimator.estimator if isinstance(estimator, Recommendation) else estimator)
    pair = Pair.of(model, guide, x)
    if estimator == "auto":
        estimator = recommend(model, guide, pair, seed=seed)
    if isinstance(estimator, Recommendation):
        if num_particles is None:
            given.setdefault("target_stderr", _TARGET)
        given.setdefault("proposal", estimator.proposal)
        estimator = estimator.estimator
        given = {name: given[name] for name in given.keys() & _OPTIONS[estimator]}
    for name in given.keys() - _OPTIONS[estimator]:
        raise ConfigError(f"{name}={given[name]!r}: the estimator {estimator!r} has no such option; leave it out")
    return ESTIMATORS[estimator](model, guide, pair, seed=seed, max_bytes=max_bytes, progress=progress, **given)


def _given(num_particles: int | None, target_stderr: float | None, proposal: str | None) -> dict[str, Any]:
    """Return the options that are given, checked whether or not the estimator has them."""
    if num_particles is not None:
        require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    if target_stderr is not None:
        require_number("target_stderr", target_stderr, least=1e-6)
    if proposal is not None:
        require_proposal(proposal)
    options = {"num_particles": num_particles, "target_stderr": target_stderr, "proposal": proposal}
    return {name: value for name, value in options.items() if value is not None}


_OPTIONS = {
    "is": {"num_particles", "target_stderr", "proposal"},
    "psis": {"num_particles", "target_stderr", "proposal"},
    "ais": {"num_particles"},
    "smc": {"num_particles"},
    "grid": set(),
}
