"""Numbers with their error bars: log p(x) per datapoint, and what the guide loses of it."""

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

_WITHIN = 1.96  # standard errors: 95% intervals
_VERDICTS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}
_SIDES = {"lower": "lower bound", "upper": "upper bound", "point": "estimate"}


def log_evidence(evidence: LogEvidence, exact: Any = None, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Estimates of log p(x) in increasing order with 95% intervals, coloured by verdict.

    With the ``exact`` values ``[n]``, which then give the order, it is the differences from them that are shown: on a
    scale of tens of nats no error could be seen. Estimates that are not finite are counted in the legend alone.
    """
    value, stderr = (part.cpu().numpy() for part in (evidence.value, evidence.stderr))
    truth = np.zeros_like(value) if exact is None else as_tensor(exact).detach().double().cpu().numpy()
    if truth.shape != value.shape:
        raise ShapeError(f"exact: expected one value for each of {len(value)} datapoints, got shape {truth.shape}")
    ax = new_axes(ax, width=5.6, height=3.6)
    place = np.empty(len(value), dtype=int)
    place[np.argsort(value if exact is None else truth, kind="stable")] = np.arange(len(value))
    for verdict, colour in _VERDICTS.items():  # the worst on top
        chosen = evidence.verdict == verdict
        shown = chosen & np.isfinite(value) & np.isfinite(stderr)
        label = f"{verdict} ({chosen.sum()})"
        style = {
            "fmt": "o",
            "markersize": dot_size(len(value)) ** 0.5,
            "elinewidth": 1,
            "color": colour,
            "label": label,
        }
        ax.errorbar(place[shown], (value - truth)[shown], _WITHIN * stderr[shown], **style)
    if exact is not None:
        ax.axhline(0, color="0.3", linewidth=1, zorder=1)
    ax.set_xlabel(f"datapoints by {'their estimates' if exact is None else 'log p(x)'}, in increasing order")
    ax.set_ylabel(f"{_SIDES[evidence.side]} {'of' if exact is None else 'minus'} log p(x), nats")
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, fontsize=9)
    return ax


def inference_gaps(gaps: Mapping[str, InferenceGaps], ax: Axes | None = None, *, title: str = "") -> Axes:
    """How far log p(x) is above the ELBO, a bar per name: first amortisation, then approximation, mean nats.

    Each part has its 95% intervals where it ends, and below them are, at the line that is log p(x), those of the whole
    gap: thick ones from the draws, thin ones from the choice of datapoints.
    """
    if not gaps:
        raise ShapeError("expected the gaps of at least one family, found none")
    ax = new_axes(ax, width=6.4, height=0.5 * len(gaps) + 0.8)
    for row, found in enumerate(gaps.values()):
        first, second, whole = found.mean_amortisation, found.mean_approximation, found.mean_total
        here, end = first.value.item(), whole.value.item()
        names = ("", "", "") if row else ("amortisation", "approximation", "log p(x)")
        ax.barh(row, here, 0.8, color="C0", label=names[0], zorder=2)  # on top: it may be negative
        ax.barh(row, end - here, 0.8, left=here, color="#a6cbe8", label=names[1])
        ax.errorbar(end, row, yerr=0.4, fmt="none", ecolor="0.1", elinewidth=2.5, label=names[2], zorder=3)
        for mean, at, offset in ((first, here, -0.22), (second, end, 0.0), (whole, end, 0.22)):
            _intervals(ax, mean, at, row + offset, named=not row and mean is whole)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(range(len(gaps)), list(gaps))
    ax.invert_yaxis()
    ax.set_xlabel("nats per datapoint above the ELBO")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title(title, fontsize=9)
    return ax


def _intervals(ax: Axes, mean: Mean, at: float, height: float, *, named: bool) -> None:
    """Both 95% intervals of a mean that ends here."""
    errors = {"choice of datapoints": (mean.test_set_error, 1), "Monte-Carlo": (mean.monte_carlo_error, 3)}
    for name, (error, width) in errors.items():
        within = _WITHIN * error.nan_to_num().item()  # one datapoint alone has no error of its choice
        label = f"95%, {name}" if named else ""
        ax.errorbar(at, height, xerr=within, fmt="none", ecolor="0.1", elinewidth=width, zorder=4, label=label)
