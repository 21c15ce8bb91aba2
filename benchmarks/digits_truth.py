r"""Every objective on the digits with two latent dimensions, where log p(x) is known: does any bound exceed it?

Each objective trains the same network from the same start for the same number of steps. Then log p(x) of every test
digit is summed over a grid in the latent plane, refined until nothing changes, and the value that the objective reports
is compared with it, digit by digit: the mean of independent estimates, in its own standard errors. A lower bound that
is above the truth by more than five of them is wrong. Objectives that do not claim to be bounds are reported too.
"""

from __future__ import annotations

__all__ = ["OBJECTIVES", "add_arguments", "examined", "run"]

import argparse
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    PIWAE,
    TVO,
    BetaTCVAE,
    BetaVAE,
    FreeBits,
    InfoVAE,
    Objective,
    Renyi,
    ReweightedWakeSleep,
)

from .provenance import Clock, origin, write

OBJECTIVES = {
    "ELBO": ELBO,
    "ELBO, analytic KL": partial(ELBO, analytic_kl=True),
    "ELBO, path": partial(ELBO, gradient="path"),
    "ELBO, K = 8": partial(ELBO, num_particles=8),
    "ELBO, K = 8, reinforce": partial(ELBO, num_particles=8, gradient="reinforce"),
    "ELBO, K = 8, reinforce_baseline": partial(ELBO, num_particles=8, gradient="reinforce_baseline"),
    "ELBO, K = 8, rloo": partial(ELBO, num_particles=8, gradient="rloo"),
    "IWAE, K = 8": partial(IWAE, num_particles=8),
    "IWAE, K = 8, path": partial(IWAE, num_particles=8, gradient="path"),
    "IWAE, K = 8, dreg": partial(IWAE, num_particles=8, gradient="dreg"),
    "IWAE, K = 8, vimco": partial(IWAE, num_particles=8, gradient="vimco"),
    "IWAE, K = 8, resampled": partial(IWAE, num_particles=8, resampled=True),
    "IWAE, K = 8, dreg, resampled": partial(IWAE, num_particles=8, gradient="dreg", resampled=True),
    "Renyi 0.5, K = 8": partial(Renyi, alpha=0.5, num_particles=8),
    "Renyi 0.5, K = 8, dreg": partial(Renyi, alpha=0.5, num_particles=8, gradient="dreg"),
    "Renyi -0.5, K = 8": partial(Renyi, alpha=-0.5, num_particles=8),
    "MIWAE, M = 2, K = 4": partial(MIWAE, num_groups=2, num_particles=4),
    "PIWAE, M = 2, K = 4": partial(PIWAE, num_groups=2, num_particles=4),
    "CIWAE 0.5, K = 8": partial(CIWAE, beta=0.5, num_particles=8),
    "TVO, T = 5, K = 8": partial(TVO, num_pieces=5, num_particles=8),
    "reweighted wake-sleep, K = 8": partial(ReweightedWakeSleep, num_particles=8),
    "reweighted wake-sleep, half asleep": partial(ReweightedWakeSleep, num_particles=8, insomnia=0.5),
    "CUBO 2, K = 8": partial(CUBO, num_particles=8),
    "CUBO 2, K = 8, dreg": partial(CUBO, num_particles=8, gradient="dreg"),
    "JVI, K = 8": partial(JVI, num_particles=8),
    "beta-VAE 4": partial(BetaVAE, beta=4.0),
    "beta-VAE 0.5": partial(BetaVAE, beta=0.5),
    "warm-up, linear": partial(BetaVAE, beta=pv.schedules.LinearWarmup(num_steps=1000)),
    "warm-up, cyclical": partial(BetaVAE, beta=pv.schedules.CyclicalWarmup(period=500, num_cycles=4)),
    "free bits 0.5": partial(FreeBits, threshold=0.5),
    "beta-TCVAE 4": partial(BetaTCVAE, beta=4.0, num_data=1294),
    "InfoVAE, MMD x 100": partial(InfoVAE, mmd_weight=100.0),
}


@torch.no_grad()
def reported(objective: Objective, vae: pv.VAE, x: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Return the mean and standard error, per datapoint, of the values that the objective reports."""
    module = objective(vae.model, vae.guide)
    found = torch.stack([module.bound(x) for _ in range(repeats)])
    return found.mean(0), found.std(0) / math.sqrt(repeats)


def examined(name: str, data: dict, num_steps: int, repeats: int, batch_size: int = 64) -> dict:
    """Train a network with one objective, and return its row of the record."""
    objective = OBJECTIVES[name]()
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(200, 200), data_mean=data["train"].mean)
    steps_per_epoch = math.ceil(len(data["train"]) / batch_size)
    start = time.perf_counter()
    pv.fit(
        vae,
        data["train"],
        objective=objective,
        num_epochs=math.ceil(num_steps / steps_per_epoch),
        batch_size=batch_size,
        learning_rate=1e-3,
        progress=False,
    )
    seconds = time.perf_counter() - start
    vae.double().eval()
    x = data["test"].double()
    truth = pv.evidence.quadrature(vae.model, vae.guide, x)
    value, stderr = reported(objective, vae, x, repeats)
    elbo = pv.evidence.elbo(vae.model, vae.guide, x, num_particles=500)
    excess = value - truth.value
    noise = stderr.clamp(min=1e-9)  # nats: where the value has no noise, it has rounding errors
    return {
        "objective": name,
        "side": objective.side,
        "log_evidence": truth.mean,
        "reported": value.mean().item(),
        "monte_carlo_error": stderr.square().sum().sqrt().item() / len(x),
        "elbo": elbo.mean,
        "excess_in_standard_errors": (excess / noise).max().item(),
        "mean_excess_in_standard_errors": (excess.sum() / noise.square().sum().sqrt()).item(),
        "grid_nodes": truth.num_particles.max().item(),
        "unsettled": truth.share("unreliable"),
        "training_seconds": round(seconds, 1),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("digits_truth.json"), help="the record to write")
    parser.add_argument("--steps", type=int, default=2000, help="of training, for each objective")
    parser.add_argument("--repeats", type=int, default=1000, help="independent estimates by each objective")
    names = list(OBJECTIVES)
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="NAME", help="only these objectives")
    parser.add_argument("--threads", type=int, default=2, help="the number of processor threads")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    provenance, clock = origin(argv, seed=0), Clock()
    digits = pv.data.load("digits")
    num_train = 1294  # the others are for validation elsewhere, as in `pyro-vae train`
    data = {
        "train": pv.data.Pixels(digits.x_train[:num_train], "dynamic", max_value=digits.max_value),
        "test": pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:],
    }
    print(f"{'objective':36}{'log p(x)':>10}{'reported':>10}{'ELBO':>10}{'excess, standard errors':>26}")
    rows = []
    for name in args.only:
        row = examined(name, data, args.steps, args.repeats)
        rows.append(row)
        numbers = f"{row['log_evidence']:10.3f}{row['reported']:10.3f}{row['elbo']:10.3f}"
        mark = "" if row["side"] == "lower" else "  not a bound"
        print(f"{name:36}{numbers}{row['excess_in_standard_errors']:26.2f}{mark}", flush=True)
    record = {"steps": args.steps, "repeats": args.repeats, "provenance": provenance | clock.read(), "rows": rows}
    write(args.out, record)
    wrong = [row["objective"] for row in rows if row["side"] == "lower" and row["excess_in_standard_errors"] > 5]
    print(f"bounds above log p(x): {', '.join(wrong) or 'none'}")
