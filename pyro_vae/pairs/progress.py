"""Progress bars."""

from __future__ import annotations

__all__ = ["Progress", "progress_bar"]

from tqdm import tqdm

Progress = tqdm


def progress_bar(total: int | None, show: bool, unit: str = "evaluation", *, initial: int = 0) -> Progress:
    """Return a progress bar, which is visible if ``show`` is true and standard error is a terminal."""
    return tqdm(total=total, initial=initial, unit=unit, unit_scale=True, disable=None if show else True)
