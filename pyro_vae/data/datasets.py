"""Image data sets, kept in memory as uint8 and presented to a model as floats."""

from __future__ import annotations

__all__ = ["BINARISATIONS", "DATASETS", "Dataset", "Pixels", "binarise", "load", "read_images"]

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, require_one_of
from ..ops.choices import Binarisation
from ..ops.seeds import seeded
from .arrays import as_batch

BINARISATIONS = get_args(Binarisation)


class Dataset(NamedTuple):
    """Grey images as they are stored: uint8 ``[n, height, width]`` in ``0..max_value``, with class labels."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    max_value: int


class Pixels:
    """Grey images kept as uint8 and presented as floats, batch by batch: ``pixels[index] -> [len(index), *shape]``.

    Arguments:
        x: Images ``[n, *shape]`` in ``0..max_value``; any array type.
        binarise: ``"dynamic"`` draws every pixel afresh, with its grey level as probability, at each access;
            ``"static"`` draws once, from ``seed``; ``"threshold"`` cuts at one half; ``"none"`` presents grey levels
            in [0, 1].
        max_value: The largest grey level; by default 255 for uint8, and 1 for floating or boolean images.
        seed: The seed of ``"static"``: the same seed gives the same binary images.

    Errors:
        DataError: for empty or non-finite data, or grey levels outside ``0..max_value``.

    References:
        | On the quantitative analysis of deep belief networks (Salakhutdinov & Murray, 2008), for the protocols
        | https://doi.org/10.1145/1390156.1390266

    Example:
        >>> images = torch.tensor([[0, 255], [128, 255]], dtype=torch.uint8)
        >>> Pixels(images, "threshold")[torch.tensor([0, 1])]
        tensor([[0., 1.],
                [1., 1.]])
    """

    def __init__(
        self, x: Any, binarise: Binarisation = "dynamic", *, max_value: float | None = None, seed: int = 0
    ) -> None:
        require_one_of("binarise", binarise, BINARISATIONS)
        x = as_batch(x)
        if x.ndim < 2:
            raise DataError(f"x: expected at least one image, shape (n, ...), got shape {tuple(x.shape)}")
        if max_value is None:
            max_value = {torch.uint8: 255, torch.bool: 1}.get(x.dtype, 1 if x.is_floating_point() else None)
            if max_value is None:
                raise DataError(f"x: found entries of type {x.dtype}: give the value of white, max_value=")
        if x.min() < 0 or x.max() > max_value:
            raise DataError(
                f"x: expected grey levels in [0, {max_value:g}], found [{x.min():g}, {x.max():g}]: pass max_value=, "
                "or shift and scale the data"
            )
        self.binarise = binarise
        self.shape = tuple(x.shape[1:])
        self.mean = x.double().mean(0).div(max_value).float()
        """The mean image, in [0, 1]."""
        self.num_levels = int(max_value) + 1
        """The number of grey levels, if they are whole numbers."""
        once = binarise in ("static", "threshold")
        self._max_value = 1.0 if once else float(max_value)
        self._x = _once(x / max_value, binarise, seed).to(torch.uint8) if once else x

    def __len__(self) -> int:
        return len(self._x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.binarise == "dynamic":
            raise DataError(
                "x: found images that are binarised afresh at each access, expected fixed ones: use Pixels(x, 'static')"
            )
        return self[:].numpy().astype(dtype or np.float32)

    def __getitem__(self, index: Any) -> Tensor:
        grey = self._x[index].float() / self._max_value
        return torch.bernoulli(grey) if self.binarise == "dynamic" else grey


def binarise(x: Any, method: Literal["static", "threshold"] = "static", *, seed: int = 0) -> Tensor:
    """Return grey levels in [0, 1] as zeros and ones in float32: drawn once from ``seed``, or cut at one half.

    Errors:
        DataError: for values outside [0, 1].

    Example:
        >>> binarise(torch.tensor([[0.0, 0.2, 0.7, 1.0]]), "threshold")
        tensor([[0., 0., 1., 1.]])
    """
    x = as_batch(x).float()
    if x.min() < 0 or x.max() > 1:
        raise DataError(
            f"x: expected grey levels in [0, 1], found [{x.min():g}, {x.max():g}]: divide by the largest grey level"
        )
    require_one_of("method", method, ("static", "threshold"))
    return _once(x, method, seed)


def _once(grey: Tensor, method: str, seed: int) -> Tensor:
    if method == "threshold":
        return (grey >= 0.5).float()
    with seeded(seed, "binarise"):
        return torch.bernoulli(grey)


def load(name: str = "digits", *, data_dir: str | Path | None = None, download: bool = False) -> Dataset:
    """Return a data set: ``digits`` (embedded), ``mnist``, ``fashion_mnist``, ``kmnist`` or ``omniglot``.

    Arguments:
        name: ``digits`` are scikit-learn's 1,797 images of 8 x 8 in 0..16, split 1,437 / 360 by a fixed permutation.
            The others are read by torchvision with their own split; Omniglot is inverted and reduced to 28 x 28.
        data_dir: torchvision's root folder; by default the environment variable ``PYRO_VAE_DATA``, else ``data``.
        download: Download missing data; by default the network is not used.

    Errors:
        ConfigError: for an unknown name.
        DataError: for data that are missing or damaged, with the way to get them.

    Example:
        >>> load("digits").x_train.shape
        torch.Size([1437, 8, 8])
    """
    require_one_of("name", name, DATASETS)
    root = Path(data_dir or os.environ.get("PYRO_VAE_DATA") or "data")
    return DATASETS[name](name, root, download)


def read_images(
    folder: str | Path, *, size: tuple[int, int] = (64, 64), grey: bool = False, most: int | None = None
) -> Tensor:
    """Read all pictures below a folder as uint8 ``[n, 3, height, width]``, or ``[n, height, width]`` if grey.

    They are in the order of their paths. Each is cropped around its centre to the aspect ratio of ``size`` and then
    resized.

    Arguments:
        folder: For instance the unpacked files of CelebA or Labeled Faces in the Wild.
        size: Height and width.
        grey: Convert to grey levels.
        most: The largest number of pictures to read; by default all.

    Errors:
        DataError: for a folder without pictures, or a picture file that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (178, 218), "red").save(f"{folder}/000001.png")
        ...     read_images(folder, size=(32, 32))[0, :, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    from PIL import Image, ImageOps

    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _PICTURES)
    if not paths:
        raise DataError(f"{folder}: no pictures found, expected files that end in {', '.join(sorted(_PICTURES))}")
    pictures = []
    for path in paths[:most]:
        try:
            with Image.open(path) as image:
                converted = image.convert("L" if grey else "RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}): mend or remove it") from error
        fitted = ImageOps.fit(converted, (size[1], size[0]), method=Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(fitted)))
    images = torch.stack(pictures)
    return images if grey else images.permute(0, 3, 1, 2).contiguous()


