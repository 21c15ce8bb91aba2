"""A run and its folder: train from a configuration, resume, evaluate, compare, sample, plot. Nothing here prints."""

from __future__ import annotations

__all__ = ["Run", "compare_run", "evaluate_run", "load_run", "plot_run", "resume", "sample_run", "train"]

import io
import itertools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import data, plot
from ..data.arrays import find_device
from ..data.files import replace_file
from ..errors import CheckpointError, ConfigError, require_count
from ..evidence import ESTIMATORS, quadrature
from ..evidence.budget import require_proposal
from ..models.base import BaseVAE
from ..ops.seeds import seeded
from ..training.checkpoint import load, save
from ..training.fit import fit
from ..training.state import History, previous, read_epochs
from ..workflows.comparison import Comparison, compare
from ..workflows.evaluation import Evaluation, evaluate
from .build import Split, build, describe_test_set, objective_of, split
from .config import TrainConfig
from .views import SAMPLES_TITLE, TrainedRun, draw

_CONFIG, _CHECKPOINT, _MODEL, _HISTORY = "config.json", "training.safetensors", "model.safetensors", "history.csv"
_MOST_PICTURES = 100


class Run(NamedTuple):
    """A run and its results. An interrupted one has no evaluation and no pictures yet."""

    folder: Path
    config: TrainConfig
    history: History
    test_set: str
    """The images and the likelihood that the numbers refer to, in one line."""
    evaluation: Evaluation | None = None
    pictures: Sequence[Path] = ()


