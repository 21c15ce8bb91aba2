"""A Pyro model and guide with their data, as one object: what it can do is found out once and remembered."""

from __future__ import annotations

__all__ = ["Block", "Pair", "TakesMissing", "data_for", "programs_of", "suited", "takes_missing"]

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from ..data.arrays import as_batch
from ..errors import PairError
from .handlers import evaluation_mode
from .memory import Footprint, measured
from .modules import modules_behind
from .running import Program, Vectorized, replay, trace
from .traces import sample_sites
from .vectorization import rows_are_independent, takes_particles


@dataclass
class Facts:
    """The facts about a pair that only running it can show; shared by the pair and its parts."""

    independent_rows: bool | None = None
    footprint: Footprint | None = None
    vectorized: dict[int, Vectorized] = field(default_factory=dict)
    """By the number of rows, on which the answer may depend."""


class Block(NamedTuple):
    """Consecutive rows of a pair that fit into memory."""

    span: slice
    pair: Pair
    max_particles: int
    """The number of particles of each of these rows that fit at once."""


class Pair:
    """A Pyro model and guide with the arguments that both are called with.

    Public functions make one from their arguments, by :meth:`of`, and hand it down. Whether the networks take particles
    together, whether rows can be given alone, and how much memory a row takes can only be found out by running the
    programs; each is tried when it is first needed, and remembered, for parts of the rows as well. A pair may be given
    to a public function in place of the data, and then nothing is tried again.

    Arguments:
        model, guide: Pyro functions with one data plate at dim -1 and all latent sites inside it.
        args, kwargs: What both are called with, the data ``[n, ...]`` first; they are not checked.
        facts: What is known of the pair already.
    """

    def __init__(
        self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], facts: Facts | None = None
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self._facts = Facts() if facts is None else facts

    @classmethod
    def of(cls, model: Program, guide: Program, x: Any, *, name: str = "x") -> Pair:
        """Return the pair for the arguments of a public function: the data are checked, and moved to the parameters.

        Arguments:
            x: Data ``[n, ...]``, any array type, called ``name`` in error messages; or a pair, which is then returned.

        Errors:
            DataError: for empty data, and non-finite values, with the count and the first index.
        """
        return x if isinstance(x, Pair) else cls(model, guide, (data_for(x, model, guide, name=name),), {})

    @property
    def x(self) -> Tensor:
        """The data ``[n, ...]``."""
        return self.args[0]

    def __len__(self) -> int:
        return len(self.args[0])

    def evaluation(self, *seed: int | str) -> AbstractContextManager[None]:
        """Return a context in which nothing is trained or registered, and draws depend on the seed alone."""
        return evaluation_mode(self.model, self.guide, seed=seed)

    def run_guide(self) -> poutine.Trace:
        """Run the guide."""
        return trace(self.guide, self.args, self.kwargs)

    def run_model(self, guide_trace: poutine.Trace) -> poutine.Trace:
        """Run the model at the values that the guide drew."""
        return replay(self.model, guide_trace, self.args, self.kwargs)

    def model_sites(self, guide_trace: poutine.Trace) -> dict[str, Any]:
        """Return the model's sites at the values that the guide drew."""
        return sample_sites(self.run_model(guide_trace))

    @property
    def independent_rows(self) -> bool:
        """Whether a datapoint's densities do not depend on the other rows, so that the data may be cut into blocks."""
        if self._facts.independent_rows is None:
            self._facts.independent_rows = rows_are_independent(self.model, self.guide, self.x)
        return self._facts.independent_rows

    def vectorized(self, drawn: poutine.Trace | None = None) -> Vectorized:
        """Return which of the programs take particles together; ``drawn`` is a run of the guide, if there is one."""
        known = self._facts.vectorized
        if len(self) not in known:
            known[len(self)] = takes_particles(self.model, self.guide, self.args, self.kwargs, drawn=drawn)
        return known[len(self)]

    @property
    def footprint(self) -> Footprint:
        """The memory that one particle of one row takes, and the latent sites."""
        if self._facts.footprint is None:
            some = self.rows(slice(0, 1)) if self.independent_rows else self
            self._facts.footprint = measured(some.model, some.guide, some.x)
        return self._facts.footprint

    def rows(self, rows: slice | Tensor) -> Pair:
        """Return the pair with some rows of the data."""
        if isinstance(rows, Tensor) and len(rows) == len(self):
            return self  # rows that depend on each other are never taken apart
        return Pair(self.model, self.guide, (self.x[rows],), {}, self._facts)

    def first(self, num: int) -> Pair:
        """Return the pair with its first rows, or with all of them if they depend on each other."""
        return self.rows(slice(0, num)) if len(self) > num and self.independent_rows else self

    def split(self, max_rows: int) -> list[Pair]:
        """Cut the data into blocks of at most ``max_rows``; rows that depend on each other stay together."""
        if len(self) <= max_rows or not self.independent_rows:
            return [self]
        return [self.rows(slice(start, start + max_rows)) for start in range(0, len(self), max_rows)]

    def blocks(
        self,
        max_bytes: int,
        *,
        num_particles: int = 1,
        copies: int = 8,
        max_rows: int | None = None,
        capacity: int | None = None,
    ) -> Iterator[Block]:
        """Yield blocks of rows that fit into memory; rows that depend on each other stay together.

        Arguments:
            max_bytes: About how much memory a block may take.
            num_particles: The number of particles of each row that should fit, if that leaves a row at all.
            copies, capacity: See :meth:`capacity`, which is used unless ``capacity`` is given.
            max_rows: The largest number of rows of a block.
        """
        capacity = self.capacity(max_bytes, copies=copies) if capacity is None else capacity
        start = 0
        for block in self.split(min(max_rows or len(self), max(1, capacity // num_particles))):
            yield Block(slice(start, start + len(block)), block, max(1, capacity // len(block)))
            start += len(block)

    def capacity(self, max_bytes: int, *, copies: int = 8) -> int:
        """Return how many particles of one row fit into memory at once.

        Arguments:
            max_bytes: About how much memory they may take.
            copies: How many tensors as large as the largest activation there are at once: 8 when weights are computed,
                four times as many when a gradient is kept.
        """
        return max(1, max_bytes // (copies * self.footprint.bytes))


def suited(x: Tensor, *programs: Any) -> Tensor:
    """Return ``x`` on the parameters' device and, if it is floating, with their type; never as an inference tensor."""
    like = next((parameter for part in modules_behind(*programs) for parameter in part.parameters()), None)
    with torch.inference_mode(False):
        x = x.clone() if x.is_inference() else x  # a tensor made in inference mode can have no part in a gradient
        if like is None:
            return x
        return x.to(device=like.device, dtype=like.dtype if x.is_floating_point() else None)


def programs_of(pair: Any) -> tuple[Program, Program]:
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