_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}


def _digits(name: str, root: Path, download: bool) -> Dataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x, y = torch.from_numpy(bunch.images).to(torch.uint8), torch.from_numpy(bunch.target)
    with seeded("digits split"):
        order = torch.randperm(len(x))
    train, test = order[:1437], order[1437:]
    return Dataset(name, x[train], y[train], x[test], y[test], 16)


def _like_mnist(class_name: str) -> Callable[[str, Path, bool], Dataset]:
    def read(name: str, root: Path, download: bool) -> Dataset:
        from torchvision import datasets

        with _one_line(name, root / class_name / "raw"):
            dataset = getattr(datasets, class_name)
            train, test = (dataset(str(root), train=part, download=download) for part in (True, False))
            for part in (train, test):
                if len(part.data) != len(part.targets):
                    raise ValueError(f"{len(part.data)} images, {len(part.targets)} labels")
        return Dataset(name, train.data, train.targets, test.data, test.targets, 255)

    return read


def _omniglot(name: str, root: Path, download: bool) -> Dataset:
    from torchvision import datasets

    def part(background: bool) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        with _one_line(name, root / "omniglot-py"):
            for image, label in datasets.Omniglot(str(root), background=background, download=download):
                images.append(torch.from_numpy(255 - np.asarray(image.convert("L").resize((28, 28)))))
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)

    return Dataset(name, *part(True), *part(False), 255)


@contextmanager
def _one_line(name: str, folder: Path) -> Iterator[None]:
    """Report missing and damaged files of torchvision's data sets, and failed downloads, in one line each."""
    try:
        yield
    except Exception as error:  # a damaged file can make torchvision's readers raise anything
        reason = (str(error) or f"{type(error).__name__} in torchvision").splitlines()[0]
        if reason.startswith("Dataset not found"):
            raise DataError(
                f"{name}: not found: put the raw files into {folder}, give another root folder (--data-dir, data_dir= "
                "or PYRO_VAE_DATA), or allow a download (--download, download=True)"
            ) from None
        if reason.startswith("Error downloading"):
            raise DataError(f"{name}: download failed ({reason})") from error
        raise DataError(
            f"{name}: the files in {folder} cannot be read ({reason}): delete that folder and get them again, "
            "for instance with --download"
        ) from error


DATASETS: dict[str, Callable[[str, Path, bool], Dataset]] = {
    "digits": _digits,
    "mnist": _like_mnist("MNIST"),
    "fashion_mnist": _like_mnist("FashionMNIST"),
    "kmnist": _like_mnist("KMNIST"),
    "omniglot": _omniglot,
}
