"""The conditions under which a pair is looked at, and how long looks are watched."""

from __future__ import annotations

__all__ = ["Progress", "progress_bar", "untouched"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from .modules import evaluating, unregistered
from .randomness import seeded

Progress = tqdm


@contextmanager
def untouched(*programs: Any, seed: tuple[int | str, ...]) -> Iterator[None]:
    """The body trains and registers nothing, and leaves the caller's generators as they were.

    Gradients are off, but can be asked for in the body, also if the caller is in inference mode; networks are in
    evaluation mode, and afterwards in the mode that they were in.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluating(*programs),
        unregistered(agreeing=True),
        seeded(*seed),
    ):
        yield


def progress_bar(total: int | None, show: bool, unit: str = "evaluation") -> Progress:
    """A bar on a terminal, if it is asked for."""
    return tqdm(total=total, unit=unit, unit_scale=True, disable=None if show else True)
