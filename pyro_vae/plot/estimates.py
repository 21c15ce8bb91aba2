"""Numbers with error bars: log p(x) per datapoint, and the gaps between it and the ELBO."""

from __future__ import annotations

__all__ = ["inference_gaps", "log_evidence"]

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..data.arrays import as_tensor
from ..diagnostics import InferenceGaps, Mean
from ..errors import ShapeError
from ..evidence import LogEvidence
from .base import dot_size, new_axes

_QUANTILE = 1.96  # standard errors in half a 95% interval
_VERDICTS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}
_SIDES = {"lower": "lower bound", "upper": "upper bound", "point": "estimate"}


def log_evidence(evidence: LogEvidence, exact: Any = None, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Plot estimates of log p(x) in increasing order, with 95% intervals and coloured by verdict.

    With ``exact`` values ``[n]``, which then give the order, the differences from them are shown, since errors are
    invisible on a scale of tens of nats. Estimates that are not finite are only counted in the legend.
    """
    value, stderr = (part.cpu().numpy() for part in (evidence.value, evidence.stderr))
    truth = np.zeros_like(value) if exact is None else as_tensor(exact).detach().double().cpu().numpy()
    if truth.shape != value.shape:
        raise ShapeError(f"exact: expected one value for each of {len(value)} datapoints, got shape {truth.shape}")
    ax = new_axes(ax, width=5.6, height=3.6)
    rank = np.empty(len(value), dtype=int)
    rank[np.argsort(value if exact is None else truth, kind="stable")] = np.arange(len(value))
    size = dot_size(len(value)) ** 0.5
    for verdict, colour in _VERDICTS.items():  # the worst on top
        chosen = evidence.verdict == verdict
        shown = chosen & np.isfinite(value) & np.isfinite(stderr)
        style = {"fmt": "o", "markersize": size, "elinewidth": 1, "color": colour}
        errors = _QUANTILE * stderr[shown]
        ax.errorbar(rank[shown], (value - truth)[shown], errors, label=f"{verdict} ({chosen.sum()})", **style)
    if exact is not None:
        ax.axhline(0, color="0.3", linewidth=1, zorder=1)
    ax.set_xlabel(f"datapoints by {'their estimates' if exact is None else 'log p(x)'}, in increasing order")
    ax.set_ylabel(f"{_SIDES[evidence.side]} {'of' if exact is None else 'minus'} log p(x), nats")
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, fontsize=9)
    return ax


def inference_gaps(gaps: Mapping[str, InferenceGaps], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Plot a bar per name for the mean gap between the ELBO and log p(x): first amortisation, then approximation.

    The end of each part has its 95% intervals. Below them, at the line of log p(x), are those of the whole gap. Thick
    intervals are from the draws, thin ones from the choice of datapoints.
    """
    if not gaps:
        raise ShapeError("expected the gaps of at least one family, found none")
    ax = new_axes(ax, width=6.4, height=0.5 * len(gaps) + 0.8)
    for row, gap in enumerate(gaps.values()):
        first, second, whole = gap.mean_amortisation, gap.mean_approximation, gap.mean_total
        middle, end = first.value.item(), whole.value.item()
        names = ("", "", "") if row else ("amortisation", "approximation", "log p(x)")
        ax.barh(row, middle, 0.8, color="C0", label=names[0], zorder=2)  # on top, since it may be negative
        ax.barh(row, end - middle, 0.8, left=middle, color="#a6cbe8", label=names[1])
        ax.errorbar(end, row, yerr=0.4, fmt="none", ecolor="0.1", elinewidth=2.5, label=names[2], zorder=3)
        for mean, at, offset in ((first, middle, -0.22), (second, end, 0.0), (whole, end, 0.22)):
            _intervals(ax, mean, at, row + offset, named=not row and mean is whole)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(range(len(gaps)), list(gaps))
    ax.invert_yaxis()
    ax.set_xlabel("nats per datapoint above the ELBO")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title(title, fontsize=9)
    return ax


def _intervals(ax: Axes, mean: Mean, at: float, height: float, *, named: bool) -> None:
    """Draw both 95% intervals of a mean around a point."""
    errors = {"choice of datapoints": (mean.test_set_error, 1), "Monte-Carlo": (mean.monte_carlo_error, 3)}
    for name, (error, width) in errors.items():
        half = _QUANTILE * error.nan_to_num().item()  # for a single datapoint its choice has no error
        label = f"95%, {name}" if named else ""
        ax.errorbar(at, height, xerr=half, fmt="none", ecolor="0.1", elinewidth=width, zorder=4, label=label)
