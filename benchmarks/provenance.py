r"""The origin of a number: command, seed, versions, commit, threads and time, the same in every record."""

from __future__ import annotations

__all__ = ["Clock", "add_arguments", "origin", "write"]

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae.data.files import replace_file

ROOT = Path(__file__).parents[1]
_PLACES = {"--data-dir": "DATA", "--out": "OUT"}  # paths on one machine are of no use on another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark that needs no others."""
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="the folder to write to")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the benchmark works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="the number of processor threads")


def origin(argv: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return the origin, without the time; ``argv`` are the words after ``python -m benchmarks``."""
    return {
        "command": " ".join(["python -m benchmarks", *_without_places(argv)]),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "pyro_vae": pv.__version__,
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "numpy": np.__version__,
        },
    }


class Clock:
    """A clock that counts the seconds since it was made, on the wall and of all processors."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._busy = time.process_time()

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._wall
        cpu_seconds = time.process_time() - self._busy
        return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record as JSON, whole or not at all; numbers that are not known have to be ``None``."""
    replace_file(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _without_places(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with names in place of the paths, for ``--out PATH`` and ``--out=PATH``."""
    words = list(argv)
    for place, word in enumerate(argv):
        option, equals, _ = word.partition("=")
        if option in _PLACES and equals:
            words[place] = f"{option}={_PLACES[option]}"
        elif option in _PLACES and place + 1 < len(words):
            words[place + 1] = _PLACES[option]
    return words


def _commit() -> str:
    """Return the commit of the code, and whether the code was changed since; records do not count as changes."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, changed" if changed else commit


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
