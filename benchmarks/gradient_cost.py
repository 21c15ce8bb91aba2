r"""What a gradient estimator costs: seconds per step relative to ``total``, and how noisy what it buys is.

The network is Burda's one-layer net on random binary images of MNIST's size, batch 100. All estimators of one number of
particles are timed in turn, round after round, on one thread, and each round's time is divided by that of ``total`` in
the same round; the medians of these ratios are reported. Beside it, for the same network after some steps of training,
the variance of the encoder's gradient relative to that of ``total``; both together say what pays.
"""

from __future__ import annotations

__all__ = ["ESTIMATORS", "add_arguments", "run"]

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae.objectives import IWAE

from .provenance import Clock, origin, write

ESTIMATORS = {
    "total": IWAE,
    "path": partial(IWAE, gradient="path"),
    "dreg": partial(IWAE, gradient="dreg"),
    "vimco": partial(IWAE, gradient="vimco"),
    "total, resampled": partial(IWAE, resampled=True),
    "dreg, resampled": partial(IWAE, gradient="dreg", resampled=True),
}


def gradient_of(loss: torch.nn.Module, x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss(x), parameters)])


def ratios(losses: dict, x: torch.Tensor, vae: pv.VAE, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    parameters = list(vae.parameters())
    for _ in range(rounds + 1):  # the first round warms up
        for name, loss in losses.items():
            start = time.perf_counter()
            torch.autograd.grad(loss(x), parameters)
            seconds[name].append(time.perf_counter() - start)
    each = {
        name: [a / b for a, b in zip(taken[1:], seconds["total"][1:], strict=True)] for name, taken in seconds.items()
    }
    return {name: statistics.median(values) for name, values in each.items()}


def noise(losses: dict, x: torch.Tensor, vae: pv.VAE, repeats: int) -> dict[str, float]:
    parameters = list(vae.encoder.parameters())
    variance = {}
    for name, loss in losses.items():
        torch.manual_seed(1)
        variance[name] = torch.stack([gradient_of(loss, x, parameters) for _ in range(repeats)]).var(0).sum().item()
    return {name: value / variance["total"] for name, value in variance.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("gradient_cost.json"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--particles", type=int, nargs="*", default=[5, 50, 200])


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(1)
    provenance, clock = origin(argv, seed=0), Clock()
    torch.manual_seed(0)
    patterns = torch.rand(10, 1, 28, 28)
    data = torch.bernoulli(patterns[torch.randint(10, (2000,))] ** 2)
    vae = pv.presets.burda_vae(data_shape=(1, 28, 28), data_mean=data.mean(0))
    pv.fit(vae, data, objective=IWAE(num_particles=5), num_epochs=5, batch_size=100, progress=False)
    x, rows = data[:100], []
    print(f"{'particles':>9}  {'gradient':20}{'time / total':>14}{'variance / total':>18}")
    for num_particles in args.particles:
        losses = {name: make(num_particles=num_particles)(vae.model, vae.guide) for name, make in ESTIMATORS.items()}
        taken, spread = ratios(losses, x, vae, args.rounds), noise(losses, x, vae, args.repeats)
        for name in losses:
            rows.append(
                {"num_particles": num_particles, "gradient": name, "time": taken[name], "variance": spread[name]}
            )
            print(f"{num_particles:9}  {name:20}{taken[name]:14.2f}{spread[name]:18.3g}", flush=True)
    record = {"rounds": args.rounds, "repeats": args.repeats, "provenance": provenance | clock.read(), "rows": rows}
    write(args.out, record)
