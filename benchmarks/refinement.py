r"""Refinement of q(z | x) against exact posteriors: how close, at which budget, and are its diagnostics right?

There are two problems with two latent dimensions: a linear-Gaussian model with a guide that is shifted, too narrow and
without the correlation; and a network trained on the digits, with posteriors that are known from a grid. For the draws
of every method, and for those of the guide, the benchmark reports means over datapoints of: the divergence
KL(draws || posterior), from the numbers of draws in 64 cells of equal posterior mass, where K exact draws would come to
63 / (2 K); the posterior's mass within the draws' 90% intervals of each dimension; R-hat and the effective sample size;
and the nats gained.
"""

from __future__ import annotations

__all__ = ["BUDGETS", "Gaussian", "Grid", "add_arguments", "run"]

import argparse
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

import pyro_vae as pv

from .provenance import Clock, origin, write

BUDGETS: dict[str, list[dict[str, Any]]] = {
    "guide": [{"method": "svi", "family": "diagonal", "num_steps": 0, "num_draws": 4000}],
    "SIR": [{"num_particles": num, "num_draws": 4000} for num in (10, 100, 1000, 10_000)],
    "SVI, diagonal": [
        {"method": "svi", "family": "diagonal", "num_steps": num, "num_draws": 4000} for num in (5, 20, 80, 200)
    ],
    "SVI, full": [{"method": "svi", "num_steps": num, "num_draws": 4000} for num in (5, 20, 80, 200)],
    "HMC": [
        {"method": "hmc", "num_warmup": warm_up, "num_draws": num}
        for warm_up, num in ((15, 64), (60, 256), (150, 1024), (150, 4000), (300, 8000))
    ],
    "NUTS": [
        {"method": "nuts", "num_warmup": warm_up, "num_draws": num}
        for warm_up, num in ((15, 64), (60, 256), (150, 1024))
    ],
}
_FEW = 5  # datapoints for NUTS, which takes one after the other
_CELLS = 8  # along each dimension


