"""Seeds for a block of code: its draws depend on the seed alone, and the caller's generators keep their state."""

from __future__ import annotations

__all__ = ["forked", "seeded"]

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import torch

from ..errors import require_whole


@contextmanager
def forked() -> Iterator[None]:
    """Run the body, then restore the state of torch's generators."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded(*seed: SupportsIndex | str) -> Iterator[None]:
    """Run the body with torch's generators seeded from ``seed``, then restore their state.

    Further parts give independent streams, for example ``seeded(seed, "epoch", 3)``.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(0):
        ...     first = torch.rand(())
        >>> with seeded(0):
        ...     again = torch.rand(())
        >>> bool(first == again), torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    parts = tuple(part if isinstance(part, str) else require_whole("seed", part) for part in seed)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    with forked():
        torch.random.manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # undone on exit by fork_rng
        yield
