r"""Where a number comes from: command, seed, versions, commit, threads and time, the same in every record."""

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
_PLACES = {"--data-dir": "DATA", "--out": "OUT"}  # where files were on one machine is of no use on another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark that has no others."""
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)


def origin(argv: Sequence[str], *, seed: int) -> dict[str, Any]:
    """All but the time; ``argv`` are the words after ``python -m benchmarks``."""
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
    """Seconds since it was made, on the wall and of all processors."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, busy = self._start
        now = time.perf_counter() - wall, time.process_time() - busy
        return {"seconds": round(now[0], 3), "cpu_seconds": round(now[1], 3)}


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON, whole or not at all; numbers that are not known have to be ``None``."""
    replace_file(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _without_places(argv: Sequence[str]) -> list[str]:
    words = list(argv)
    for place, word in enumerate(argv):
        option, equals, _ = word.partition("=")
        if option in _PLACES and equals:
            words[place] = f"{option}={_PLACES[option]}"
        elif option in _PLACES and place + 1 < len(words):
            words[place + 1] = _PLACES[option]
    return words


def _commit() -> str:
    """The commit of the code, and whether it was changed since; what benchmarks write is no change."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, changed" if changed else commit


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
