"""The latent space as a plane."""

from __future__ import annotations

__all__ = ["latents"]

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from ..data.arrays import as_tensor
from ..errors import ShapeError
from .base import dot_size, new_axes


def latents(loc: Any, labels: Any, ax: Axes | None = None, *, scale: Any = None, title: str = "") -> Axes:
    r"""Plot posterior means ``[n, 2]`` coloured by class, with circles that hold 50% and 95% of the prior N(0, I).

    With a ``scale``, each Gaussian posterior is shown as an ellipse of one standard deviation,

    .. math:: \{\mu_n + L_n u : \|u\| = 1\}, \qquad q(z \mid x_n) = \mathcal N(\mu_n, L_n L_n^\top)

    which holds :math:`1 - e^{-1/2} = 39\%` of it. Some hundred ellipses can be distinguished, thousands cannot.

    Arguments:
        loc: Posterior means ``[n, 2]``.
        labels: Classes ``[n]``.
        scale: Standard deviations ``[n, 2]``, or factors L ``[n, 2, 2]``, as ``q.stddev`` and ``q.scale_tril`` are.

    Errors:
        ShapeError: for other shapes.

    Example:
        >>> ax = latents(torch.zeros(3, 2), torch.arange(3), scale=torch.ones(3, 2))
        >>> ax.get_xlabel()
        '$E_q[z_1]$'
    """
    loc, labels = as_tensor(loc).detach().cpu().numpy(), as_tensor(labels).detach().cpu().numpy()
    if loc.ndim != 2 or loc.shape[1] != 2 or labels.shape != loc.shape[:1]:
        raise ShapeError(f"expected means (n, 2) and labels (n,), got {loc.shape} and {labels.shape}")
    ax = new_axes(ax, width=5.6, height=4.8)
    classes = np.unique(labels)
    colours = np.array([f"C{index % 10}" for index in range(len(classes))])
    colour_of = colours[np.searchsorted(classes, labels)]
    if scale is not None:
        _ellipses(ax, loc, as_tensor(scale, name="scale").detach().cpu().numpy(), colour_of)
    order = np.random.default_rng(0).permutation(len(loc))  # else the last class would hide the others
    ax.scatter(*loc[order].T, s=dot_size(len(loc)), color=colour_of[order], alpha=0.7, linewidths=0)
    for label, colour in zip(classes, colours, strict=True):
        ax.scatter([], [], s=40, color=colour, label=str(label))  # for the legend
    if scale is not None:
        ax.scatter([], [], s=60, facecolor="none", edgecolor="0.3", linewidth=0.7, label="one sigma\nof q(z | x)")
    for share, style in ((0.5, "--"), (0.95, ":")):
        radius = np.sqrt(-2 * np.log(1 - share))
        ax.plot(*(radius * _circle(200)).T, style, color="0.3", linewidth=1, zorder=3, label=f"{share:.0%} of p(z)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("$E_q[z_1]$")
    ax.set_ylabel("$E_q[z_2]$")
    if len(classes) <= 12:
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set_title(title, fontsize=9)
    return ax


def _ellipses(ax: Axes, loc: np.ndarray, scale: np.ndarray, colours: np.ndarray) -> None:
    """Draw the ellipses of one standard deviation."""
    if scale.shape not in (loc.shape, (*loc.shape, 2)):
        raise ShapeError(f"scale: expected shape (n, 2) or (n, 2, 2) with n = {len(loc)}, got {scale.shape}")
    factor = scale if scale.ndim == 3 else scale[:, :, None] * np.eye(2)
    outlines = loc[:, None] + _circle(60) @ factor.swapaxes(1, 2)
    ax.add_collection(LineCollection(list(outlines), colors=colours, alpha=0.45, linewidths=0.6, zorder=0.9))


def _circle(points: int) -> np.ndarray:
    """Return the closed unit circle ``[points + 1, 2]``."""
    angle = np.linspace(0, 2 * np.pi, points + 1)
    return np.stack([np.cos(angle), np.sin(angle)], 1)
