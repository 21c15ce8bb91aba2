r"""Cost and noise of gradient estimators: seconds per step and variance, relative to ``total``.

The network is Burda's one-layer net on random binary images of MNIST's size, batch 100. All estimators of one number of
particles are timed in turn, round after round, on one thread, and each round's time is divided by that of ``total`` in
the same round; the medians of these ratios are reported. Beside them stands, for the same network after some steps of
training, the variance of the encoder's gradient relative to that of ``total``. Both together say which estimator pays.
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
    """Return the gradient with respect to all parameters as one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss(x), parameters)])


def ratios(losses: dict, x: torch.Tensor, vae: pv.VAE, rounds: int) -> dict[str, float]:
    """Return the median over rounds of the time of a gradient relative to that of ``total``."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    parameters = list(vae.parameters())
    for _ in range(rounds + 1):  # the first round warms up
        for name, loss in losses.items():
            start = time.perf_counter()
            torch.autograd.grad(loss(x), parameters)
            seconds[name].append(time.perf_counter() - start)
    medians = {}
    for name, taken in seconds.items():
        by_round = [own / total for own, total in zip(taken[1:], seconds["total"][1:], strict=True)]
        medians[name] = statistics.median(by_round)
    return medians


def noise(losses: dict, x: torch.Tensor, vae: pv.VAE, repeats: int) -> dict[str, float]:
    """Return the total variance of the encoder's gradient relative to that of ``total``."""
    parameters = list(vae.encoder.parameters())
    variance = {}
    for name, loss in losses.items():
        torch.manual_seed(1)
        gradients = torch.stack([gradient_of(loss, x, parameters) for _ in range(repeats)])
        variance[name] = gradients.var(0).sum().item()
    return {name: value / variance["total"] for name, value in variance.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("gradient_cost.json"), help="the record to write")
    parser.add_argument("--rounds", type=int, default=15, help="how often each estimator is timed")
    parser.add_argument("--repeats", type=int, default=50, help="gradients for the variance of each estimator")
    parser.add_argument("--particles", type=int, nargs="*", default=[5, 50, 200], help="numbers of particles")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(1)
    provenance, clock = origin(argv, seed=0), Clock()
    torch.manual_seed(0)
    patterns = torch.rand(10, 1, 28, 28)
    data = torch.bernoulli(patterns[torch.randint(10, (2000,))] ** 2)
    vae = pv.presets.burda_vae(data_shape=(1, 28, 28), data_mean=data.mean(0))
    pv.fit(vae, data, objective=IWAE(num_particles=5), num_epochs=5, batch_size=100, progress=False)
    x = data[:100]
    rows = []
    print(f"{'particles':>9}  {'gradient':20}{'time / total':>14}{'variance / total':>18}")
    for num_particles in args.particles:
        losses = {name: make(num_particles=num_particles)(vae.model, vae.guide) for name, make in ESTIMATORS.items()}
        time_ratios = ratios(losses, x, vae, args.rounds)
        variance_ratios = noise(losses, x, vae, args.repeats)
        for name in losses:
            row = {
                "num_particles": num_particles,
                "gradient": name,
                "time": time_ratios[name],
                "variance": variance_ratios[name],
            }
            rows.append(row)
            print(f"{num_particles:9}  {name:20}{row['time']:14.2f}{row['variance']:18.3g}", flush=True)
    record = {"rounds": args.rounds, "repeats": args.repeats, "provenance": provenance | clock.read(), "rows": rows}
    write(args.out, record)
