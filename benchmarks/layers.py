r"""Does a second stochastic layer pay? Burda's two networks on MNIST, after as many epochs and after as much time.

Trains the one-layer and the two-layer network of the IWAE paper in the same way for the same number of epochs; then the
one-layer network anew, for as many epochs as take it the time of the two-layer one, by the ratio of times of a step,
measured in turn. All are evaluated by importance sampling from their guides on the same binarised test images. Each
training is a run folder in OUT, so that after Ctrl-C the same command goes on where it was.
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.cli import runs
from pyro_vae.cli.build import build, objective_of, split
from pyro_vae.cli.config import TrainConfig
from pyro_vae.errors import ConfigError
from pyro_vae.evidence import LogEvidence
from pyro_vae.training.state import read_epochs

from .provenance import Clock, origin, write

_ROUNDS, _STEPS = 15, 10


def config_of(preset: Any, num_epochs: int, args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        dataset=args.dataset,
        preset=preset,
        objective="iwae",
        gradient="dreg",
        num_particles=args.particles,
        num_epochs=num_epochs,
        batch_size=100,
        learning_rate=args.learning_rate,
        eval_particles=10,
        data_dir=args.data_dir and str(args.data_dir),
        out=str(args.out / f"{preset}-{num_epochs}"),
    ).resolved()


def step_ratio(args: argparse.Namespace, x_train: pv.data.Pixels) -> float:
    """How many times as long a step of two layers takes as one of one layer: the median over rounds, each in turn."""
    steps = {}
    for preset in ("burda", "burda_two_layer"):
        vae = build(config_of(preset, 1, args), x_train)
        loss = objective_of(config_of(preset, 1, args))(vae.model, vae.guide)
        steps[preset] = loss, torch.optim.Adam(vae.parameters())

    def seconds(loss: Any, optimiser: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        for step in range(_STEPS):
            optimiser.zero_grad()
            loss(x_train[100 * step : 100 * (step + 1)]).backward()
            optimiser.step()
        return time.perf_counter() - start

    rounds = [[seconds(*steps[preset]) for preset in steps] for _ in range(_ROUNDS + 1)][1:]
    return statistics.median(two / one for one, two in rounds)


def trained(config: TrainConfig) -> tuple[pv.HierarchicalVAE | pv.VAE, dict[str, Any]]:
    """A finished run, which may have been begun or finished before, and what is to be noted of it."""
    folder = Path(str(config.out))
    if not (folder / "model.safetensors").exists():
        begun = (folder / "config.json").exists()
        finished = runs.resume(folder) if begun else runs.train(config)
        if finished.evaluation is None:
            raise KeyboardInterrupt
    found, vae = runs.load_run(folder)
    if replace(found, data_dir=config.data_dir) != config:
        raise ConfigError(f"{folder} was trained with other options: choose another --out, or take it away")
    last = read_epochs(folder / "history.csv")[-1]
    told = {"epochs": last.epoch, "seconds": last.seconds, "validation_bound": last.validation_bound}
    return vae, {"config": {**config.to_dict(), "data_dir": "DATA", "out": folder.name}, **told}  # pyright: ignore[reportReturnType]


def paired(one: Tensor, other: Tensor) -> dict[str, float]:
    gain = other - one
    return {"mean": gain.mean().item(), "error": (gain.std() / len(gain) ** 0.5).item()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="mnist", choices=pv.data.DATASETS)
    parser.add_argument("--data-dir", type=Path, help="torchvision's data folder")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--particles", type=int, default=5, help="of the bound that is maximised")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--draws", type=int, default=5000, help="per test image, for log p(x)")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    provenance, clock = origin(argv, seed=0), Clock()
    path = args.out / "layers.json"
    source = pv.data.load(args.dataset, data_dir=args.data_dir)
    x_train, _, x_test, _ = split(config_of("burda", args.epochs, args), source)
    x_test = x_test[: args.images]
    # Measured once: another time it would differ a little, and ask for another run.
    ratio = json.loads(path.read_text())["step_ratio"] if path.exists() else step_ratio(args, x_train)
    longer = round(args.epochs * ratio)
    print(f"a step of two layers takes {ratio:.2f} times as long as one of one layer", flush=True)
    networks = {
        "one layer": config_of("burda", args.epochs, args),
        "two layers": config_of("burda_two_layer", args.epochs, args),
        "one layer, as much time": config_of("burda", longer, args),
    }
    record: dict[str, Any] = {"step_ratio": ratio, "images": len(x_test), "networks": {}}
    found: dict[str, LogEvidence] = {}
    for name, config in networks.items():
        vae, told = trained(config)
        found[name] = pv.evidence.importance(vae.model, vae.guide, x_test, num_particles=args.draws, progress=True)
        elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=10)
        told |= {key: getattr(found[name], key) for key in ("mean", "monte_carlo_error", "test_set_error")}
        told |= {"elbo": elbo.mean, "active": active_units(vae, x_test)}
        record["networks"][name] = told
        print(f"{name:26}{told['mean']:10.3f} ± {told['test_set_error']:.3f}, ELBO {elbo.mean:.3f}", flush=True)
        record["two layers above"] = {
            other: paired(found[other].value, found["two layers"].value)
            for other in found
            if other != "two layers" and "two layers" in found
        }
        write(path, {**record, "provenance": provenance | clock.read()})
    print(record["two layers above"])


def active_units(vae: Any, x: Tensor) -> dict[str, int | None]:
    return {name: part.num_active for name, part in pv.diagnostics.latent_summary(vae.model, vae.guide, x).items()}
