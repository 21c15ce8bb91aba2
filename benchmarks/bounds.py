r"""Every bound and estimator of log p(x) against its budget, beside the exact log p(x) of networks with two latents.

One network is trained per objective, on the digits or, with --data-dir, on MNIST. Its log p(x) of the test images is
summed over a grid; then every estimator gets 2 to 10,000 decoder evaluations per image. The benchmark writes a record
(JSON), its tables (Markdown) and a figure (PNG). After Ctrl-C the finished networks are kept, and the same command
goes on from there.
"""

from __future__ import annotations

__all__ = ["OBJECTIVES", "TIERS", "Settings", "add_arguments", "measure", "run"]

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.objectives import ELBO, IWAE

from .bounds_figure import draw
from .bounds_tables import markdown
from .cells import Exam, aa_row, measured, prices
from .estimators import ROSTER
from .provenance import Clock, origin, write

OBJECTIVES = {
    "ELBO": ELBO,
    "IWAE, K = 8": partial(IWAE, num_particles=8),
    "IWAE, K = 8, dreg": partial(IWAE, num_particles=8, gradient="dreg"),
}


@dataclass(frozen=True)
class Settings:
    """The settings that the numbers depend on, besides the code."""

    tier: str
    data: str
    images: int
    """The number of test images, the first of the test set."""
    steps: int
    """The least number of training steps; epochs are not cut."""
    budgets: tuple[int, ...]
    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (200, 200)
    latent_dim: int = 2
    training_binarisation: str = "dynamic"
    test_binarisation: str = "static, seed 0"
    aa_particles: int = 1000


