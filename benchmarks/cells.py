r"""One cell of the bounds benchmark, and what follows from all of a network's: the price of 0.1 nat, the A/A row."""

from __future__ import annotations

__all__ = ["Exam", "aa_row", "measured", "prices"]

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import LogEvidence, importance

from .estimators import Entry
from .provenance import Clock

PRICE = 0.1  # nats
_BINS = (-math.inf, 0.3, 0.5, 0.7, math.inf)  # of k-hat


class Exam(NamedTuple):
    """A trained network, test images and their exact log p(x)."""

    vae: pv.VAE
    x: Tensor
    exact: Float[Tensor, " batch"]


def measured(entry: Entry, budget: int, exam: Exam, *, seed: int) -> dict[str, Any] | None:
    """What an estimator says of the images within a budget, beside the truth; ``None`` if it is too small."""
    run = entry.make(budget)
    if run is None:
        return None
    clock = Clock()
    found = pv.compare(
        {entry.name: run.estimator}, exam.vae.model, exam.vae.guide, exam.x, exact=exam.exact, seed=seed, progress=True
    )
    busy = clock.read()["cpu_seconds"]
    (row,), (evidence,) = found.to_dict()["rows"], found.evidence[entry.name]
    cell = {
        "estimator": entry.name,
        "estimates": entry.estimates,
        "direction": row["side"],
        "budget": budget,
        "num_particles": row["num_particles"],
        "num_temperatures": run.num_temperatures,
        "evaluations": row["evaluations"],
        "seed": seed,
        **{key: row[key] for key in ("value", "monte_carlo_error", "test_set_error")},
        "difference": row["bias"],
        "difference_monte_carlo_error": row["monte_carlo_error"],
        **{key: row[key] for key in ("rmse", "pareto_k_above")},
        **{verdict: evidence.share(verdict) for verdict in ("ok", "doubtful", "unreliable")},
        "seconds": row["seconds"],
        "cpu_seconds": busy,
    }
    return cell | (_trust(evidence, exam.exact) if entry.estimates == "log p(x)" else dict.fromkeys(_TRUST))


_TRUST = ("coverage", "ok_within_3", "ok_beyond_3", "by_pareto_k")


def _trust(evidence: LogEvidence, exact: Float[Tensor, " batch"]) -> dict[str, Any]:
    """Whether the error bar and the verdict are to be believed; of intervals, those of 95%."""
    errors = (evidence.value - exact.cpu()).abs() / evidence.stderr
    ok = torch.from_numpy(evidence.verdict == "ok")
    return {
        "coverage": _share(errors <= 1.96),
        "ok_within_3": _share(errors[ok] <= 3),
        "ok_beyond_3": [_described(evidence, exact, place) for place in (ok & (errors > 3)).nonzero()[:, 0].tolist()],
        "by_pareto_k": _by_pareto_k(evidence.pareto_k, errors),
    }


def _by_pareto_k(k: Float[Tensor, " batch"], errors: Float[Tensor, " batch"]) -> list[dict[str, Any]] | None:
    if k.isnan().any():
        return None
    found = []
    for low, high in pairwise(_BINS):
        here = (k >= low) & (k < high)
        inside = {"coverage": _share(errors[here] <= 1.96), "within_3": _share(errors[here] <= 3)}
        found.append({"below": high if high < math.inf else None, "images": int(here.sum()), **inside})
    return found


def _described(evidence: LogEvidence, exact: Float[Tensor, " batch"], place: int) -> dict[str, Any]:
    k = evidence.pareto_k[place].item()
    return {
        "image": place,
        "difference": (evidence.value[place] - exact[place]).item(),
        "stderr": evidence.stderr[place].item(),
        "ess": evidence.ess[place].item(),
        "pareto_k": None if math.isnan(k) else k,
    }


def _share(true: Tensor) -> float | None:
    return true.double().mean().item() if len(true) else None


def prices(cells: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """For each estimator the smallest budget from which on its error stays within 0.1 nats; ``None`` for never."""
    found = []
    for name in dict.fromkeys(cell["estimator"] for cell in cells):
        mine = sorted((cell for cell in cells if cell["estimator"] == name), key=lambda cell: cell["budget"])
        bad = [place for place, cell in enumerate(mine) if cell["rmse"] is None or cell["rmse"] > PRICE]
        enough = mine[bad[-1] + 1 :] if bad else mine
        first = enough[0] if enough else None
        found.append(
            {
                "estimator": name,
                "rmse": PRICE,
                "budget": first and first["budget"],
                "evaluations": first and first["evaluations"],
                "cpu_seconds_per_image": first and first["cpu_seconds"] / num_images,
                "smallest_rmse": min((cell["rmse"] for cell in mine if cell["rmse"] is not None), default=None),
            }
        )
    return found


def aa_row(exam: Exam, *, num_particles: int, seed: int) -> dict[str, Any]:
    """Importance sampling against itself with another seed: a difference where there is none."""
    same = partial(importance, num_particles=num_particles)
    first, second = (same(exam.vae.model, exam.vae.guide, exam.x, seed=it) for it in (seed, seed + 1))
    error = (first.stderr.square() + second.stderr.square()).sqrt()
    gap, mean_error = first.value - second.value, error.square().sum().sqrt().item() / len(error)
    return {
        "estimator": "IS",
        "num_particles": num_particles,
        "seeds": [seed, seed + 1],
        "difference": gap.mean().item(),
        "difference_monte_carlo_error": mean_error,
        "in_errors": gap.mean().item() / mean_error,
        "images_beyond_3": _share(gap.abs() > 3 * error),
    }
