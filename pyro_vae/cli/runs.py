"""A run from its configuration to its folder: train, evaluate, look. Nothing here prints."""

from __future__ import annotations

__all__ = [
    "Run",
    "compare_run",
    "evaluate_run",
    "load_run",
    "loaded",
    "plot_run",
    "record_of",
    "resume",
    "sample_run",
    "train",
    "write_json",
]

import io
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import data, plot
from ..data.arrays import find_device
from ..data.files import replace_file
from ..errors import CheckpointError, ConfigError, require_count
from ..evidence import ESTIMATORS, Proposal, quadrature
from ..models.base import BaseVAE
from ..ops.seeds import seeded
from ..training.checkpoint import load, save
from ..training.fit import fit
from ..training.state import History, previous, read_epochs
from ..workflows.comparison import Comparison, compare
from ..workflows.evaluation import Evaluation, evaluate
from .build import Split, build, objective_of, protocol, split
from .config import TrainConfig, run_folder
from .views import SAMPLES_TITLE, Scene, draw


class Run(NamedTuple):
    """A finished run: its folder and what is in it. An interrupted one has no evaluation and no pictures yet."""

    folder: Path
    config: TrainConfig
    history: History
    protocol: str
    """What the numbers refer to, in one line."""
    evaluation: Evaluation | None
    pictures: list[Path]