_BUDGETS = (2, 5, 10, 30, 100, 300, 1000, 3000, 10_000)
_FEW_BUDGETS = (2, 10, 100, 1000)
TIERS = {
    ("smoke", "digits"): Settings("smoke", "digits", images=48, steps=300, budgets=_FEW_BUDGETS),
    ("t1", "digits"): Settings("t1", "digits", images=360, steps=2000, budgets=_BUDGETS),
    ("smoke", "mnist"): Settings("smoke", "mnist", images=10, steps=300, budgets=_FEW_BUDGETS),
    ("t1", "mnist"): Settings("t1", "mnist", images=60, steps=3000, budgets=_BUDGETS, batch_size=100),
}
_NUM_DIGITS = 1294  # training digits; the others are for validation elsewhere, as in `pyro-vae train`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tier", choices=("smoke", "t1"), default="smoke", help="smoke takes seconds, t1 minutes")
    parser.add_argument("--data-dir", metavar="DIR", help="use MNIST, with the raw files in DIR/MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), metavar="FOLDER", help="where to write")
    parser.add_argument("--threads", type=int, default=2, help="the number of processor threads")
    parser.add_argument("--images", type=int, help="the number of test images, instead of the tier's")
    parser.add_argument("--steps", type=int, help="the number of training steps, instead of the tier's")
    parser.add_argument("--budgets", type=int, nargs="+", help="decoder evaluations per image, instead of the tier's")
    parser.add_argument("--redraw", action="store_true", help="only write tables and figure, from FOLDER's record")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    settings = _settings(args)
    path = args.out / f"bounds_{settings.data}.json"
    if args.redraw:
        _show(json.loads(path.read_text()), path)
        return
    record = _begun(path, settings, origin(argv, seed=settings.seed))

    try:
        measure(settings, record, args.data_dir, lambda: write(path, record))
    finally:  # after Ctrl-C too, so that nothing finished is lost
        write(path, record)
        _show(record, path)
    for suffix in (".json", ".md", ".png"):
        print(path.with_suffix(suffix))


def measure(settings: Settings, record: dict[str, Any], data_dir: str | None, save: Callable[[], None]) -> None:
    """Train and examine one network after the other, and fill the record."""
    x_train, x_test = _data(settings, data_dir)
    finished = [network["objective"] for network in record["networks"]]  # by a run that was interrupted
    for name in OBJECTIVES:
        if name in finished:
            continue
        network: dict[str, Any] = {"objective": name, "finished": False, "cells": []}
        record["networks"].append(network)
        clock = Clock()
        vae = _trained(name, settings, x_train)
        network["training"] = clock.read()
        exam = _with_truth(vae, x_test, network)
        save()
        _fill(network, exam, settings)
        network |= {"finished": True, **clock.read()}
        save()
    record["finished"] = True


def _fill(network: dict[str, Any], exam: Exam, settings: Settings) -> None:
    """Measure every estimator at every budget, and note it in the network's part of the record."""
    print(f"{network['objective']}: log p(x) {network['log_evidence']:.3f} nats, summed over a grid")
    for place, budget in enumerate(settings.budgets):
        for entry in ROSTER:
            cell = measured(entry, budget, exam, seed=1000 * settings.seed + place)
            if cell is None:
                continue
            network["cells"].append(cell)
            print(_line(cell), flush=True)
    network["prices"] = prices(network["cells"], len(exam.x))
    network["a_a"] = aa_row(exam, num_particles=settings.aa_particles, seed=1000 * settings.seed + 500)


def _line(cell: dict[str, Any]) -> str:
    gap = _or_nan(cell["difference"])
    error = _or_nan(cell["monte_carlo_error"])
    return f"  {cell['estimator']:10}{cell['evaluations']:8.0f}{gap:+10.4f} ± {error:.4f}{cell['cpu_seconds']:8.1f} s"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings of the tier, changed by the options that are given."""
    settings = TIERS[args.tier, "mnist" if args.data_dir else "digits"]
    if args.images:
        settings = replace(settings, images=args.images)
    if args.steps:
        settings = replace(settings, steps=args.steps)
    if args.budgets:
        settings = replace(settings, budgets=tuple(sorted(args.budgets)))
    return settings


def _begun(path: Path, settings: Settings, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a new record, with the networks that the same run had finished if it was interrupted."""
    new: dict[str, Any] = {
        "benchmark": "bounds",
        "finished": False,
        "settings": json.loads(json.dumps(asdict(settings))),
        "provenance": provenance,
        "networks": [],
    }
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    if any(old.get(key) != new[key] for key in ("benchmark", "finished", "settings", "provenance")):
        return new
    kept = [network for network in old["networks"] if network["finished"]]
    if kept:
        print(f"going on after {', '.join(network['objective'] for network in kept)}")
    return new | {"networks": kept}


def _data(settings: Settings, data_dir: str | None) -> tuple[pv.data.Pixels, Tensor]:
    data = pv.data.load(settings.data, data_dir=data_dir)
    num_train = _NUM_DIGITS if settings.data == "digits" else len(data.x_train)
    x_train = pv.data.Pixels(data.x_train[:num_train], "dynamic", max_value=data.max_value)
    x_test = pv.data.Pixels(data.x_test, "static", max_value=data.max_value)[:]
    return x_train, x_test[: settings.images]


def _trained(name: str, settings: Settings, x_train: pv.data.Pixels) -> pv.VAE:
    torch.manual_seed(settings.seed)
    vae = pv.presets.mlp_vae(
        data_shape=x_train.shape,
        latent_dim=settings.latent_dim,
        hidden=settings.hidden,
        data_mean=x_train.mean,
    )
    steps_per_epoch = math.ceil(len(x_train) / settings.batch_size)
    history = pv.fit(
        vae,
        x_train,
        objective=OBJECTIVES[name](),
        num_epochs=math.ceil(settings.steps / steps_per_epoch),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    vae.eval()
    return vae


def _with_truth(vae: pv.VAE, x: Tensor, network: dict[str, Any]) -> Exam:
    """Return the exam with the exact log p(x), from the network in double precision, and note it in the record."""
    clock = Clock()
    truth = pv.evidence.quadrature(vae.double().model, vae.guide, x.double(), progress=True)
    vae.float()
    network |= {
        "log_evidence": truth.mean,
        "test_set_error": truth.test_set_error if len(x) > 1 else None,
        "grid_nodes": truth.num_particles.max().item(),
        "unsettled": truth.share("unreliable"),
        "grid": clock.read(),
    }
    return Exam(vae, x, truth.value)


def _show(record: dict[str, Any], path: Path) -> None:
    """Write the tables and the figure beside the record."""
    path.with_suffix(".md").write_text(markdown(record, path.with_suffix(".png").name))
    if any(network["cells"] for network in record["networks"]):
        draw(record, path.with_suffix(".png"))
