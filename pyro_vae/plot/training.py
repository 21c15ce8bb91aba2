"""The training curve."""

from __future__ import annotations

__all__ = ["history"]

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .base import new_axes


def history(epochs: Sequence[Any], ax: Axes | None = None, *, title: str = "", label: str = "bound") -> Axes:
    """Plot the bound by epoch, on training and validation data, and the ELBO as well if it differs."""
    ax = new_axes(ax, width=5.6, height=3.4)
    numbers = [row.epoch for row in epochs]
    marker = "o" if len(epochs) == 1 else None  # a line needs two points
    bounds = np.array([[row.train_bound, row.validation_bound] for row in epochs]).T
    elbos = np.array([[row.train_elbo, row.validation_elbo] for row in epochs]).T
    curves = dict(zip(("training", "validation"), bounds, strict=True))
    if not np.allclose(bounds, elbos, atol=1e-3, equal_nan=True):
        curves |= dict(zip(("ELBO, training", "ELBO, validation"), elbos, strict=True))
    shown = {name: values for name, values in curves.items() if not np.isnan(values).all()}
    for name, values in shown.items():
        colour = "C0" if "training" in name else "C1"
        ax.plot(numbers, values, ":" if "ELBO" in name else "-", color=colour, label=name, marker=marker)
    # The first epochs are far below the others and would flatten the curve.
    start = len(epochs) // 20
    low = min(np.nanmin(values[start:], initial=np.inf) for values in shown.values())
    high = max(np.nanmax(values) for values in shown.values())
    bottom = low - 0.05 * ((high - low) or 1.0)
    ax.set_ylim(bottom=bottom)
    ax.set_xlabel(
        "epoch (the first ones are below the axis)" if min(map(np.nanmin, shown.values())) < bottom else "epoch"
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(f"{label}, nats per datapoint")
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, fontsize=9)
    return ax
