r"""Does a second stochastic layer pay? Burda's two networks on MNIST, after equally many epochs and in equal time.

The benchmark trains the one-layer and the two-layer network of the IWAE paper in the same way for the same number of
epochs; then the one-layer network anew, for the number of epochs that takes the time of the two-layer one, by the ratio
of times of a step, measured in turn. All are evaluated by importance sampling from their guides on the same binarised
test images. Each training is a run folder in OUT, so that after Ctrl-C the same command goes on where it was.
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

_ROUNDS = 15  # of timing
_STEPS = 10  # of training in a round


def config_of(preset: Any, num_epochs: int, args: argparse.Namespace) -> TrainConfig:
    """Return the configuration of a training run."""
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
    """Return the time of a step of two layers over that of one layer, as the median over rounds, each timed in turn."""
    networks = {}
    for preset in ("burda", "burda_two_layer"):
        config = config_of(preset, 1, args)
        vae = build(config, x_train)
        loss = objective_of(config)(vae.model, vae.guide)
        networks[preset] = loss, torch.optim.Adam(vae.parameters())

    def seconds(loss: Any, optimiser: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        for step in range(_STEPS):
            optimiser.zero_grad()
            loss(x_train[100 * step : 100 * (step + 1)]).backward()
            optimiser.step()
        return time.perf_counter() - start

    ratios = []
    for _ in range(_ROUNDS + 1):
        one = seconds(*networks["burda"])
        two = seconds(*networks["burda_two_layer"])
        ratios.append(two / one)
    return statistics.median(ratios[1:])  # the first round warms up


def trained(config: TrainConfig) -> tuple[pv.HierarchicalVAE | pv.VAE, dict[str, Any]]:
    """Return a trained network and its part of the record; a run that was begun or finished before is used."""
    folder = Path(str(config.out))
    if not (folder / "model.safetensors").exists():
        begun = (folder / "config.json").exists()
        finished = runs.resume(folder) if begun else runs.train(config)
        if finished.evaluation is None:  # Ctrl-C while training stops the benchmark too
            raise KeyboardInterrupt
    found, vae = runs.load_run(folder)
    if replace(found, data_dir=config.data_dir) != config:
        raise ConfigError(f"{folder} was trained with other options: choose another --out, or remove the folder")
    last = read_epochs(folder / "history.csv")[-1]
    row = {
        "config": {**config.to_dict(), "data_dir": "DATA", "out": folder.name},
        "epochs": last.epoch,
        "seconds": last.seconds,
        "validation_bound": last.validation_bound,
    }
    return vae, row  # pyright: ignore[reportReturnType]


def paired(one: Tensor, other: Tensor) -> dict[str, float]:
    """Return the mean difference on the same images, and its standard error."""
    gain = other - one
    return {"mean": gain.mean().item(), "error": (gain.std() / len(gain) ** 0.5).item()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="mnist", choices=pv.data.DATASETS)
    parser.add_argument("--data-dir", type=Path, help="torchvision's data folder, for all data sets but digits")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="the folder to write to")
    parser.add_argument("--epochs", type=int, default=20, help="of training, by either network")
    parser.add_argument("--particles", type=int, default=5, help="particles of the bound that is maximised")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--draws", type=int, default=5000, help="draws per test image, for log p(x)")
    parser.add_argument("--images", type=int, default=10_000, help="the number of test images")
    parser.add_argument("--threads", type=int, default=2, help="the number of processor threads")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    provenance, clock = origin(argv, seed=0), Clock()
    path = args.out / "layers.json"
    source = pv.data.load(args.dataset, data_dir=args.data_dir)
    x_train, _, x_test, _ = split(config_of("burda", args.epochs, args), source)
    x_test = x_test[: args.images]
    # The ratio is measured once: another time it would differ a little, and another run would be needed.
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
        vae, row = trained(config)
        evidence = pv.evidence.importance(vae.model, vae.guide, x_test, num_particles=args.draws, progress=True)
        elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=10)
        found[name] = evidence
        record["networks"][name] = {
            **row,
            "mean": evidence.mean,
            "monte_carlo_error": evidence.monte_carlo_error,
            "test_set_error": evidence.test_set_error,
            "elbo": elbo.mean,
            "active": active_units(vae, x_test),
        }
        print(f"{name:26}{evidence.mean:10.3f} ± {evidence.test_set_error:.3f}, ELBO {elbo.mean:.3f}", flush=True)
        record["two layers above"] = _gains_of_two_layers(found)
        write(path, {**record, "provenance": provenance | clock.read()})
    print(record["two layers above"])


def _gains_of_two_layers(found: dict[str, LogEvidence]) -> dict[str, dict[str, float]]:
    """Return what two layers gain over each other network, once they are evaluated."""
    if "two layers" not in found:
        return {}
    others = [name for name in found if name != "two layers"]
    return {name: paired(found[name].value, found["two layers"].value) for name in others}


def active_units(vae: Any, x: Tensor) -> dict[str, int | None]:
    """Return the number of active units of each layer."""
    return {name: part.num_active for name, part in pv.diagnostics.latent_summary(vae.model, vae.guide, x).items()}
