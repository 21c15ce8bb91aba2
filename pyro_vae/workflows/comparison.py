r"""Comparison of estimators of log p(x): their values, their errors against the truth, and their cost."""

from __future__ import annotations

__all__ = ["Comparison", "Row", "compare"]

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.arrays import as_tensor, require_finite
from ..errors import ConfigError, require_count
from ..evidence import LogEvidence
from ..ops.means import Mean
from ..pairs.pair import data_for
from ..pairs.running import Program
from .tables import number, plain

Estimator = Callable[..., LogEvidence]


class Row(NamedTuple):
    """One estimator: means over datapoints, in nats per datapoint unless named otherwise.

    Of several repeats, all but ``value``, ``monte_carlo_error`` and ``sd`` are means over them.
    """

    estimator: str
    side: str
    num_particles: float
    """Draws per datapoint, on average."""
    value: float
    """The mean over datapoints, and over repeats."""
    monte_carlo_error: float
    """Its standard error from the draws, as the estimator states it."""
    test_set_error: float
    """Its standard error from the choice of datapoints."""
    bias: float
    """Mean of value minus truth; nan if the truth is not known."""
    rmse: float
    r"""Root mean square of value minus truth, over datapoints and repeats."""
    coverage: float
    """The share of 95% intervals, value ± 1.96 standard errors, that hold the truth."""
    sd: float
    """Root mean square over datapoints of the standard deviation over repeats; nan for one repeat."""
    ok: float
    """The share of datapoints whose verdict is ``ok``."""
    pareto_k_above: float
    """The share of datapoints with k-hat above 0.7; nan if the estimator has no k-hat."""
    seconds: float
    """Wall-clock time of one repeat."""
    evaluations: float
    r"""Evaluations of :math:`\log p(x, z)` per datapoint."""


class Comparison(NamedTuple):
    """The result of :func:`compare`; ``str`` is a table, :meth:`to_dict` is ready for JSON."""

    rows: tuple[Row, ...]
    num_datapoints: int
    num_repeats: int
    truth: float
    """The mean of the exact values; nan if they are not known."""
    evidence: dict[str, tuple[LogEvidence, ...]]
    """Every estimate, by estimator and repeat."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the estimates per datapoint; numbers that are not known are ``None``."""
        rows = [{key: plain(value) for key, value in row._asdict().items()} for row in self.rows]
        return {
            "num_datapoints": self.num_datapoints,
            "num_repeats": self.num_repeats,
            "truth": plain(self.truth),
            "rows": rows,
        }

    def to_dataframe(self) -> Any:
        """Return a :class:`pandas.DataFrame` with a row per estimator; needs pandas."""
        import pandas

        return pandas.DataFrame([row._asdict() for row in self.rows]).set_index("estimator")

    def __str__(self) -> str:
        width = max(len("estimator"), *(len(row.estimator) for row in self.rows))
        known = not math.isnan(self.truth)
        columns = [*_COLUMNS[:5], *(_TRUTH_COLUMNS if known else ()), *_COLUMNS[5:]]
        lines = [f"{'estimator':{width}}" + "".join(f"{title:>{size}}" for title, size, _ in columns)]
        lines += [
            f"{row.estimator:{width}}" + "".join(f"{show(row):>{size}}" for _, size, show in columns)
            for row in self.rows
        ]
        if known:
            lines.append(f"{'truth':{width}}" + " " * 15 + f"{self.truth:>11.3f}")
        return "\n".join(lines)


