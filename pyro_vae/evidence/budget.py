r"""Importance weights, summarised as they are drawn: a fixed number per datapoint, or until its error is small."""

from __future__ import annotations

__all__ = ["Budget", "Pool", "Source", "drawn", "require_proposal"]

import math
from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ConfigError, require_one_of
from ..ops.choices import Proposal
from ..ops.streaming import TailMoments
from ..pairs.pair import Pair
from ..pairs.progress import Progress
from ..samplers.fitted_proposal import FIT_EVALUATIONS, fitted_proposal
from ..samplers.proposals import DefensiveProposal, GuideProposal, Proposer, Rows

_FIRST = 1024  # draws before the first look at the error, which is too small if few draws missed the large weights
_GROWTH = 4.0  # largest factor from one look to the next: an error from few draws is itself uncertain
_RUNG = 2**0.25  # budgets are rounded up to powers of this, so that datapoints are drawn together
_BUFFER = 1024  # draws per datapoint that wait to be summarised together
_ROWS = 1024  # datapoints whose budgets are settled together


class Pool(NamedTuple):
    """The summary of all draws for some datapoints."""

    rows: Rows
    weights: TailMoments
    pilot: int
    """The number of evaluations per datapoint that only fitted the proposal."""


class Budget(NamedTuple):
    """The number of draws: ``max_particles``, or fewer where the standard error has come down to ``target``."""

    max_particles: int
    target: float | None


class Source(NamedTuple):
    """The pair to draw for, and the proposal to draw from."""

    pair: Pair
    proposal: str
    capacity: int
    """The number of the largest weights that are kept."""
    max_bytes: int
    bar: Progress

    def proposer(self, rows: Rows) -> tuple[Proposer, int]:
        """Return the proposal for these rows, and the number of evaluations that its fit has taken."""
        if self.proposal == "defensive":
            return DefensiveProposal(self.pair, self.max_bytes), 0
        if self.proposal == "refined":
            self.bar.total += len(rows) * FIT_EVALUATIONS
            fit = fitted_proposal(self.pair, rows, max_bytes=self.max_bytes, on_progress=self.bar.update)
            return fit, FIT_EVALUATIONS
        return GuideProposal(self.pair, self.max_bytes), 0

    def pools(self, rows: Rows, num: int, proposer: Proposer, pilot: int) -> Iterator[Pool]:
        """Yield the summary of ``num`` draws of each row, for one block of rows after the other."""
        at, weights, waiting = slice(0, 0), None, []
        self.bar.total += len(rows) * num
        for span, log_w in proposer(rows, num):
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
        """Return the summary with the waiting draws merged into it, and clear their list."""
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
    require_one_of("proposal", proposal, get_args(Proposal))


def drawn(source: Source, budget: Budget) -> Iterator[Pool]:
    """Yield every datapoint once, with all of its draws."""
    rows = torch.arange(len(source.pair), device=source.pair.x.device)
    adaptive = budget.target is not None
    for block in rows.split(_ROWS) if adaptive and source.pair.independent_rows else [rows]:
        proposer, pilot = source.proposer(block)
        first = min(_FIRST, budget.max_particles) if adaptive else budget.max_particles
        for pool in source.pools(block, first, proposer, pilot):
            yield from _settled(source, budget, pool, proposer) if adaptive else [pool]


def _settled(source: Source, budget: Budget, pool: Pool, proposer: Proposer) -> Iterator[Pool]:
    """Yield datapoints as their errors reach the target; the larger the error, the more particles are drawn next."""
    rows, weights, pilot = pool
    while True:
        goal = _goal(weights, budget)
        if not source.pair.independent_rows:
            goal = goal.max().expand(len(rows))
        done = goal <= weights.num_particles
        if done.any():
            yield Pool(rows[done], weights.at(done), pilot)
            rows, weights, goal = rows[~done], weights.at(~done), goal[~done]
        if not len(rows):
            return
        weights = weights.merge(_more(source, rows, goal - weights.num_particles, proposer))


def _more(source: Source, rows: Rows, missing: Int[Tensor, " chosen"], proposer: Proposer) -> TailMoments:
    """Return the summary of the missing particles of each datapoint."""
    pools = [
        pool for num in missing.unique().tolist() for pool in source.pools(rows[missing == num], num, proposer, pilot=0)
    ]
    return TailMoments.joined([pool.weights for pool in pools]).at(torch.cat([pool.rows for pool in pools]).argsort())


def _goal(weights: TailMoments, budget: Budget) -> Int[Tensor, " chosen"]:
    r"""Return the number of draws that brings the error down to the target, as it falls with :math:`1 / \sqrt K`."""
    count, error = weights.num_particles.double(), weights.log_moments.stderr
    assert budget.target is not None
    factor = (error / budget.target).square().nan_to_num(nan=_GROWTH).clamp(max=_GROWTH)
    rung = (_RUNG ** torch.ceil(torch.log(count * factor) / math.log(_RUNG))).ceil()  # above the count, by at least one
    return torch.where(error <= budget.target, count, rung.clamp(max=budget.max_particles).maximum(count)).long()
