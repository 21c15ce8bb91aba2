"""The errors a user can meet: one line that says what was found, what was expected and how to mend it.

Those that can be raised while a Pyro program runs are neither ``ValueError`` nor ``RuntimeError``: Pyro rewrites these
when they pass through a trace, with a table of shapes appended, and the one line would be lost.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "NonFiniteLossError",
    "PairError",
    "PyroVaeError",
    "ShapeError",
    "StaleParamStoreError",
    "require_count",
    "require_number",
    "require_one_of",
]

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


class PyroVaeError(Exception):
    """Base class: ``except PyroVaeError`` catches everything this library raises on purpose."""


class DataError(PyroVaeError):
    """The data cannot be used as they are: non-finite, empty, out of range, missing on disk."""


class ShapeError(DataError):
    """The data have another shape than the model expects."""


class PairError(PyroVaeError):
    """A Pyro model and guide that do not form a pair with one data plate and local latents."""


class StaleParamStoreError(PyroVaeError):
    """Pyro's parameter store holds another module's parameters under the same names."""


class DeviceError(PyroVaeError):
    """The device asked for does not exist here."""


class ConfigError(PyroVaeError, ValueError):
    """An argument, an option or a configuration file that cannot be used."""


class NonFiniteLossError(PyroVaeError):
    """The loss or a gradient became NaN or infinite; the weights are still those of the last good step."""

    def __init__(self, step: int, site: str) -> None:
        super().__init__(
            f"step {step}: {site} is not finite; the weights are those of step {step - 1}: "
            "lower the learning rate, clip gradients (max_grad_norm), or check the data's range"
        )
        self.step = step
        self.site = site


class CheckpointError(PyroVaeError):
    """A file that is not a usable checkpoint of this library."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def require_count(name: str, value: Any, *, least: int = 1, why: str = "") -> int:
    """``value`` as an int of at least ``least``, or :class:`ConfigError`.

    Example:
        >>> require_count("num_particles", 0)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: num_particles=0: expected at least 1
    """
    count = require_whole(name, value)
    if count < least:
        raise ConfigError(f"{name}={count}: expected at least {least}{why}")
    return count


def require_whole(name: str, value: Any) -> int:
    """``value`` as an int, or :class:`ConfigError`; NumPy's integers are whole numbers, a float never is.

    Example:
        >>> require_whole("seed", 1.0)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: seed=1.0: expected a whole number
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}={value!r}: expected a whole number") from None


def require_number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf) -> float:
    """``value`` as it is, if it is a finite number from ``least`` to ``most``; else :class:`ConfigError`.

    Example:
        >>> require_number("beta", -1.0, least=0)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: beta=-1.0: expected a finite number of at least 0
    """
    try:
        fits = math.isfinite(value) and least <= value <= most
    except TypeError:
        fits = False
    if not fits:
        low = "" if least == -math.inf else f" of at least {least:g}"
        high = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(f"{name}={value!r}: expected a finite number{low}{high}")
    return value


def require_one_of(option: str, value: Any, choices: Iterable[str]) -> None:
    """Raise :class:`ConfigError`, with the nearest spelling, unless ``value`` is one of the ``choices``.

    Example:
        >>> require_one_of("schedule", "cosin", ("constant", "cosine"))
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: schedule='cosin': expected one of 'constant', 'cosine': did you mean 'cosine'?
    """
    choices = tuple(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option}={value!r}: expected one of {', '.join(map(repr, choices))}{hint}")
