"""The latent space as a plane."""

from __future__ import annotations

__all__ = ["latents"]

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..arrays import as_tensor
from ..errors import ShapeError
from .base import dot_size, new_axes


def latents(loc: Any, labels: Any, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Posterior means ``[n, 2]`` coloured by class, over circles that hold 50% and 95% of the prior N(0, I)."""
    loc, labels = as_tensor(loc).detach().cpu().numpy(), as_tensor(labels).detach().cpu().numpy()
    if loc.ndim != 2 or loc.shape[1] != 2 or labels.shape != loc.shape[:1]:
        raise ShapeError(f"expected means (n, 2) and labels (n,), got {loc.shape} and {labels.shape}")
    ax = new_axes(ax, width=5.6, height=4.8)
    classes = np.unique(labels)
    colours = np.array([f"C{number % 10}" for number in range(len(classes))])
    order = np.random.default_rng(0).permutation(len(loc))  # or the last class would hide the others
    ax.scatter(
        *loc[order].T,
        s=dot_size(len(loc)),
        color=colours[np.searchsorted(classes, labels[order])],
        alpha=0.7,
        linewidths=0,
    )
    for label, colour in zip(classes, colours, strict=True):
        ax.scatter([], [], s=40, color=colour, label=str(label))  # for the legend
    angle = np.linspace(0, 2 * np.pi, 200)
    for share, style in ((0.5, "--"), (0.95, ":")):
        radius = np.sqrt(-2 * np.log(1 - share))
        circle = radius * np.cos(angle), radius * np.sin(angle)
        ax.plot(*circle, style, color="0.3", linewidth=1, zorder=3, label=f"{share:.0%} of p(z)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("$E_q[z_1]$")
    ax.set_ylabel("$E_q[z_2]$")
    if len(classes) <= 12:
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set_title(title, fontsize=9)
    return ax
