"""Imputation with a run's model: of the gaps in an array, or of hidden halves of test images, which gives a score."""

from __future__ import annotations

__all__ = ["Score", "impute_file", "impute_test_images"]

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import plot
from ..data.arrays import as_batch
from ..errors import DataError, ShapeError
from ..evidence import importance
from ..models.base import BaseVAE
from ..models.incomplete import Incomplete
from ..workflows.imputation import impute
from .build import describe_test_set
from .runs import load_run, load_split, write_arrays, write_result


class Score(NamedTuple):
    """Scores of the hidden halves of images as predicted from the other halves."""

    rmse: float
    """The root mean square error of the posterior mean, over hidden pixels."""
    rmse_mean_image: float
    """The same error of the mean training image, which does not depend on the other half."""
    nats: float
    r"""The mean of :math:`\log p(x^{\mathrm{hidden}} \mid x^{\mathrm{seen}})`, a difference of two estimates."""
    monte_carlo_error: float
    """Its standard error from the draws."""
    coverage: float
    """The share of hidden pixels in their 90% intervals; it may be larger for pixels with few levels."""
    ok: float
    """The share of images with the verdict ``ok``."""

    def __str__(self) -> str:
        return (
            f"hidden pixels: RMSE {self.rmse:.4f}, of the mean image {self.rmse_mean_image:.4f}; "
            f"{self.coverage:.1%} within 90% intervals\n"
            f"log p(hidden | seen): {self.nats:.3f} ± {self.monte_carlo_error:.3f} nats per image\n"
            f"verdict ok for {self.ok:.0%} of the images"
        )


def impute_file(
    folder: str | Path, file: str | Path, *, num_particles: int = 1000, num_imputations: int = 20, seed: int = 0
) -> Path:
    """Impute the NaN of an array in ``NAME.npy`` or ``NAME.csv``; return ``NAME-imputed.npz`` beside it, a new file.

    Its arrays have the shape of the file's. A cell of a .csv that is empty or ``nan`` is missing; any other that is no
    number is an error, and so is a header.

    Errors:
        DataError: for a file that does not exist, or holds no numbers, and for a result that exists already.
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
    arrays = {name: getattr(found, name).reshape(x.shape) for name in ("mean", "lower", "upper")}
    arrays |= {name: getattr(found, name) for name in ("ess", "pareto_k", "verdict")}
    write_arrays(path, **arrays, draws=found.draws.reshape(-1, *x.shape))
    return path


def impute_test_images(
    folder: str | Path,
    *,
    num_particles: int = 1000,
    num_imputations: int = 20,
    num_images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
) -> tuple[Score, str, Path]:
    """Hide the lower half of a run's test images and impute it; return the score, what it refers to, and a picture."""
    config, vae = load_run(folder)
    images = load_split(config, data_dir, num_images)
    x, mean_image = images.test, torch.as_tensor(images.train.mean)
    mask = torch.ones(x.shape[1:], dtype=torch.bool)
    mask[..., mask.shape[-2] // 2 :, :] = False
    hidden = ~mask.expand(x.shape)
    found = impute(vae, x, mask=mask, num_particles=num_particles, num_imputations=num_imputations, seed=seed)
    nats, monte_carlo_error = _log_conditional(vae, x, hidden, num_particles, seed)
    score = Score(
        rmse=_rmse(found.mean, x, hidden),
        rmse_mean_image=_rmse(mean_image.expand(x.shape), x, hidden),
        nats=nats,
        monte_carlo_error=monte_carlo_error,
        coverage=((found.lower <= x) & (x <= found.upper))[hidden].double().mean().item(),
        ok=float((found.verdict == "ok").mean()),
    )
    write_result(Path(folder) / "imputation.json", config, seed, score._asdict())
    path = Path(folder) / "imputations.png"
    plot.save(plot.imputations(x[:10], found.mean[:10], found.draws[:2, :10], mask), path)
    return score, f"{describe_test_set(config, x)}; the lower half hidden", path


def _log_conditional(vae: BaseVAE, x: Tensor, hidden: Tensor, num_particles: int, seed: int) -> tuple[float, float]:
    r"""Return the mean of log p(hidden | seen) = log p(x) - log p(seen), with its standard error from the draws."""
    pair = Incomplete(vae)
    whole, seen = (
        importance(pair.model, pair.guide, given, num_particles=num_particles, proposal="defensive", seed=seed)
        for given in (x, x.masked_fill(hidden, torch.nan))
    )
    return whole.mean - seen.mean, math.hypot(whole.monte_carlo_error, seen.monte_carlo_error)


def _rmse(found: Tensor, x: Tensor, hidden: Tensor) -> float:
    return (found - x)[hidden].square().mean().sqrt().item()


def _read(path: Path) -> Tensor:
    """Return the array in a file, with NaN where it is missing."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            text = path.read_text(encoding="utf-8-sig")
            lines = [line for line in text.splitlines() if line.partition("#")[0].strip()]
            if not lines:
                raise ValueError("it has no rows")
            array = np.loadtxt(lines, delimiter=",", converters=_cell, ndmin=2)
        else:
            raise DataError(f"{path}: expected a file .npy or .csv, in which NaN is missing")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give an array with NaN as .npy or .csv") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read as an array of numbers ({str(error).splitlines()[0]})") from None
    return as_batch(array, name=str(path), missing=True).float()


def _cell(text: str) -> float:
    """Return a number, or NaN for an empty cell; other text is an error."""
    return float(text) if text.strip() else math.nan
