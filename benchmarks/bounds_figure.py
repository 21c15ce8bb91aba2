r"""The figure of the bounds benchmark: a panel per network, with the truth as the line at zero."""

from __future__ import annotations

__all__ = ["draw"]

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pyro_vae.data.files import replace_file

_STYLES = {
    "ELBO": ("#7f7f7f", "o"),
    "Renyi 0.5": ("#a6a800", "s"),
    "CUBO 2": ("#d62728", "^"),
    "IS": ("#1f77b4", "o"),
    "IS, refined": ("#000080", "*"),
    "JVI-1": ("#17becf", "v"),
    "JVI-2": ("#9467bd", "<"),
    "PSIS": ("#ff7f0e", "D"),
    "AIS": ("#2ca02c", "P"),
    "SMC": ("#8c564b", "X"),
}
_BAND: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "none"}
_HATCH: dict[str, Any] = {"facecolor": "none", "edgecolor": "#f6c4c4", "hatch": "///", "linewidth": 0.0}
_LINEAR = 0.01  # nats; beyond it the axis is logarithmic
_NOTABLE = 0.1  # a share of the images
_APART = 1.035  # a factor between points of the same budget, which would hide each other otherwise


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the record and write it as PNG."""
    networks = [network for network in record["networks"] if network["cells"]]
    figure = Figure(figsize=(3.1 * len(networks) + 0.7, 5.4), layout="constrained")
    axes = figure.subplots(1, len(networks), sharey=True, sharex=True, squeeze=False)[0]
    for ax, network in zip(axes, networks, strict=True):
        _panel(ax, network)
    gaps = [cell["difference"] or 0.0 for network in networks for cell in network["cells"]]
    lowest = min(-_LINEAR, *gaps)
    highest = max(_LINEAR, *gaps)
    axes[0].set_ylim(2 * lowest, 2 * highest)
    axes[0].set_ylabel("estimate − exact log p(x), nats per image (mean)")
    axes[len(axes) // 2].set_xlabel("decoder evaluations per image")
    _legend(figure, axes[0])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=180, metadata={"Software": None})
    replace_file(path, content.getvalue())


def _panel(ax: Axes, network: dict[str, Any]) -> None:
    """Draw one network: a curve per estimator, and the error from the choice of test images as a band."""
    for place, name in enumerate(_STYLES):
        cells = [cell for cell in network["cells"] if cell["estimator"] == name]
        _curve(ax, cells, name, place)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    ax.axhline(0, color="black", linewidth=1.4, zorder=1.5)
    title = f"trained by {network['objective']}\nlog p(x) = {network['log_evidence']:.3f}".replace("-", "−")
    error = network["test_set_error"]
    if error is not None:
        title += f" ± {error:.2f}"
        ax.axhspan(-error, error, zorder=0, **_BAND)
    ax.set_title(title, fontsize=10)
    _shade(ax, network["cells"])
    ax.yaxis.set_major_locator(FixedLocator([-1, -0.1, -0.01, 0, 0.01, 0.1, 1]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))


def _curve(ax: Axes, cells: list[dict[str, Any]], name: str, place: int) -> None:
    """Draw one estimator with Monte-Carlo error bars; points that are not known are left out."""
    known = [cell for cell in cells if cell["difference"] is not None]
    colour, marker = _STYLES[name]
    shift = _APART ** (place - len(_STYLES) / 2)
    ax.errorbar(
        [cell["evaluations"] * shift for cell in known],
        [cell["difference"] for cell in known],
        yerr=[cell["difference_monte_carlo_error"] or 0.0 for cell in known],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.1,
        elinewidth=1.0,
        capsize=2,
        label=name,
    )


def _shade(ax: Axes, cells: list[dict[str, Any]]) -> None:
    """Shade the budgets at which a notable share of the images have importance weights with k-hat > .7."""
    found = [(cell["evaluations"], cell["pareto_k_above"]) for cell in cells if cell["estimator"] == "IS"]
    if not found:
        return
    ends = [found[0][0] / 2, *(num for num, _ in found), found[-1][0] * 2]
    for place, (num, share) in enumerate(found):
        if share is not None and share > _NOTABLE:
            halfway_down = (num * ends[place]) ** 0.5
            halfway_up = (num * ends[place + 2]) ** 0.5
            ax.axvspan(halfway_down, halfway_up, zorder=0.2, **_HATCH)


def _legend(figure: Figure, ax: Axes) -> None:
    """Draw one legend for all panels: the estimators above, the regions and the truth below."""
    curves, names = ax.get_legend_handles_labels()
    regions = {
        "test-set error of mean log p(x)": Patch(**_BAND),
        f"k-hat > .7 for more than {_NOTABLE:.0%} of the images": Patch(**_HATCH),
    }
    common: dict[str, Any] = {"frameon": False, "fontsize": 9, "handletextpad": 0.4, "columnspacing": 1.2}
    figure.legend(curves, names, loc="outside upper center", ncols=5 * min(2, len(figure.axes)), **common)
    figure.legend(
        [*regions.values(), ax.lines[-1]],
        [*regions, "exact log p(x)"],
        loc="outside lower center",
        ncols=len(figure.axes),
        **common,
    )
