"""The effect of each latent dimension: images along one dimension at a time."""

from __future__ import annotations

__all__ = ["traversal_grid", "traversals"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from ..data.arrays import as_tensor
from ..errors import ShapeError, require_count, require_number
from .base import as_pictures
from .images import cell_middle, images, label_rows


def traversal_grid(
    loc: Any, start: Any, *, columns: int = 9, share: float = 0.9
) -> tuple[Float[Tensor, " columns"], Float[Tensor, "latent columns latent"]]:
    """Return quantile levels, and latent points that differ from ``start`` in one dimension at a time.

    Row j of the points has dimension j at the quantiles of ``loc[:, j]`` and all other dimensions as in ``start``. The
    points thus stay within the aggregate posterior: a dimension that the data use from -1 to 1 is not decoded at 3,
    and a collapsed dimension hardly moves.

    Arguments:
        loc: Posterior means of the data, ``[n, latent]``.
        start: The posterior mean of one image, ``[latent]``.
        columns: The number of quantiles, at least 2.
        share: The share of the data between the first and the last quantile; 0.9 is from 5% to 95%.

    Errors:
        ShapeError: for means of other shapes.
        ConfigError: for fewer than two columns, or a share outside [0, 1].

    Example:
        >>> loc = torch.stack([torch.arange(-10, 11) / 10, torch.zeros(21)], -1)
        >>> levels, z = traversal_grid(loc, torch.tensor([0.5, 0.0]), columns=3)
        >>> levels
        tensor([0.0500, 0.5000, 0.9500])
        >>> z[0]
        tensor([[-0.9000,  0.0000],
                [ 0.0000,  0.0000],
                [ 0.9000,  0.0000]])
    """
    loc, start = as_tensor(loc, name="loc").detach(), as_tensor(start, name="start").detach()
    if loc.ndim != 2 or not len(loc) or start.shape != loc.shape[1:]:
        raise ShapeError(
            f"expected means (n, latent) and a start (latent,), got {tuple(loc.shape)} and {tuple(start.shape)}"
        )
    loc = loc if loc.is_floating_point() else loc.float()
    columns = require_count("columns", columns, least=2)
    share = require_number("share", share, least=0, most=1)
    levels = torch.linspace((1 - share) / 2, (1 + share) / 2, columns, dtype=loc.dtype, device=loc.device)
    z = start.to(loc).repeat(loc.shape[1], columns, 1)
    dims = torch.arange(loc.shape[1])
    z[dims, :, dims] = loc.quantile(levels, dim=0).T
    return levels, z


def traversals(
    x: Any,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    levels: Any = None,
    title: str = "",
    invert: bool = True,
) -> Axes:
    """Show decoded images ``[rows, columns, height, width]`` of a :func:`traversal_grid`, a row for each dimension.

    ``names`` label the rows, by default with the latent dimensions in their order. ``levels`` are the quantiles of the
    columns; the first, the middle and the last label the columns.
    """
    x = as_tensor(x).detach().cpu()
    if x.ndim < 3 or not x.numel():
        raise ShapeError(f"expected images of shape (rows, columns, height, width), got {tuple(x.shape)}")
    rows, columns = x.shape[:2]
    names = [f"$z_{{{row}}}$" for row in range(1, rows + 1)] if names is None else list(names)
    if len(names) != rows:
        raise ShapeError(f"expected {rows} names for {rows} rows, got {len(names)}")
    pictures = as_pictures(x.flatten(0, 1))
    ax = images(pictures, ax, columns=columns, title=title, invert=invert)
    height, width = pictures.shape[1:3]
    label_rows(ax, height, names)
    if levels is not None:
        levels = as_tensor(levels).cpu().numpy()
        if levels.shape != (columns,):
            raise ShapeError(f"expected {columns} levels for {columns} columns, got {levels.shape}")
        chosen = sorted({0, columns // 2, columns - 1})
        ax.set_xticks(cell_middle(np.array(chosen), width), [f"{levels[column]:.0%}" for column in chosen])
        ax.set_xlabel("quantile of the posterior means of the data", fontsize=8)
    ax.tick_params(labelsize=8)
    return ax
