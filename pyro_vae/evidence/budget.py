r"""Importance weights summarised as they are drawn: so many of each datapoint, or as many as each of them needs."""

from __future__ import annotations

__all__ = ["Budget", "Pool", "Source", "drawn", "require_proposal"]

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ConfigError, require_one_of
from ..ops.choices import Proposal, names
from ..ops.streaming import TailMoments
from ..pairs.progress import Progress
from ..pairs.traces import Program
from ..samplers.fitted_proposal import REFINEMENT_EVALUATIONS, refined
from ..samplers.proposals import Defensive, Drawer, Guided, Rows

_FIRST = 1024  # draws, before an error is looked at: that of few is small where they missed the large weights
_GROWTH = 4.0  # at most, from one look to the next: an error from few draws says little
_RUNG = 2**0.25  # budgets are rounded up to powers of this, so that datapoints are drawn together
_BUFFER = 1024  # draws per datapoint that wait to be summarised together
_ROWS = 1024  # datapoints whose budgets are settled together


class Pool(NamedTuple):
    """All that was drawn for some datapoints."""

    rows: Rows
    weights: TailMoments
    pilot: int
    """Draws per datapoint that only chose the proposal."""


class Budget(NamedTuple):
    """How many draws: ``most``, or fewer where the standard error has come down to ``target``."""

    most: int
    target: float | None


class Source(NamedTuple):
    """What is drawn from."""

    model: Program
    guide: Program
    x: Tensor
    proposal: str
    apart: bool
    """Whether rows may be left out."""
    capacity: int
    """How many of the largest weights are kept."""
    max_bytes: int
    bar: Progress

    def pools(self, rows: Rows, num: int, drawer: Drawer, pilot: int) -> Iterator[Pool]:
        """``num`` draws of each row, for one run of rows after the other."""
        at, weights, waiting = slice(0, 0), None, []
        self.bar.total += len(rows) * num
        for span, log_w in drawer(rows, num):
            self.bar.update(log_w.numel())
            if weights is not None and span != at:
                yield Pool(rows[at], self._summary(weights, waiting), pilot)
                weights = None
            at = span
            waiting.append(log_w)
            if weights is None or sum(map(len, waiting)) >= _BUFFER:
                weights = self._summary(weights, waiting)
        if weights is not None:
            yield Pool(rows[at], self._summary(weights, waiting), pilot)

    def _summary(self, weights: TailMoments | None, waiting: list[Tensor]) -> TailMoments:
        """Of what was known and what was waiting, which then waits no more."""
        if not waiting:
            assert weights is not None
            return weights
        block = TailMoments.of(torch.cat(waiting), capacity=self.capacity)
        waiting.clear()
        return block if weights is None else weights.merge(block)


def require_proposal(proposal: str) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` unless this is the name of a proposal."""
    if proposal == "inflated":
        raise ConfigError("proposal='inflated' was removed: use 'refined', a wide Gaussian for each datapoint")
    require_one_of("proposal", proposal, names(Proposal))


def drawn(source: Source, budget: Budget) -> Iterator[Pool]:
    """Every datapoint once, with all of its draws."""
    rows = torch.arange(len(source.x), device=source.x.device)
    adaptive = budget.target is not None
    for block in rows.split(_ROWS) if adaptive and source.apart else [rows]:
        for chosen, drawer, pilot in _drawers(source, block):
            first = min(_FIRST, budget.most) if adaptive else budget.most
            for pool in source.pools(chosen, first, drawer, pilot):
                yield from _settled(source, budget, pool, drawer) if adaptive else [pool]


def _drawers(source: Source, rows: Rows) -> Iterator[tuple[Rows, Drawer, int]]:
    """What to draw from for which datapoints, and what it cost each of them to find out."""
    model, guide, x = source.model, source.guide, source.x
    if source.proposal == "defensive":
        yield rows, Defensive(model, guide, x, source.max_bytes), 0
    elif source.proposal == "refined":
        source.bar.total += len(rows) * REFINEMENT_EVALUATIONS
        drawer = refined(model, guide, x, rows, max_bytes=source.max_bytes, tell=source.bar.update)
        yield rows, drawer, REFINEMENT_EVALUATIONS
    else:
        yield rows, Guided(model, guide, x, source.max_bytes), 0


def _settled(source: Source, budget: Budget, pool: Pool, drawer: Drawer) -> Iterator[Pool]:
    """Draw on for those datapoints whose error is too large, most of all for those where it is largest."""
    rows, weights, pilot = pool
    while True:
        goal = _goal(weights, budget)
        if not source.apart:
            goal = goal.max().expand(len(rows))
        done = goal <= weights.num_particles
        if done.any():
            yield Pool(rows[done], weights.at(done), pilot)
            rows, weights, goal = rows[~done], weights.at(~done), goal[~done]
        if not len(rows):
            return
        weights = weights.merge(_more(source, rows, goal - weights.num_particles, drawer))


def _more(source: Source, rows: Rows, missing: Int[Tensor, " chosen"], drawer: Drawer) -> TailMoments:
    """As many further draws of each datapoint as it misses."""
    pools = [
        pool for num in missing.unique().tolist() for pool in source.pools(rows[missing == num], num, drawer, pilot=0)
    ]
    return TailMoments.joined([pool.weights for pool in pools]).at(torch.cat([pool.rows for pool in pools]).argsort())


def _goal(weights: TailMoments, budget: Budget) -> Int[Tensor, " chosen"]:
    r"""How many draws bring the error down to the target: it falls with :math:`1 / \sqrt K`."""
    count, error = weights.num_particles.double(), weights.log_moments.stderr
    assert budget.target is not None
    factor = (error / budget.target).square().nan_to_num(nan=_GROWTH).clamp(max=_GROWTH)
    rung = (_RUNG ** torch.ceil(torch.log(count * factor) / math.log(_RUNG))).ceil()  # above the count, if only by one
    return torch.where(error <= budget.target, count, rung.clamp(max=budget.most).maximum(count)).long()
