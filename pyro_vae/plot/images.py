"""Grids of images: data, reconstructions, imputations, neighbours, interpolations and the decoded latent plane."""

from __future__ import annotations

__all__ = [
    "cell_middle",
    "images",
    "imputations",
    "interpolations",
    "label_rows",
    "latent_grid",
    "manifold",
    "neighbours",
    "reconstructions",
]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator
from torch import Tensor

from ..data.arrays import as_tensor
from ..errors import ShapeError
from .base import as_pictures, new_axes


def images(x: Any, ax: Axes | None = None, *, columns: int = 10, title: str = "", invert: bool = True) -> Axes:
    """Show images side by side, a pixel apart: grey ``[n, height, width]``, or coloured ``[n, 3, height, width]``.

    Grey images are dark on white unless ``invert=False``.
    """
    x = as_pictures(x)
    if not len(x):
        raise ShapeError("expected at least one image, found none")
    columns = min(columns, len(x))
    rows = -(-len(x) // columns)
    inches = min(0.6, 6 / columns)
    ax = new_axes(ax, width=inches * columns, height=inches * rows)
    height, width, *colours = x.shape[1:]
    shape = (rows * (height + 1) - 1, columns * (width + 1) - 1, *colours)
    canvas = np.full(shape, 0.0 if invert and not colours else 1.0)
    for index, image in enumerate(x):
        row, column = divmod(index, columns)
        top, left = row * (height + 1), column * (width + 1)
        canvas[top : top + height, left : left + width] = image.clip(0, 1)
    ax.imshow(canvas, cmap="gray_r" if invert else "gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)
    return ax


def reconstructions(x: Any, x_hat: Any, ax: Axes | None = None, *, title: str = "", invert: bool = True) -> Axes:
    """Show data in the upper row and their reconstructions in the lower row."""
    x, x_hat = as_pictures(x), as_pictures(x_hat)
    if x.shape != x_hat.shape:
        raise ShapeError(f"expected reconstructions of the data's shape {x.shape}, got {x_hat.shape}")
    ax = images(np.concatenate([x, x_hat]), ax, columns=len(x), title=title, invert=invert)
    return label_rows(ax, x.shape[1], ["data", "reconstruction"])


def imputations(
    x: Any, mean: Any, draws: Any, mask: Any, ax: Axes | None = None, *, title: str = "", invert: bool = True
) -> Axes:
    """Show data, the observed pixels of them, and the mean and draws of the missing pixels, one row each.

    Data, mean and mask are ``[n, height, width]``, draws ``[rows, n, height, width]``. ``mask`` is true where data are
    observed; the second row is grey elsewhere.
    """
    x, mean, draws = as_pictures(x), as_pictures(mean), as_tensor(draws)
    if x.shape != mean.shape or draws.shape[1:2] != (len(x),):
        raise ShapeError(
            f"expected means of the data's shape {x.shape} and draws of it, got {mean.shape}, {draws.shape}"
        )
    observed = as_pictures(as_tensor(mask).float().expand(len(x), *as_tensor(mask).shape[-2:]))
    rows = [x, np.where(observed > 0.5, x, 0.4), mean, *(as_pictures(part) for part in draws)]
    ax = images(np.concatenate(rows), ax, columns=len(x), title=title, invert=invert)
    return label_rows(ax, x.shape[1], ["data", "seen", "mean of the rest", *["draw of the rest"] * len(draws)])


def neighbours(
    x: Any, nearest: Any, distance: Any, ax: Axes | None = None, *, title: str = "", invert: bool = True
) -> Axes:
    """Show samples ``[n, height, width]`` above their nearest training images, with the distances ``[n]``.

    :func:`~pyro_vae.diagnostics.nearest_neighbours` returns both. A model that copies shows the same image twice.
    """
    x, nearest, distance = as_pictures(x), as_pictures(nearest), as_tensor(distance).detach().cpu().numpy()
    if x.shape != nearest.shape or distance.shape != x.shape[:1]:
        raise ShapeError(
            f"expected one neighbour and one distance for each of {len(x)} images {x.shape[1:]}, got {nearest.shape} "
            f"and {distance.shape}"
        )
    ax = images(np.concatenate([x, nearest]), ax, columns=len(x), title=title, invert=invert)
    label_rows(ax, x.shape[1], ["sample", "nearest in training"])
    ax.set_xticks(cell_middle(np.arange(len(x)), x.shape[2]), [f"{value:.2f}" for value in distance], fontsize=8)
    ax.set_xlabel("distance")
    return ax


def interpolations(
    start: Any, paths: Any, end: Any, ax: Axes | None = None, *, title: str = "", invert: bool = True
) -> Axes:
    """Show decoded paths ``[rows, steps, height, width]``, each between the two images that it joins.

    A line separates a path from the images ``[rows, height, width]``. The images on both sides of a line should look
    alike if the ends of the path are the codes of the data.
    """
    start, end, paths = as_pictures(start), as_pictures(end), as_tensor(paths)
    if start.shape != end.shape or paths.ndim < 3 or len(paths) != len(start) or paths[:, 0].numel() != start.size:
        raise ShapeError(
            "expected paths (n, steps, height, width) from and to images (n, height, width), got "
            f"{tuple(paths.shape)} from {start.shape} to {end.shape}"
        )
    width, steps = start.shape[2], paths.shape[1]
    decoded = as_pictures(paths.flatten(0, 1)).reshape(-1, steps, *start.shape[1:])
    rows = np.concatenate([start[:, None], decoded, end[:, None]], 1)
    ax = images(rows.reshape(-1, *start.shape[1:]), ax, columns=steps + 2, title=title, invert=invert)
    label_rows(ax, start.shape[1], [])
    ax.set_xticks(cell_middle(np.array([0, 1, steps, steps + 1]), width), ["data", "0", "1", "data"])
    ax.set_xlabel("share of the way")
    for column in (1, steps + 1):
        ax.axvline(column * (width + 1) - 1, color="C3", linewidth=1.5)
    return ax


def latent_grid(side: int) -> tuple[Tensor, Tensor]:
    """Return values ``[side]`` along one dimension, and their grid ``[side * side, 2]`` as :func:`manifold` orders it.

    The values are quantiles of N(0, 1), so that every cell of the grid holds the same share of p(z).

    Example:
        >>> z, grid = latent_grid(3)
        >>> z
        tensor([-0.9674,  0.0000,  0.9674])
        >>> grid[0]  # the top left corner
        tensor([-0.9674,  0.9674])
    """
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    return z, torch.cartesian_prod(z.flip(0), z).flip(-1)


def manifold(x: Any, z: Any, ax: Axes | None = None, *, title: str = "", invert: bool = True) -> Axes:
    """Show decoded images ``[rows * columns, height, width]`` of a grid in a two-dimensional latent space.

    ``z`` holds the values along one side of the grid, in increasing order. Images are in row-major order, and the first
    row, at the *top*, has the largest second coordinate.
    """
    x, z = as_pictures(x), as_tensor(z).detach().cpu().numpy()
    side = len(z)
    if len(x) != side**2:
        raise ShapeError(f"expected {side} x {side} images for {side} values of z, got {len(x)}")
    ax = images(x, ax, columns=side, title=title, invert=invert)
    ax.set_axis_on()
    height, width = x.shape[1:3]
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
    """Return the coordinate of the middle of a cell on the canvas of :func:`images`."""
    return cell * (size + 1) + (size - 1) / 2


def label_rows(ax: Axes, height: int, names: Sequence[str]) -> Axes:
    """Label the rows of a canvas of :func:`images` with the given height, and leave its columns without labels."""
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks(cell_middle(np.arange(len(names)), height), names)
    ax.tick_params(length=0)
    return ax
