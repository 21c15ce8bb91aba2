"""Pictures of pictures: images side by side, reconstructions, the decoded latent plane."""

from __future__ import annotations

__all__ = ["cell_middle", "images", "latent_grid", "manifold", "reconstructions"]

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator
from torch import Tensor

from ..arrays import as_tensor
from ..errors import ShapeError
from .base import as_pictures, new_axes


def images(x: Any, ax: Axes | None = None, *, columns: int = 10, title: str = "", invert: bool = True) -> Axes:
    """Images ``[n, height, width]`` side by side, a pixel apart, dark on white unless ``invert=False``."""
    x = as_pictures(x)
    if not len(x):
        raise ShapeError("expected at least one image, found none")
    columns = min(columns, len(x))
    rows = -(-len(x) // columns)
    inches = min(0.6, 6 / columns)
    ax = new_axes(ax, width=inches * columns, height=inches * rows)
    height, width = x.shape[1:]
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), 0.0 if invert else 1.0)
    for number, image in enumerate(x):
        row, column = divmod(number, columns)
        top, left = row * (height + 1), column * (width + 1)
        canvas[top : top + height, left : left + width] = image
    ax.imshow(canvas, cmap="gray_r" if invert else "gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)
    return ax


def reconstructions(x: Any, x_hat: Any, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Data in the upper row, their reconstructions in the lower one."""
    x, x_hat = as_pictures(x), as_pictures(x_hat)
    if x.shape != x_hat.shape:
        raise ShapeError(f"expected reconstructions of the data's shape {x.shape}, got {x_hat.shape}")
    ax = images(np.concatenate([x, x_hat]), ax, columns=len(x), title=title)
    ax.set_axis_on()
    ax.set_xticks([])
    height = x.shape[1]
    ax.set_yticks([cell_middle(0, height), cell_middle(1, height)], ["data", "reconstruction"])
    ax.tick_params(length=0)
    return ax


def latent_grid(side: int) -> tuple[Tensor, Tensor]:
    """Values ``[side]`` along one dimension, and the grid ``[side * side, 2]`` they make, in :func:`manifold`'s order.

    The values are quantiles of N(0, 1), so every cell of the grid holds the same share of p(z).

    Example:
        >>> z, grid = latent_grid(3)
        >>> z
        tensor([-0.9674,  0.0000,  0.9674])
        >>> grid[0]  # the top left corner
        tensor([-0.9674,  0.9674])
    """
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    return z, torch.cartesian_prod(z.flip(0), z).flip(-1)


def manifold(x: Any, z: Any, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Decoded images ``[rows * columns, height, width]`` of a grid in a two-dimensional latent space.

    ``z`` holds the grid's values along one side, in increasing order; row-major images, the first row at the *top*
    being the largest second coordinate.
    """
    x, z = as_pictures(x), as_tensor(z).detach().cpu().numpy()
    side = len(z)
    if len(x) != side**2:
        raise ShapeError(f"expected {side} x {side} images for {side} values of z, got {len(x)}")
    ax = images(x, ax, columns=side, title=title)
    ax.set_axis_on()
    height, width = x.shape[1:]
    chosen = np.linspace(0, side - 1, 5 if side % 2 else 4).round().astype(int)  # symmetric about zero
    labels = [f"{z[index]:.1f}".replace("-", "−") for index in chosen]
    ax.xaxis.set_major_locator(FixedLocator(cell_middle(chosen, width)))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.yaxis.set_major_locator(FixedLocator(cell_middle(side - 1 - chosen, height)))
    ax.yaxis.set_major_formatter(FixedFormatter(labels))
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
    return ax


def cell_middle(cell: Any, size: int) -> Any:
    """Where the middle of a cell is on the canvas of :func:`images`."""
    return cell * (size + 1) + (size - 1) / 2