class Gaussian:
    """The exact posteriors of a linear-Gaussian model with two latent dimensions."""

    def __init__(self, problem: pv.problems.LinearGaussian, x: Tensor) -> None:
        self.loc = problem.posterior(x).mean
        self.scale_tril = torch.linalg.cholesky(problem.posterior_covariance)
        self.scale = problem.posterior_covariance.diagonal().sqrt()
        self.log_evidence = problem.log_evidence(x)

    def uniforms(self, z: Float[Tensor, "draws batch 2"]) -> Float[Tensor, "draws batch 2"]:
        """Return a transform of draws to the unit square; exact draws become uniform and independent."""
        away = (z - self.loc).flatten(0, 1).T
        standardised = torch.linalg.solve_triangular(self.scale_tril, away, upper=False).T.reshape(z.shape)
        return Normal(0.0, 1.0).cdf(standardised)

    def first(self, num: int) -> Gaussian:
        """Return the posteriors of the first datapoints."""
        found = copy(self)
        found.loc = self.loc[:num]
        found.log_evidence = self.log_evidence[:num]
        return found

    def mass(self, low: Float[Tensor, "batch 2"], high: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
        """Return the posterior's mass between these ends, in each dimension by itself."""
        marginal = Normal(self.loc, self.scale)
        return marginal.cdf(high) - marginal.cdf(low)


class Grid:
    """The posteriors of a VAE with two latent dimensions and Bernoulli pixels, on a grid that is decoded once."""

    def __init__(self, vae: pv.VAE, x: Tensor, *, reach: float = 5.5, num: int = 401) -> None:
        self.axis = torch.linspace(-reach, reach, num, dtype=torch.float64)
        self.step = (self.axis[1] - self.axis[0]).item()
        nodes = torch.cartesian_prod(self.axis, self.axis)
        with torch.no_grad():
            decoded = [vae.decode(part.to(x.dtype)).log_prob(x[:, None]) for part in nodes.split(4096)]
        log_p = torch.cat(decoded, 1).double() + Normal(0.0, 1.0).log_prob(nodes).sum(-1)
        self.log_evidence = log_p.logsumexp(1) + 2 * torch.tensor(self.step).log()
        self.cells = log_p.softmax(1).float().reshape(len(x), num, num)
        self.marginals = torch.stack([self.cells.sum(2), self.cells.sum(1)], 1).double()

    def uniforms(self, z: Float[Tensor, "draws batch 2"]) -> Float[Tensor, "draws batch 2"]:
        """Return a transform as of :class:`Gaussian`: the cdf of the first dimension, and of the second given it."""
        first = self._reached(self.marginals[:, 0], z[..., 0].T)
        found = torch.empty_like(z, dtype=torch.float64)
        for place, (u, cells) in enumerate(zip(first, self.cells, strict=True)):
            rows = ((z[:, place, 0] + self.axis[-1]) / self.step).round().long().clamp(0, len(cells) - 1)
            given_first = cells.double().clamp(min=1e-300)
            given_first = given_first / given_first.sum(1, keepdim=True)
            found[:, place, 0] = u
            found[:, place, 1] = self._reached(given_first[rows], z[:, place, 1][:, None])[:, 0]
        return found

    def first(self, num: int) -> Grid:
        """Return the posteriors of the first datapoints."""
        found = copy(self)
        found.cells = self.cells[:num]
        found.marginals = self.marginals[:num]
        found.log_evidence = self.log_evidence[:num]
        return found

    def mass(self, low: Float[Tensor, "batch 2"], high: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
        """Return the posterior's mass between these ends, in each dimension by itself."""
        ends = torch.stack([low, high], -1)
        reached = torch.stack([self._reached(self.marginals[:, dim], ends[:, dim]) for dim in (0, 1)], 1)
        return reached[..., 1] - reached[..., 0]

    def _reached(self, mass: Float[Tensor, "rows axis"], at: Tensor) -> Tensor:
        """Return the cumulative distribution functions, linear within a cell, at points ``[rows, points]``."""
        upper = mass.cumsum(1)
        place = (at.double() + self.axis[-1]) / self.step + 0.5
        cell = place.floor().long().clamp(0, len(self.axis) - 1)
        return upper.gather(1, cell) - mass.gather(1, cell) * (1 - (place - cell).clamp(0, 1))


class Problem(NamedTuple):
    """A pair, its data, and their exact posteriors."""

    name: str
    model: Any
    guide: Any
    x: Tensor
    truth: Gaussian | Grid


def divergence(uniforms: Float[Tensor, "draws batch 2"]) -> Float[Tensor, " batch"]:
    """Return KL(draws || posterior), from the numbers of draws in cells of equal mass."""
    cell = (uniforms * _CELLS).long().clamp(0, _CELLS - 1)
    number = cell[..., 0] * _CELLS + cell[..., 1]
    share = torch.nn.functional.one_hot(number.T, _CELLS**2).double().mean(1)
    return torch.special.xlogy(share, share * _CELLS**2).sum(1)


def refined(problem: Problem, options: dict[str, Any], *, seed: int) -> pv.Refinement:
    """Return refined draws; NUTS takes one datapoint after the other, each with a seed of its own."""
    batch_size = 1 if options.get("method") == "nuts" else len(problem.x)
    parts = []
    for number, x in enumerate(problem.x.split(batch_size)):
        parts.append(pv.refine(problem.model, problem.guide, x, seed=seed + number, **options))
    return pv.Refinement.joined(parts)


def examined(problem: Problem, name: str, options: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Refine at one budget, compare with the exact posteriors, and return the row of the record."""
    clock = Clock()
    found = refined(problem, options, seed=seed)
    spent = clock.read()
    z = found.z["z"].double()
    kl = divergence(problem.truth.uniforms(z))
    error = found.evidence.value - problem.truth.log_evidence
    return {
        "problem": problem.name,
        "method": name,
        "budget": {key: value for key, value in options.items() if key != "method"},
        "datapoints": len(problem.x),
        "evaluations": found.evidence.num_evaluations.double().mean().item(),
        "kl": kl.mean().item(),
        "kl_error": kl.std().item() / len(kl) ** 0.5,
        "kl_of_exact_draws": (_CELLS**2 - 1) / (2 * len(z)),
        "coverage_90": problem.truth.mass(z.quantile(0.05, 0), z.quantile(0.95, 0)).mean().item(),
        "largest_r_hat": None if found.r_hat.isnan().any() else found.r_hat.max().item(),
        "smallest_ess": found.ess.min().item(),
        "median_ess": found.ess.median().item(),
        "elbo": found.elbo.mean().item(),
        "gain": found.mean_gain.value.item(),
        "gain_error": found.mean_gain.monte_carlo_error.item(),
        "evidence_minus_exact": error.mean().item(),
        "evidence_error": found.evidence.monte_carlo_error,
        "ok": (found.verdict == "ok").mean().item(),
        **spent,
    }


def linear_gaussian(num: int) -> Problem:
    """Return the linear-Gaussian problem, with its shifted guide."""
    W = torch.tensor([[1.0, 0.8], [0.5, 1.0], [0.4, 1.0], [1.0, 0.2], [0.3, 0.2]], dtype=torch.float64)
    problem = pv.problems.linear_gaussian(W=W, scale=0.5**0.5)
    x = problem.sample(num, seed=0)
    guide = problem.guide(shift=(0.5, -0.4), scale=(0.5, 0.3))
    return Problem("linear-Gaussian", problem.model, guide, x, Gaussian(problem, x))


def digits(num: int, num_epochs: int, *, nodes: int = 401) -> Problem:
    """Return the digits that were not trained on, with a trained network."""
    images = pv.data.load("digits")
    num_train = 1294
    x_train = pv.data.Pixels(images.x_train[:num_train], "dynamic", max_value=images.max_value)
    held_out = torch.cat([torch.as_tensor(images.x_test), torch.as_tensor(images.x_train[num_train:])])
    x = pv.data.Pixels(held_out, "static", max_value=images.max_value)[:num]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(64, 64), data_mean=x_train.mean)
    pv.fit(
        vae,
        x_train,
        num_epochs=num_epochs,
        batch_size=64,
        learning_rate=3e-3,
        schedule="cosine",
        progress=False,
    )
    return Problem("digits", vae.model, vae.guide, x, Grid(vae, x, num=nodes))


COLUMNS = ("problem", "method", "budget", "KL", "exact", "in 90%", "R-hat", "ESS", "nats gained", "log p(x) off", "ok")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown; ``exact`` is the KL of the same number of exact draws."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [_cells(row) for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    budget = {key.removeprefix("num_"): value for key, value in row["budget"].items() if key != "family"}
    return [
        row["problem"],
        row["method"],
        ", ".join(f"{value} {key}" for key, value in budget.items()),
        f"{row['kl']:.4f} ± {row['kl_error']:.4f}",
        f"{row['kl_of_exact_draws']:.4f}",
        f"{row['coverage_90']:.3f}",
        "" if row["largest_r_hat"] is None else f"{row['largest_r_hat']:.3f}",
        f"{row['smallest_ess']:.0f}",
        f"{row['gain']:.3f} ± {row['gain_error']:.3f}",
        f"{row['evidence_minus_exact']:+.3f} ± {row['evidence_error']:.3f}",
        f"{row['ok']:.0%}",
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("refinement.json"), help="the record to write; a table is written beside it"
    )
    parser.add_argument("--images", type=int, default=503, help="the number of datapoints of each problem")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of training on the digits")
    methods = list(BUDGETS)
    parser.add_argument(
        "--only", nargs="*", default=methods, choices=methods, metavar="METHOD", help="only these methods"
    )
    parser.add_argument("--threads", type=int, default=1, help="the number of processor threads")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    provenance, clock = origin(argv, seed=0), Clock()
    rows = []
    for problem in (linear_gaussian(args.images), digits(args.images, args.epochs)):
        few = problem._replace(x=problem.x[:_FEW], truth=problem.truth.first(_FEW))
        for name in args.only:
            datapoints = few if name == "NUTS" else problem
            for options in BUDGETS[name]:
                rows.append(examined(datapoints, name, options, seed=0))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    write(args.out, {"provenance": provenance | clock.read(), "rows": rows})
    args.out.with_suffix(".md").write_text(table(rows))
