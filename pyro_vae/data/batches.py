"""What can be trained on: anything with a length that returns a float batch for an index tensor."""

from __future__ import annotations

__all__ = ["batch_of", "fingerprint", "presented"]

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from .arrays import as_batch
from .datasets import Pixels
from ..errors import DataError
from ..ops.seeds import seeded


def presented(x: Any, name: str = "x", *, missing: bool = False) -> Any:
    """Something with a length that returns a batch for an index tensor."""
    foreign = hasattr(x, "__getitem__") and not isinstance(x, _ARRAYS) and not any(hasattr(x, it) for it in _MARKS)
    data = x if foreign or isinstance(x, Pixels) else as_batch(x, name=name, missing=missing)
    if not len(data):
        raise DataError(f"{name}: expected at least one datapoint, found none")
    return data


def batch_of(module: nn.Module, data: Any, index: Tensor, device: torch.device) -> Tensor:
    """The datapoints where the module is and, if they are floating, of its type."""
    batch = data[index]
    if not isinstance(batch, Tensor):
        raise DataError(
            "expected an array, or an object that returns a float batch for an index tensor, found "
            f"{type(data).__name__}, which returns {type(batch).__name__}"
        )
    like = next(module.parameters())
    return batch.to(device=device, dtype=like.dtype if batch.is_floating_point() else None)


def fingerprint(data: Any, name: str) -> dict[str, str]:
    """What tells one set of data from another; nothing about data with a randomness of their own."""
    if not isinstance(data, (Tensor, Pixels)):
        return {}
    with seeded("fingerprint"):
        some = data[torch.linspace(0, len(data) - 1, min(64, len(data))).long()]
    return {name: hashlib.sha256(some.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]}


_ARRAYS = (Tensor, list, tuple, dict, str, bytes)
_MARKS = ("__array__", "tocsr")
