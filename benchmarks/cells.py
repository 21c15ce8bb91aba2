r"""One cell of the bounds benchmark, an estimator at a budget; the price of 0.1 nat; and the A/A row."""

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
_BINS = (-math.inf, 0.3, 0.5, 0.7, math.inf)  # edges of bins of k-hat


class Exam(NamedTuple):
    """A trained network, test images and their exact log p(x)."""

    vae: pv.VAE
    x: Tensor
    exact: Float[Tensor, " batch"]


def measured(entry: Entry, budget: int, exam: Exam, *, seed: int) -> dict[str, Any] | None:
    """Return the estimates of all images within a budget, beside the truth; ``None`` if the budget is too small."""
    run = entry.make(budget)
    if run is None:
        return None
    clock = Clock()
    found = pv.compare(
        {entry.name: run.estimator},
        exam.vae.model,
        exam.vae.guide,
        exam.x,
        exact=exam.exact,
        seed=seed,
        progress=True,
    )
    cpu_seconds = clock.read()["cpu_seconds"]
    (row,) = found.to_dict()["rows"]
    (evidence,) = found.evidence[entry.name]
    cell = {
        "estimator": entry.name,
        "estimates": entry.estimates,
        "direction": row["side"],
        "budget": budget,
        "num_particles": row["num_particles"],
        "num_temperatures": run.num_temperatures,
        "evaluations": row["evaluations"],
        "seed": seed,
        "value": row["value"],
        "monte_carlo_error": row["monte_carlo_error"],
        "test_set_error": row["test_set_error"],
        "difference": row["bias"],
        "difference_monte_carlo_error": row["monte_carlo_error"],
        "rmse": row["rmse"],
        "pareto_k_above": row["pareto_k_above"],
        "ok": evidence.share("ok"),
        "doubtful": evidence.share("doubtful"),
        "unreliable": evidence.share("unreliable"),
        "seconds": row["seconds"],
        "cpu_seconds": cpu_seconds,
    }
    if entry.estimates == "log p(x)":
        return cell | _trust(evidence, exam.exact)
    return cell | dict.fromkeys(_TRUST)  # errors and verdicts of a bound are about the bound, not about log p(x)


_TRUST = ("coverage", "ok_within_3", "ok_beyond_3", "by_pareto_k")


def _trust(evidence: LogEvidence, exact: Float[Tensor, " batch"]) -> dict[str, Any]:
    """Return how often 95% intervals hold the truth, and how often a verdict of ok was right."""
    errors = (evidence.value - exact.cpu()).abs() / evidence.stderr  # in standard errors
    ok = torch.from_numpy(evidence.verdict == "ok")
    wrongly_ok = (ok & (errors > 3)).nonzero()[:, 0].tolist()
    return {
        "coverage": _share(errors <= 1.96),
        "ok_within_3": _share(errors[ok] <= 3),
        "ok_beyond_3": [_described(evidence, exact, image) for image in wrongly_ok],
        "by_pareto_k": _by_pareto_k(evidence.pareto_k, errors),
    }


def _by_pareto_k(k: Float[Tensor, " batch"], errors: Float[Tensor, " batch"]) -> list[dict[str, Any]] | None:
    """Return the same shares for the images in each bin of k-hat; ``None`` if the estimator has no k-hat."""
    if k.isnan().any():
        return None
    found = []
    for low, high in pairwise(_BINS):
        here = (k >= low) & (k < high)
        found.append(
            {
                "below": high if high < math.inf else None,
                "images": int(here.sum()),
                "coverage": _share(errors[here] <= 1.96),
                "within_3": _share(errors[here] <= 3),
            }
        )
    return found


def _described(evidence: LogEvidence, exact: Float[Tensor, " batch"], image: int) -> dict[str, Any]:
    """Return the estimate of one image, for the record."""
    k = evidence.pareto_k[image].item()
    return {
        "image": image,
        "difference": (evidence.value[image] - exact[image]).item(),
        "stderr": evidence.stderr[image].item(),
        "ess": evidence.ess[image].item(),
        "pareto_k": None if math.isnan(k) else k,
    }


def _share(true: Tensor) -> float | None:
    """Return the share of true values; ``None`` if there are no values."""
    return true.double().mean().item() if len(true) else None


def prices(cells: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Return, for each estimator, the smallest budget from which on its RMSE stays within 0.1 nats; ``None``: never."""
    found = []
    for name in dict.fromkeys(cell["estimator"] for cell in cells):
        mine = [cell for cell in cells if cell["estimator"] == name]
        mine.sort(key=lambda cell: cell["budget"])
        enough = None  # the first of the cells at the end that are all within the price
        for cell in reversed(mine):
            if cell["rmse"] is None or cell["rmse"] > PRICE:
                break
            enough = cell
        found.append(
            {
                "estimator": name,
                "rmse": PRICE,
                "budget": enough and enough["budget"],
                "evaluations": enough and enough["evaluations"],
                "cpu_seconds_per_image": enough and enough["cpu_seconds"] / num_images,
                "smallest_rmse": min((cell["rmse"] for cell in mine if cell["rmse"] is not None), default=None),
            }
        )
    return found


def aa_row(exam: Exam, *, num_particles: int, seed: int) -> dict[str, Any]:
    """Return the difference of importance sampling from itself with another seed, where there should be none."""
    sampled = partial(importance, exam.vae.model, exam.vae.guide, exam.x, num_particles=num_particles)
    first = sampled(seed=seed)
    second = sampled(seed=seed + 1)
    gap = first.value - second.value
    error = (first.stderr.square() + second.stderr.square()).sqrt()
    mean_error = error.square().sum().sqrt().item() / len(error)
    return {
        "estimator": "IS",
        "num_particles": num_particles,
        "seeds": [seed, seed + 1],
        "difference": gap.mean().item(),
        "difference_monte_carlo_error": mean_error,
        "in_errors": gap.mean().item() / mean_error,
        "images_beyond_3": _share(gap.abs() > 3 * error),
    }
