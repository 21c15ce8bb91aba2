"""Data for training: any object with a length that returns a float batch for an index tensor."""

from __future__ import annotations

__all__ = ["batch_of", "fingerprint", "presented"]

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..ops.seeds import seeded
from .arrays import as_batch
from .datasets import Pixels


def presented(x: Any, name: str = "x", *, missing: bool = False) -> Any:
    """Return data with a length and batches by an index tensor: an array as a tensor, a data set as it is."""
    is_array = isinstance(x, _ARRAYS) or any(hasattr(x, attribute) for attribute in _ARRAY_ATTRIBUTES)
    is_dataset = isinstance(x, Pixels) or (hasattr(x, "__getitem__") and not is_array)
    data = x if is_dataset else as_batch(x, name=name, missing=missing)
    if not len(data):
        raise DataError(f"{name}: expected at least one datapoint, found none")
    return data


def batch_of(module: nn.Module, data: Any, index: Tensor, device: torch.device) -> Tensor:
    """Return the datapoints on the device and, if they are floating, in the dtype of the module."""
    batch = data[index]
    if not isinstance(batch, Tensor):
        raise DataError(
            f"found {type(data).__name__}, which returns {type(batch).__name__} for an index tensor, expected an "
            "array, or an object that returns a float batch"
        )
    like = next(module.parameters())
    return batch.to(device=device, dtype=like.dtype if batch.is_floating_point() else None)


def fingerprint(data: Any, name: str) -> dict[str, str]:
    """Return a hash of some of the datapoints, under ``name``; nothing for other objects, which may be random."""
    if not isinstance(data, (Tensor, Pixels)):
        return {}
    with seeded("fingerprint"):
        rows = data[torch.linspace(0, len(data) - 1, min(64, len(data))).long()]
    return {name: hashlib.sha256(rows.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]}


_ARRAYS = (Tensor, list, tuple, dict, str, bytes)
_ARRAY_ATTRIBUTES = ("__array__", "tocsr")  # the latter of scipy.sparse