def compare(
    estimators: Mapping[str, Estimator],
    model: Program,
    guide: Program,
    x: Any,
    *,
    exact: Any = None,
    repeats: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    r"""Run estimators of :math:`\log p(x)` on the same pair and data, each several times with seeds of its own.

    Arguments:
        estimators: Name -> function of (model, guide, x, seed=, progress=), such as those of
            :mod:`pyro_vae.evidence` with their options set by :func:`functools.partial`.
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type.
        exact: The true values ``[n]`` in nats, any array type, if known: gives bias, RMSE and coverage.
        repeats: How many times, the r-th with ``seed + r``; several times give the spread ``sd``.
        seed: Of the first repeat.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for no estimators, or exact values of another number than datapoints.
        DataError, PairError: As for :func:`pyro_vae.evidence.importance`.

    Example:
        >>> from functools import partial
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(20, seed=0)
        >>> table = compare(
        ...     {"ELBO": pv.evidence.elbo, "IS": partial(pv.evidence.importance, num_particles=1000)},
        ...     problem.model, problem.guide(inflate=1.3), x, exact=problem.log_evidence(x),
        ... )
        >>> table.rows[0].bias < -0.05 < table.rows[1].bias, table.rows[1].side
        (True, 'lower')
    """
    x = data_for(x, model, guide)
    repeats = require_count("repeats", repeats)
    if not estimators or not isinstance(estimators, Mapping) or not all(map(callable, estimators.values())):
        raise ConfigError("no estimators to compare: give a dictionary of names and functions")
    truth = as_tensor([math.nan] * len(x) if exact is None else exact, name="exact").detach().double().cpu()
    if truth.shape != (len(x),):
        raise ConfigError(f"exact: expected one value for each of {len(x)} datapoints, got {tuple(truth.shape)}")
    if exact is not None:
        require_finite(truth, name="exact")
    rows, evidence = [], {}
    for name, estimator in estimators.items():
        start = time.perf_counter()
        found = [estimator(model, guide, x, seed=seed + r, progress=progress) for r in range(repeats)]
        seconds = (time.perf_counter() - start) / repeats
        rows.append(_row(name, found, truth, seconds))
        evidence[name] = tuple(found)
    return Comparison(tuple(rows), len(x), repeats, truth.mean().item(), evidence)


def _row(name: str, found: list[LogEvidence], truth: Float[Tensor, " batch"], seconds: float) -> Row:
    value, stderr = (torch.stack([getattr(one, part).cpu() for one in found]) for part in ("value", "stderr"))
    gap = value - truth
    known = not gap.isnan().all()
    k = torch.stack([one.pareto_k for one in found])
    several = len(found) > 1
    mean = Mean.of(value.mean(0), (stderr.square().mean(0) / len(found)).sqrt())
    return Row(
        estimator=name,
        side=found[0].side,
        num_particles=_mean([one.num_particles.double().mean().item() for one in found]),
        value=mean.value.item(),
        monte_carlo_error=mean.monte_carlo_error.item(),
        test_set_error=mean.test_set_error.item(),
        bias=gap.mean().item(),
        rmse=gap.square().mean().sqrt().item(),
        coverage=(gap.abs() <= 1.96 * stderr).double().mean().item() if known else math.nan,
        sd=value.var(0).mean().sqrt().item() if several else math.nan,
        ok=_mean([one.share("ok") for one in found]),
        pareto_k_above=math.nan if k.isnan().all() else (k > 0.7).double().mean().item(),
        seconds=seconds,
        evaluations=_mean([one.num_evaluations.double().mean().item() for one in found]),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f}%"


_COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("side", 7, lambda row: row.side),
    ("draws", 8, lambda row: f"{row.num_particles:.0f}"),
    ("nats", 11, lambda row: number(row.value, 3)),
    ("Monte-Carlo", 13, lambda row: "± " + number(row.monte_carlo_error, 3)),
    ("test set", 10, lambda row: "± " + number(row.test_set_error, 2)),
    ("ok", 6, lambda row: _percent(row.ok)),
    ("k > .7", 8, lambda row: _percent(row.pareto_k_above)),
    ("seconds", 9, lambda row: number(row.seconds, 1)),
    ("evaluations", 13, lambda row: f"{row.evaluations:.0f}"),
)
_TRUTH_COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("bias", 9, lambda row: number(row.bias, 3, "+")),
    ("RMSE", 8, lambda row: number(row.rmse, 3)),
    ("in 95%", 8, lambda row: _percent(row.coverage)),
)
