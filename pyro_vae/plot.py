"""Pictures: values in, Axes out. Nothing is shown or saved here except by :func:`save`."""

from __future__ import annotations

__all__ = [
    "history",
    "images",
    "inference_gaps",
    "latent_grid",
    "latents",
    "log_evidence",
    "manifold",
    "reconstructions",
    "save",
]

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from torch import Tensor

from .arrays import as_tensor
from .diagnostics import InferenceGaps, Mean
from .errors import ShapeError
from .evidence import LogEvidence
from .files import replace_file

_WITHIN = 1.96  # standard errors: 95% intervals
_VERDICTS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}
_SIDES = {"lower": "lower bound", "upper": "upper bound", "point": "estimate"}


def images(x: Any, ax: Axes | None = None, *, columns: int = 10, title: str = "", invert: bool = True) -> Axes:
    """Images ``[n, height, width]`` side by side, a pixel apart, dark on white unless ``invert=False``."""
    x = _pictures(x)
    if not len(x):
        raise ShapeError("expected at least one image, found none")
    columns = min(columns, len(x))
    rows = -(-len(x) // columns)
    inches = min(0.6, 6 / columns)
    ax = _axes(ax, width=inches * columns, height=inches * rows)
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
    x, x_hat = _pictures(x), _pictures(x_hat)
    if x.shape != x_hat.shape:
        raise ShapeError(f"expected reconstructions of the data's shape {x.shape}, got {x_hat.shape}")
    ax = images(np.concatenate([x, x_hat]), ax, columns=len(x), title=title)
    ax.set_axis_on()
    ax.set_xticks([])
    height = x.shape[1]
    ax.set_yticks([_middle(0, height), _middle(1, height)], ["data", "reconstruction"])
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
    x, z = _pictures(x), as_tensor(z).detach().cpu().numpy()
    side = len(z)
    if len(x) != side**2:
        raise ShapeError(f"expected {side} x {side} images for {side} values of z, got {len(x)}")
    ax = images(x, ax, columns=side, title=title)
    ax.set_axis_on()
    height, width = x.shape[1:]
    chosen = np.linspace(0, side - 1, 5 if side % 2 else 4).round().astype(int)  # symmetric about zero
    labels = [f"{z[index]:.1f}".replace("-", "−") for index in chosen]
    ax.xaxis.set_major_locator(FixedLocator(_middle(chosen, width)))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.yaxis.set_major_locator(FixedLocator(_middle(side - 1 - chosen, height)))
    ax.yaxis.set_major_formatter(FixedFormatter(labels))
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
    return ax


def latents(loc: Any, labels: Any, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Posterior means ``[n, 2]`` coloured by class, over circles that hold 50% and 95% of the prior N(0, I)."""
    loc, labels = as_tensor(loc).detach().cpu().numpy(), as_tensor(labels).detach().cpu().numpy()
    if loc.ndim != 2 or loc.shape[1] != 2 or labels.shape != loc.shape[:1]:
        raise ShapeError(f"expected means (n, 2) and labels (n,), got {loc.shape} and {labels.shape}")
    ax = _axes(ax, width=5.6, height=4.8)
    classes = np.unique(labels)
    colours = np.array([f"C{number % 10}" for number in range(len(classes))])
    order = np.random.default_rng(0).permutation(len(loc))  # or the last class would hide the others
    ax.scatter(
        *loc[order].T, s=_dot(len(loc)), color=colours[np.searchsorted(classes, labels[order])], alpha=0.7, linewidths=0
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


def history(epochs: Sequence[Any], ax: Axes | None = None, *, title: str = "", label: str = "bound") -> Axes:
    """What is maximised against the epoch, on the training and the validation data, and the ELBO where it differs."""
    ax = _axes(ax, width=5.6, height=3.4)
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
    # The first epochs are far below the rest and would flatten it.
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


def log_evidence(evidence: LogEvidence, exact: Any = None, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Estimates of log p(x) in increasing order with 95% intervals, coloured by verdict.

    With the ``exact`` values ``[n]``, which then give the order, it is the differences from them that are shown: on a
    scale of tens of nats no error could be seen. Estimates that are not finite are counted in the legend alone.
    """
    value, stderr = (part.cpu().numpy() for part in (evidence.value, evidence.stderr))
    truth = np.zeros_like(value) if exact is None else as_tensor(exact).detach().double().cpu().numpy()
    if truth.shape != value.shape:
        raise ShapeError(f"exact: expected one value for each of {len(value)} datapoints, got shape {truth.shape}")
    ax = _axes(ax, width=5.6, height=3.6)
    place = np.empty(len(value), dtype=int)
    place[np.argsort(value if exact is None else truth, kind="stable")] = np.arange(len(value))
    for verdict, colour in _VERDICTS.items():  # the worst on top
        chosen = evidence.verdict == verdict
        shown = chosen & np.isfinite(value) & np.isfinite(stderr)
        label = f"{verdict} ({chosen.sum()})"
        style = {"fmt": "o", "markersize": _dot(len(value)) ** 0.5, "elinewidth": 1, "color": colour, "label": label}
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
    ax = _axes(ax, width=6.4, height=0.5 * len(gaps) + 0.8)
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


def save(ax: Axes, path: str | Path, *, dpi: int = 150) -> None:
    """Write the figure that ``ax`` is in, as PNG."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight")
    replace_file(path, content.getvalue())


def _intervals(ax: Axes, mean: Mean, at: float, height: float, *, named: bool) -> None:
    """Both 95% intervals of a mean that ends here."""
    errors = {"choice of datapoints": (mean.test_set_error, 1), "Monte-Carlo": (mean.monte_carlo_error, 3)}
    for name, (error, width) in errors.items():
        within = _WITHIN * error.nan_to_num().item()  # one datapoint alone has no error of its choice
        label = f"95%, {name}" if named else ""
        ax.errorbar(at, height, xerr=within, fmt="none", ecolor="0.1", elinewidth=width, zorder=4, label=label)


def _middle(cell: Any, size: int) -> Any:
    """Where the middle of a cell is on the canvas of :func:`images`."""
    return cell * (size + 1) + (size - 1) / 2


def _dot(num: int) -> float:
    """A marker's area that fills the plane about as well for 10,000 points as for 300."""
    return float(np.clip(5000 / num, 2, 14))


def _axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """The given Axes, or new ones in a figure of their own, without pyplot's global state."""
    return Figure(figsize=(width, height + 0.3), layout="constrained").subplots() if ax is None else ax


def _pictures(x: Any) -> np.ndarray:
    """Images as ``[n, height, width]``; flat ones are squared if they can be, one channel is dropped."""
    x = as_tensor(x).detach().cpu().numpy()
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim == 2 and (side := round(x.shape[1] ** 0.5)) ** 2 == x.shape[1]:
        x = x.reshape(-1, side, side)
    if x.ndim != 3:
        raise ShapeError(f"expected images of shape (n, height, width), got {x.shape}: reshape them")
    return x