def train(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train, evaluate and draw, in a new folder.

    Errors:
        ConfigError: if the folder already holds a run, or anything else.
        DataError: for missing data, or data that do not suit the likelihood.
    """
    config = config.resolved()
    folder = run_folder(config)
    if (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} already holds a run: choose another --out, or go on with `pyro-vae resume {folder}`"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and a run might write over what is there: choose another --out")
    find_device(config.device)
    source = data.load(config.dataset, data_dir=config.data_dir, download=config.download)
    parts = split(config, source)
    with seeded(config.seed, "start"):
        build(config, parts[0]).likelihood.check(parts[2])  # before there is a folder that would be in the way
    write_json(folder / "config.json", config.to_dict())
    try:
        return _train(config, folder, parts, progress)
    finally:
        if not (folder / _CHECKPOINT).exists() and not (folder / _MODEL).exists():
            # Nothing has come of it that would be in the way of another try.
            (folder / "config.json").unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def resume(folder: str | Path, *, data_dir: str | None = None, progress: bool = True) -> Run:
    """Go on with a run that was interrupted; the result is that of an uninterrupted one, bit for bit."""
    config = _config(folder)
    folder = Path(folder)
    if (folder / _MODEL).exists():
        raise ConfigError(f"{folder} is complete: look at it with `pyro-vae evaluate {folder}` or `plot`")
    source = data.load(config.dataset, data_dir=data_dir or config.data_dir)
    return _train(config, folder, split(config, source), progress)


def evaluate_run(
    folder: str | Path,
    *,
    estimator: str = "auto",
    num_particles: int | None = None,
    target_stderr: float | None = None,
    proposal: Proposal | None = None,
    num_images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    progress: bool = True,
) -> tuple[Evaluation, str]:
    """Evaluate a run's model on the test images again; the result, and what it refers to, in words."""
    config, vae, x_test = loaded(folder, data_dir, num_images)
    found = evaluate(
        vae,
        x_test,
        estimator=estimator,
        num_particles=num_particles,
        target_stderr=target_stderr,
        proposal=proposal,
        seed=seed,
        progress=progress,
    )
    asked = {
        "num_particles": num_particles,
        "target_stderr": target_stderr,
        "proposal": proposal,
        "num_images": num_images,
    }
    parts = [found.estimator, *(f"{key}-{value}" for key, value in asked.items() if value is not None), f"seed-{seed}"]
    record = {**record_of(config, found.to_dict(), seed), **asked}
    write_json(Path(folder) / f"evaluation-{'-'.join(parts)}.json", record)
    return found, protocol(config, x_test)


def compare_run(
    folder: str | Path,
    *,
    estimators: Sequence[str] | None = None,
    num_images: int = 100,
    repeats: int = 1,
    seed: int = 0,
    data_dir: str | None = None,
    progress: bool = True,
) -> tuple[Comparison, str]:
    """Estimators of log p(x) on a run's test images, beside the truth if there are at most two latent dimensions."""
    config, vae, x_test = loaded(folder, data_dir, require_count("num_images", num_images, least=2))
    names = [name for name in ESTIMATORS if name != "grid"] if estimators is None else estimators
    exact = (
        quadrature(vae.model, vae.guide, x_test, progress=progress).value
        if sum(vae.latent_dims.values()) <= 2
        else None
    )
    found = compare(
        {name: ESTIMATORS[name] for name in names},
        vae.model,
        vae.guide,
        x_test,
        exact=exact,
        repeats=repeats,
        seed=seed,
        progress=progress,
    )
    write_json(Path(folder) / "comparison.json", record_of(config, found.to_dict(), seed))
    return found, protocol(config, x_test)


def loaded(folder: str | Path, data_dir: str | None, num_images: int | None) -> tuple[TrainConfig, BaseVAE, Tensor]:
    """A run's configuration, its model, and (the first so many of) its test images."""
    config, vae = load_run(folder)
    _, _, x_test, _ = split(config, data.load(config.dataset, data_dir=data_dir or config.data_dir))
    return config, vae, x_test[: None if num_images is None else require_count("num_images", num_images)]


def sample_run(folder: str | Path, *, num: int = 100, seed: int = 0) -> list[Path]:
    """Draw from a run's model: ``samples-NUM.npz`` with z, x and E[x | z], and a picture of the first 100 means."""
    _, vae = load_run(folder)
    with torch.no_grad(), seeded(seed, "sample"):
        z = vae.sample_latents(num)
        p = vae.decode(z)
        x, mean = p.sample(), p.mean
    base = Path(folder) / f"samples-{num}"
    arrays = io.BytesIO()
    np.savez_compressed(arrays, z=z.numpy(), x=x.numpy(), mean=mean.numpy())
    replace_file(base.with_suffix(".npz"), arrays.getvalue())
    title = SAMPLES_TITLE + (f" (the first {_MOST_PICTURES} of {num})" if num > _MOST_PICTURES else "")
    plot.save(plot.images(mean[:_MOST_PICTURES], title=title), base.with_suffix(".png"))
    return [base.with_suffix(".npz"), base.with_suffix(".png")]


def plot_run(folder: str | Path, *, views: Sequence[str] | None = None, data_dir: str | None = None) -> list[Path]:
    """Draw a run's pictures again, or those ``views`` of it that are asked for."""
    config, vae = load_run(folder)
    x_train, _, x_test, y_test = split(config, data.load(config.dataset, data_dir=data_dir or config.data_dir))
    epochs = read_epochs(Path(folder) / "history.csv")
    return draw(Scene(config, vae, epochs, x_train, x_test, y_test), folder, views)


def load_run(folder: str | Path) -> tuple[TrainConfig, BaseVAE]:
    """A run's configuration and trained model."""
    config = _config(folder)
    path = Path(folder) / _MODEL
    if not path.exists():
        raise CheckpointError(path, f"does not exist: the run is not complete, go on with `pyro-vae resume {folder}`")
    return config, load(path)


_CHECKPOINT, _MODEL = "training.safetensors", "model.safetensors"
_MOST_PICTURES = 100


def _train(config: TrainConfig, folder: Path, parts: Split, progress: bool) -> Run:
    assert config.num_epochs is not None
    x_train, x_validation, x_test, y_test = parts
    with seeded(config.seed, "start"):
        vae = build(config, x_train)
    history = fit(
        vae,
        x_train,
        objective=objective_of(config),
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        adam_eps=config.adam_eps,
        max_grad_norm=config.max_grad_norm,
        validation=x_validation,
        patience=config.patience,
        seed=config.seed,
        device=config.device,
        progress=progress,
        checkpoint=folder / _CHECKPOINT,
    )
    history.to_csv(folder / "history.csv")
    if history.interrupted:
        return Run(folder, config, history, protocol(config, x_test), None, [])
    try:
        found = evaluate(
            vae, x_test, estimator="is", num_particles=config.eval_particles, seed=config.seed, progress=progress
        )
    except KeyboardInterrupt:  # everything is in the checkpoint
        return Run(folder, config, history, protocol(config, x_test), None, [])
    vae.cpu()
    record = record_of(config, found.to_dict(), config.seed)
    record["training"] = {"epochs": len(history.epochs), "seconds": history.epochs[-1].seconds}
    write_json(folder / "evaluation.json", record)
    pictures = draw(Scene(config, vae, history.epochs, x_train, x_test, y_test), folder)
    save(vae, folder / _MODEL)  # last: its presence says that the run is complete
    for left in (folder / _CHECKPOINT, previous(folder / _CHECKPOINT)):
        left.unlink(missing_ok=True)
    return Run(folder, config, history, protocol(config, x_test), found, pictures)


def record_of(config: TrainConfig, found: dict[str, Any], seed: int) -> dict[str, Any]:
    """A result with what is needed to make sense of it later."""
    packages = ("pyro-vae", "torch", "pyro-ppl")
    return {
        **found,
        "config": config.to_dict(),
        "seed": seed,
        "versions": {name: version(name) for name in packages},
    }


def _config(folder: str | Path) -> TrainConfig:
    path = Path(folder) / "config.json"
    try:
        options = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder} is not a run: expected a folder with config.json, made by `pyro-vae train`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from None
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: expected a JSON object of options, found {type(options).__name__}")
    return TrainConfig.from_dict(options).resolved()


def write_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())
