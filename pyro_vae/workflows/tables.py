"""Formats of numbers in tables and records."""

from __future__ import annotations

__all__ = ["number", "plain"]

import math
from typing import Any


def number(value: float, digits: int, sign: str = "") -> str:
    """Return a number as text that fits its column, whatever its size; a dash for one that is not known.

    Example:
        >>> number(-1.23456, 3), number(1.23456, 1, "+"), number(123456.0, 3), number(float("nan"), 3)
        ('-1.235', '+1.2', '1.2e+05', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:{sign}.{digits}f}" if abs(value) < 1e4 else f"{value:{sign}.2g}"


def plain(value: Any) -> Any:
    """Return a value for JSON, with ``None`` for numbers that are nan or infinite.

    Example:
        >>> plain(1.5), plain(float("inf")), plain("lower")
        (1.5, None, 'lower')
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