def train(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train, evaluate and draw, in a new folder.

    Errors:
        ConfigError: if the folder already holds a run, or anything else.
        DataError: for missing data, or data that do not suit the likelihood.
    """
    config = config.resolved()
    folder = _new_folder(config)
    find_device(config.device)
    images = split(config, data.load(config.dataset, data_dir=config.data_dir, download=config.download))
    vae = build(config, images.train)
    vae.likelihood.check(images.test)  # before there is a folder that would be in the way
    _write_json(folder / _CONFIG, config.to_dict())
    try:
        return _train(config, folder, images, vae, progress)
    finally:
        if not (folder / _CHECKPOINT).exists() and not (folder / _MODEL).exists():
            # The run has left nothing that could be resumed, so that it must not be in the way of another.
            (folder / _CONFIG).unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def resume(folder: str | Path, *, data_dir: str | None = None, progress: bool = True) -> Run:
    """Continue a run that was interrupted; the result is that of an uninterrupted one, bit for bit."""
    folder, config = Path(folder), _read_config(folder)
    if (folder / _MODEL).exists():
        raise ConfigError(f"{folder} is complete: look at it with `pyro-vae evaluate {folder}` or `plot`")
    images = load_split(config, data_dir)
    return _train(config, folder, images, build(config, images.train), progress)


def _train(config: TrainConfig, folder: Path, images: Split, vae: BaseVAE, progress: bool) -> Run:
    history = _fit(config, folder, images, vae, progress)
    history.to_csv(folder / _HISTORY)
    run = Run(folder, config, history, describe_test_set(config, images.test))
    if history.interrupted:
        return run
    try:
        evaluation = evaluate(
            vae, images.test, estimator="is", num_particles=config.eval_particles, seed=config.seed, progress=progress
        )
    except KeyboardInterrupt:  # everything is in the checkpoint
        return run
    vae.cpu()
    training = {"epochs": len(history.epochs), "seconds": history.epochs[-1].seconds}
    write_result(folder / "evaluation.json", config, config.seed, evaluation.to_dict(), training=training)
    pictures = draw(TrainedRun(config, vae, history.epochs, images), folder)
    save(vae, folder / _MODEL)  # last: its presence says that the run is complete
    for left in (folder / _CHECKPOINT, previous(folder / _CHECKPOINT)):
        left.unlink(missing_ok=True)
    return run._replace(evaluation=evaluation, pictures=pictures)


def _fit(config: TrainConfig, folder: Path, images: Split, vae: BaseVAE, progress: bool) -> History:
    assert config.num_epochs is not None
    return fit(
        vae,
        images.train,
        objective=objective_of(config),
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        adam_eps=config.adam_eps,
        max_grad_norm=config.max_grad_norm,
        validation=images.validation,
        patience=config.patience,
        seed=config.seed,
        device=config.device,
        progress=progress,
        checkpoint=folder / _CHECKPOINT,
    )


def evaluate_run(
    folder: str | Path,
    *,
    estimator: str = "auto",
    num_particles: int | None = None,
    target_stderr: float | None = None,
    proposal: Any = None,
    num_images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    progress: bool = True,
) -> tuple[Evaluation, str]:
    """Evaluate a run's model on the test images again; return the result, and in words what it refers to."""
    if proposal is not None:
        require_proposal(proposal)
    config, vae = load_run(folder)
    x_test = load_split(config, data_dir, num_images).test
    estimation = {"num_particles": num_particles, "target_stderr": target_stderr, "proposal": proposal}
    evaluation = evaluate(vae, x_test, estimator=estimator, seed=seed, progress=progress, **estimation)
    options = {**estimation, "num_images": num_images}
    given = [f"{name}-{value}" for name, value in options.items() if value is not None]
    name = "-".join(["evaluation", evaluation.estimator, *given, f"seed-{seed}"])
    write_result(Path(folder) / f"{name}.json", config, seed, evaluation.to_dict(), **options)
    return evaluation, describe_test_set(config, x_test)


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
    """Compare estimators on a run's test images, beside the truth if there are at most two latent dimensions."""
    config, vae = load_run(folder)
    x_test = load_split(config, data_dir, require_count("num_images", num_images, least=2)).test
    names = [name for name in ESTIMATORS if name != "grid"] if estimators is None else estimators
    exact = None
    if sum(vae.latent_dims.values()) <= 2:
        exact = quadrature(vae.model, vae.guide, x_test, progress=progress).value
    chosen = {name: ESTIMATORS[name] for name in names}
    comparison = compare(
        chosen, vae.model, vae.guide, x_test, exact=exact, repeats=repeats, seed=seed, progress=progress
    )
    write_result(Path(folder) / "comparison.json", config, seed, comparison.to_dict())
    return comparison, describe_test_set(config, x_test)


def sample_run(folder: str | Path, *, num: int = 100, seed: int = 0) -> list[Path]:
    """Draw from a run's model: ``samples-NUM.npz`` with z, x and E[x | z], and a picture of the first 100 means."""
    require_count("num", num)
    _, vae = load_run(folder)
    with torch.no_grad(), seeded(seed, "sample"):
        z = vae.sample_latents(num)
        p = vae.decode(z)
        x, mean = p.sample(), p.mean
    arrays, picture = (Path(folder) / f"samples-{num}.{suffix}" for suffix in ("npz", "png"))
    write_arrays(arrays, z=z, x=x, mean=mean)
    title = SAMPLES_TITLE + (f" (the first {_MOST_PICTURES} of {num})" if num > _MOST_PICTURES else "")
    plot.save(plot.images(mean[:_MOST_PICTURES], title=title), picture)
    return [arrays, picture]


def plot_run(folder: str | Path, *, views: Sequence[str] = (), data_dir: str | None = None) -> list[Path]:
    """Draw a run's pictures again, or the given ``views`` of it."""
    config, vae = load_run(folder)
    epochs = read_epochs(Path(folder) / _HISTORY)
    return draw(TrainedRun(config, vae, epochs, load_split(config, data_dir)), folder, views)


def load_run(folder: str | Path) -> tuple[TrainConfig, BaseVAE]:
    """Return a run's configuration and trained model."""
    config = _read_config(folder)
    path = Path(folder) / _MODEL
    if not path.exists():
        raise CheckpointError(path, f"does not exist: the run is not complete, go on with `pyro-vae resume {folder}`")
    return config, load(path)


def load_split(config: TrainConfig, data_dir: str | None, num_images: int | None = None) -> Split:
    """Return a run's images, from its own data folder unless another is given, with all test images or the first."""
    images = split(config, data.load(config.dataset, data_dir=data_dir or config.data_dir))
    if num_images is None:
        return images
    return images._replace(test=images.test[: require_count("num_images", num_images)])


def write_result(path: Path, config: TrainConfig, seed: int, result: dict[str, Any], **more: Any) -> None:
    """Write a result as JSON, with the configuration, the seed and the versions that it came from."""
    versions = {name: version(name) for name in ("pyro-vae", "torch", "pyro-ppl")}
    _write_json(path, {**result, "config": config.to_dict(), "seed": seed, "versions": versions, **more})


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write tensors and arrays by name as an .npz file."""
    content, as_numpy = io.BytesIO(), {name: np.asarray(value) for name, value in arrays.items()}
    np.savez_compressed(content, **as_numpy)  # pyright: ignore[reportArgumentType]
    replace_file(path, content.getvalue())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _new_folder(config: TrainConfig) -> Path:
    """Return the folder of a new run: ``out``, or the next free one of the data set."""
    numbered = (Path("runs") / f"{config.dataset}-{number}" for number in itertools.count(1))
    folder = Path(config.out) if config.out else next(path for path in numbered if not path.exists())
    if (folder / _CONFIG).exists():
        raise ConfigError(f"{folder} already holds a run: choose another --out, or use `pyro-vae resume {folder}`")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and a run might write over what is there: choose another --out")
    return folder


def _read_config(folder: str | Path) -> TrainConfig:
    path = Path(folder) / _CONFIG
    try:
        options = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder} is not a run: expected a folder that `pyro-vae train` has made") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from None
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: expected a JSON object of options, found {type(options).__name__}")
    return TrainConfig.from_dict(options).resolved()
