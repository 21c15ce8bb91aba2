"""The state of a training run: enough to report it, to save it, and to go on with it bit for bit."""

from __future__ import annotations

__all__ = ["Epoch", "History", "TrainingState", "previous", "read_epochs"]

import csv
import io
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.files import replace_file
from ..errors import CheckpointError
from .checkpoint import read, restore, write


class Epoch(NamedTuple):
    """One row of the history: the objective and the ELBO of the same draws, in nats per datapoint."""

    epoch: int
    step: int
    learning_rate: float
    train_bound: float
    """The mean of the objective over the epoch's batches, each at the weights of its step."""
    validation_bound: float
    """The mean over the validation data at the end of the epoch; nan without validation data."""
    seconds: float
    train_elbo: float = math.nan
    validation_elbo: float = math.nan


class History(NamedTuple):
    """The history of a training: its epochs, the best one by the validation data, and whether Ctrl-C ended it."""

    epochs: list[Epoch]
    best_epoch: int
    interrupted: bool

    def to_csv(self, path: str | Path) -> None:
        """Write one line per epoch."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Epoch._fields)
        writer.writerows(self.epochs)
        replace_file(path, text.getvalue().encode())


def read_epochs(path: str | Path) -> list[Epoch]:
    """Return the epochs that :meth:`History.to_csv` wrote.

    Errors:
        CheckpointError: for a file that cannot be read or is not a history.
    """
    try:
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header) not in (Epoch._fields, Epoch._fields[:6]) or not rows:  # six in files without ELBO
            raise ValueError
        return [Epoch(int(epoch), int(step), *map(float, rest)) for epoch, step, *rest in rows]
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, TypeError):
        raise CheckpointError(path, f"is not a history: expected rows of {', '.join(Epoch._fields)}") from None


class TrainingState:
    """A module, its optimiser, and the progress of their training."""

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimiser = optimiser
        self.epochs: list[Epoch] = []
        self.offset = 0  # datapoints done in the current epoch
        self.step = 0
        self.bound_sum = 0.0
        self.elbo_sum = 0.0
        self.seconds = 0.0
        self.best_epoch = 0
        self.best_bound = -math.inf
        self._best: dict[str, Tensor] = {}
        self._generators: dict[str, Tensor] = {}
        self._last_is_good = True
        self._clock = time.perf_counter()

    @property
    def epoch(self) -> int:
        """The number of epochs that are complete."""
        return len(self.epochs)

    def advance(self, bound_sum: float, elbo_sum: float, num: int) -> None:
        """Record one step on ``num`` datapoints."""
        self.step += 1
        self.offset += num
        self.bound_sum += bound_sum
        self.elbo_sum += elbo_sum

    def finish_epoch(
        self, learning_rate: float, validation_bound: float, validation_elbo: float, *, by_elbo: bool, keep_best: bool
    ) -> None:
        """Record a complete epoch, and keep its weights if they are the best so far."""
        self._tick()
        self.epochs.append(
            Epoch(
                self.epoch + 1,
                self.step,
                learning_rate,
                self.bound_sum / self.offset,
                validation_bound,
                round(self.seconds, 3),
                self.elbo_sum / self.offset,
                validation_elbo,
            )
        )
        self.offset, self.bound_sum, self.elbo_sum = 0, 0.0, 0.0
        watched = validation_elbo if by_elbo else validation_bound
        if watched > self.best_bound:
            self.best_bound, self.best_epoch = watched, self.epoch
            if keep_best:
                self._best = {name: value.clone() for name, value in self.module.state_dict().items()}

    def restore_best(self) -> None:
        """Put the weights of the best epoch back."""
        if self._best:
            self.module.load_state_dict(self._best)

    def keep_generators(self) -> None:
        """Keep the state of torch's generators in the middle of an epoch."""
        self._generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            self._generators |= {f"cuda:{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}

    def restore_generators(self) -> None:
        """Restore the state of the generators that :meth:`keep_generators` kept, once."""
        if "cpu" in self._generators:
            torch.set_rng_state(self._generators["cpu"])
        for name, state in self._generators.items():
            if name != "cpu":
                torch.cuda.set_rng_state(state, name)
        self._generators = {}

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write everything to ``path``; the old file stays beside it as the previous one.

        ``identity`` tells this training from others: :meth:`resume` refuses to go on with another one.
        """
        self._tick()
        tensors = _flat(self.module.state_dict(), "module") | _flat(self._best, "best")
        tensors |= _flat(self._generators, "generator")
        for index, entry in self.optimiser.state_dict()["state"].items():
            tensors |= _flat(entry, f"optimiser.{index}")
        counters = {name: getattr(self, name) for name in _COUNTERS}
        metadata = {"training": counters, "identity": identity}
        write(path, tensors, metadata, previous=previous(path) if self._last_is_good else None)
        self._last_is_good = True

    def resume(self, path: Path, identity: dict[str, Any]) -> None:
        """Go on from ``path`` if it exists; from the previous file, with a warning, if it is damaged."""
        candidates = [file for file in (path, previous(path)) if file.exists()]
        for number, file in enumerate(candidates, 1):
            try:
                tensors, metadata = read(file)
            except CheckpointError as error:
                if number == len(candidates):
                    raise
                self._last_is_good = False  # so that it is overwritten, not kept as the previous one
                warnings.warn(f"{error}; going on from {candidates[number]}", stacklevel=3)
            else:
                self._restore(tensors, metadata, identity, file)
                return

    def _restore(
        self, tensors: dict[str, Tensor], metadata: dict[str, Any], identity: dict[str, Any], path: Path
    ) -> None:
        if "training" not in metadata:
            raise CheckpointError(path, "holds a model but no training state: name another file for checkpoint=")
        for name, value in identity.items():
            if (saved := metadata["identity"].get(name, value)) != value:
                raise CheckpointError(
                    path, f"is of another training ({name}={saved} there, {value} here): name another file"
                )
        restore(self.module, _part(tensors, "module"), path)
        for name, value in metadata["training"].items():
            setattr(self, name, value)
        self.epochs = [Epoch(*row) for row in self.epochs]
        self._best = _part(tensors, "best")
        self._generators = _part(tensors, "generator")
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser").items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": entries})

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now


_COUNTERS = ("epochs", "offset", "step", "bound_sum", "elbo_sum", "seconds", "best_epoch", "best_bound")


def previous(path: Path) -> Path:
    """Return the path of the state before the last one."""
    return path.with_name(f"previous-{path.name}")


def _flat(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
