"""The arguments of public functions: a pair of programs, and data that suit them."""

from __future__ import annotations

__all__ = ["TakesMissing", "data_for", "programs_of", "suited", "takes_missing"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import as_batch
from ..errors import PairError
from .modules import modules_behind


def suited(x: Tensor, *programs: Any) -> Tensor:
    """Return ``x`` on the parameters' device and, if it is floating, with their type; never as an inference tensor."""
    like = next((parameter for part in modules_behind(*programs) for parameter in part.parameters()), None)
    with torch.inference_mode(False):
        x = x.clone() if x.is_inference() else x  # a tensor made in inference mode can have no part in a gradient
        if like is None:
            return x
        return x.to(device=like.device, dtype=like.dtype if x.is_floating_point() else None)


def programs_of(pair: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the model and the guide of a tuple of both, or of an object that has them.

    Errors:
        PairError: for anything else.
    """
    found: Any = pair if isinstance(pair, (tuple, list)) else [getattr(pair, it, None) for it in ("model", "guide")]
    if len(found) != 2 or not all(map(callable, found)):
        raise PairError(f"pair: expected (model, guide), or an object with both, found {type(pair).__name__}")
    return found[0], found[1]


class TakesMissing(nn.Module):
    """The base class of pairs for which NaN in the data means that an entry is missing."""


def data_for(x: Any, *programs: Any, name: str = "x") -> Tensor:
    """Return the data as a finite batch for these programs; NaN is legal if they are :class:`TakesMissing`.

    Errors:
        DataError: for empty data, and non-finite values, with the count and the first index.
    """
    return suited(as_batch(x, name=name, missing=takes_missing(*programs)), *programs)


def takes_missing(*programs: Any) -> bool:
    """Return whether NaN is legal in the data of these programs."""
    return any(isinstance(part, TakesMissing) for part in modules_behind(*programs))
