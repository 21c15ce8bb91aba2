r"""The tables of the bounds benchmark, in Markdown."""

from __future__ import annotations

__all__ = ["markdown"]

from collections.abc import Callable
from typing import Any

_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("estimator", lambda cell: cell["estimator"]),
    ("K or T", lambda cell: _draws(cell)),
    ("evaluations", lambda cell: f"{cell['evaluations']:,.0f}"),
    ("direction", lambda cell: cell["direction"]),
    ("mean", lambda cell: f"{_number(cell['value'], 3)} ± {_number(cell['monte_carlo_error'], 3)}"),
    ("test set", lambda cell: f"± {_number(cell['test_set_error'], 2)}"),
    ("minus log p(x)", lambda cell: f"{_number(cell['difference'], 4, '+')} ± {_number(cell['monte_carlo_error'], 4)}"),
    ("RMSE", lambda cell: _number(cell["rmse"], 3)),
    ("k-hat > .7", lambda cell: _percent(cell["pareto_k_above"])),
    ("ok / doubtful / unreliable", lambda cell: " / ".join(_percent(cell[it]) for it in _VERDICTS)),
    ("in 95%", lambda cell: _percent(cell["coverage"])),
    ("ok within 3", lambda cell: _percent(cell["ok_within_3"], 1)),
    ("CPU s", lambda cell: _number(cell["cpu_seconds"], 2)),
)
_VERDICTS = ("ok", "doubtful", "unreliable")
_LEGEND = """\
Means over the images, in nats per image. ± in *mean* and *minus log p(x)* is the Monte-Carlo error as the estimator
states it; *test set* is the error from the choice of images. *minus log p(x)* is the mean paired difference to the
exact value. *K or T* is the number of draws, or T temperatures of the chains; *evaluations* are those of the decoder
per image, pilots included. *in 95%*: the share of images whose interval of 95% holds the truth; *ok within 3*: of the
images that are `ok`, the share whose value is within 3 of its standard errors of the truth. Both are left out for
bounds, which do not go to log p(x), and whose verdict is on the bound's own value. *direction* is that of the
expectation; `point` says that there is none.
"""


def markdown(record: dict[str, Any], figure: str) -> str:
    """Return the record as Markdown: title, origin, and for every network its cells, prices and A/A row."""
    settings, origin = record["settings"], record["provenance"]
    unfinished = "" if record["finished"] else "\n**Not finished.**\n"
    lines = [
        f"# Bounds and estimators of log p(x) beside the truth: {settings['data']}\n{unfinished}",
        f"{settings['images']} test images, binarised once ({settings['test_binarisation']}; training: "
        f"{settings['training_binarisation']}), {settings['latent_dim']} latent dimensions, "
        f"{settings['steps']:,} training steps.\n",
        f"`{origin['command']}`, seed {origin['seed']}, {origin['threads']} thread(s), torch "
        f"{origin['versions']['torch']}, commit {origin['commit'][:12]}{origin['commit'][40:]}.\n",
        f"![Estimate minus log p(x) against decoder evaluations]({figure})\n",
        _LEGEND,
    ]
    for network in record["networks"]:
        lines += _network(network)
    return "\n".join(lines)


def _network(network: dict[str, Any]) -> list[str]:
    lines = [f"## Trained by {network['objective']}\n"]
    if "log_evidence" in network:
        lines.append(
            f"log p(x), summed over a grid of up to {network['grid_nodes']:,} nodes: **{network['log_evidence']:.4f}** "
            f"nats, test-set error ± {_number(network['test_set_error'], 2)}; "
            f"{_percent(network['unsettled'])} of the images did not settle.\n"
        )
    titles = [title for title, _ in _COLUMNS]
    rows = [[show(cell) for _, show in _COLUMNS] for cell in network["cells"]]
    lines.append(_table(titles, rows))
    if "prices" in network:
        lines += ["What 0.1 nat costs (the smallest budget from which on RMSE ≤ 0.1):\n", _prices(network["prices"])]
    if "a_a" in network:
        lines.append(_aa_sentence(network["a_a"]))
    return lines


def _prices(prices: list[dict[str, Any]]) -> str:
    rows = []
    for price in prices:
        evaluations, milliseconds = "never", "-"
        if price["budget"] is not None:
            evaluations = f"{price['evaluations']:,.0f}"
            milliseconds = f"{1000 * price['cpu_seconds_per_image']:.2g}"
        rows.append([price["estimator"], evaluations, milliseconds, _number(price["smallest_rmse"], 3)])
    return _table(["estimator", "evaluations per image", "CPU ms per image", "smallest RMSE at any budget"], rows)


def _aa_sentence(row: dict[str, Any]) -> str:
    return (
        f"A/A: {row['estimator']} with K = {row['num_particles']:,} and seeds {row['seeds'][0]} and {row['seeds'][1]} "
        f"differs from itself by {row['difference']:+.4f} ± {row['difference_monte_carlo_error']:.4f} nats "
        f"({row['in_errors']:+.1f} standard errors; {_percent(row['images_beyond_3'], 1)} of the images beyond 3).\n"
    )


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _draws(cell: dict[str, Any]) -> str:
    if cell["num_temperatures"] is None:
        return f"K = {cell['num_particles']:,.0f}"
    return f"T = {cell['num_temperatures']}, {cell['num_particles']:.0f} chains"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}%"
