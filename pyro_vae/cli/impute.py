"""A run's model and data with gaps: what is missing is imputed, and hidden halves of test images tell how well."""

from __future__ import annotations

__all__ = ["Score", "fill_file", "fill_test_images"]

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import data, plot
from ..data.arrays import as_batch
from ..data.files import replace_file
from ..errors import DataError, ShapeError
from ..evidence import importance
from ..models.incomplete import Incomplete
from ..workflows.imputation import Imputation, impute
from .build import protocol, split
from .runs import load_run, loaded, record_of, write_json


class Score(NamedTuple):
    """How well the hidden halves of images were told from the others."""

    rmse: float
    """Of the mean, over hidden pixels."""
    rmse_mean_image: float
    """The same of the mean image of the training data, which has not seen the other half."""
    nats: float
    r"""The mean of :math:`\log p(x^{\mathrm{hidden}} \mid x^{\mathrm{seen}})`, of two estimates."""
    monte_carlo_error: float
    coverage: float
    """The share of hidden pixels within their 90% intervals; of pixels of few levels it may be larger than that."""
    ok: float
    """The share of images whose weights can be relied on."""

    def __str__(self) -> str:
        return (
            f"hidden pixels: RMSE {self.rmse:.4f}, of the mean image {self.rmse_mean_image:.4f}; "
            f"{self.coverage:.1%} within 90% intervals\n"
            f"log p(hidden | seen): {self.nats:.3f} ± {self.monte_carlo_error:.3f} nats per image\n"
            f"verdict ok for {self.ok:.0%} of the images"
        )


def fill_file(
    folder: str | Path, file: str | Path, *, num_particles: int = 1000, num_imputations: int = 20, seed: int = 0
) -> list[Path]:
    """Impute the NaN of an array in a file ``NAME.npy`` or ``NAME.csv``: ``NAME-imputed.npz`` beside it, a new file.

    Its arrays have the shape of the file's. A cell of a .csv that is empty or ``nan`` is missing; any other that is no
    number is an error, and so is a header.

    Errors:
        DataError: for a file that is not there, or holds no numbers, and for a result that is there already.
        ShapeError: for an array of another shape than the model's data.
    """
    file = Path(file)
    path = file.with_name(f"{file.stem}-imputed.npz")
    if path.exists():  # before the work, not after it
        raise DataError(f"{path} is there already and is not overwritten: move it, or rename {file.name}")
    _, vae = load_run(folder)
    x = _read(file)
    if x[0].numel() != math.prod(vae.data_shape):
        raise ShapeError(f"{file}: expected shape {('n', *vae.data_shape)}, got {tuple(x.shape)}")
    rows = x.reshape(-1, *vae.data_shape)
    found = impute(vae, rows, num_particles=num_particles, num_imputations=num_imputations, seed=seed)
    like_x = {name: getattr(found, name).reshape(x.shape) for name in ("mean", "lower", "upper")}
    _write(path, found._replace(draws=found.draws.reshape(-1, *x.shape), **like_x))
    return [path]


def fill_test_images(
    folder: str | Path,
    *,
    num_particles: int = 1000,
    num_imputations: int = 20,
    num_images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
) -> tuple[Score, str, list[Path]]:
    """Hide the lower half of a run's test images and impute it: the score, what it refers to, and a picture."""
    config, vae, x = loaded(folder, data_dir, num_images)
    mask = torch.ones(x.shape[1:], dtype=torch.bool)
    mask[..., mask.shape[-2] // 2 :, :] = False
    found = impute(vae, x, mask=mask, num_particles=num_particles, num_imputations=num_imputations, seed=seed)
    train, *_ = split(config, data.load(config.dataset, data_dir=data_dir or config.data_dir))
    pair, hidden = Incomplete(vae), ~mask.expand(x.shape)
    whole, seen = (
        importance(pair.model, pair.guide, given, num_particles=num_particles, proposal="defensive", seed=seed)
        for given in (x, x.masked_fill(hidden, torch.nan))
    )
    score = Score(
        rmse=_rmse(found.mean, x, hidden),
        rmse_mean_image=_rmse(torch.as_tensor(train.mean).reshape(x.shape[1:]).expand(x.shape), x, hidden),
        nats=whole.mean - seen.mean,
        monte_carlo_error=math.hypot(whole.monte_carlo_error, seen.monte_carlo_error),
        coverage=((found.lower <= x) & (x <= found.upper))[hidden].double().mean().item(),
        ok=float((found.verdict == "ok").mean()),
    )
    write_json(Path(folder) / "imputation.json", record_of(config, score._asdict(), seed))
    path = Path(folder) / "imputations.png"
    plot.save(plot.imputations(x[:10], found.mean[:10], found.draws[:2, :10], mask), path)
    return score, f"{protocol(config, x)}; the lower half hidden", [path]


def _rmse(found: Tensor, x: Tensor, hidden: Tensor) -> float:
    return (found - x)[hidden].square().mean().sqrt().item()


def _read(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            lines = [
                line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.partition("#")[0].strip()
            ]
            if not lines:
                raise ValueError("it has no rows")
            array = np.loadtxt(lines, delimiter=",", converters=_cell, ndmin=2)
        else:
            raise DataError(f"{path}: expected a file .npy or .csv, in which NaN is what is missing")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give an array with NaN as .npy or .csv") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read as an array of numbers ({str(error).splitlines()[0]})") from None
    return as_batch(array, name=str(path), missing=True).float()


def _cell(text: str) -> float:
    """A number, or NaN for a cell that is empty; text is no gap."""
    return float(text) if text.strip() else math.nan


def _write(path: Path, found: Imputation) -> None:
    arrays = io.BytesIO()
    tensors: dict[str, Any] = {
        name: value.numpy() for name, value in found._asdict().items() if isinstance(value, Tensor)
    }
    np.savez_compressed(arrays, **tensors, verdict=found.verdict)
    replace_file(path, arrays.getvalue())
