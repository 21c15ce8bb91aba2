"""Shared parts of the pictures: new Axes, arrays as images, and files."""

from __future__ import annotations

__all__ = ["as_pictures", "dot_size", "new_axes", "save"]

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.arrays import as_tensor
from ..data.files import replace_file
from ..errors import ShapeError


def new_axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the given Axes, or new ones in a figure of their own, without pyplot's global state."""
    return Figure(figsize=(width, height + 0.3), layout="constrained").subplots() if ax is None else ax


def dot_size(num: int) -> float:
    """Return the area of a marker, smaller for more points, so that 300 and 10,000 points fill the plane alike."""
    return float(np.clip(5000 / num, 2, 14))


def as_pictures(x: Any) -> np.ndarray:
    """Return images as ``[n, height, width]`` or, in colour, ``[n, height, width, 3]``.

    Flat images become square if possible, a single channel is dropped, and colours may come before or after the pixels.
    """
    x = as_tensor(x).detach().cpu().numpy()
    if x.ndim == 4 and x.shape[1] == 3:
        x = np.moveaxis(x, 1, -1)
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim == 2 and (side := round(x.shape[1] ** 0.5)) ** 2 == x.shape[1]:
        x = x.reshape(-1, side, side)
    if x.ndim != 3 and not (x.ndim == 4 and x.shape[3] == 3):
        raise ShapeError(
            f"expected images of shape (n, height, width) or (n, 3, height, width), got {x.shape}: reshape them"
        )
    return x


def save(ax: Axes, path: str | Path, *, dpi: int = 150) -> None:
    """Write the figure of ``ax`` as PNG."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight")
    replace_file(path, content.getvalue())
