r"""Summaries of draws that are merged block by block, so that no more than one block has to be in memory."""

from __future__ import annotations

__all__ = ["LogMoments", "Moments", "TailMoments"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class LogMoments(NamedTuple):
    r"""The streaming summary of a set of weights: :math:`\log \sum_k w_k`, :math:`\log \sum_k w_k^2` and :math:`K`.

    The mean, standard error and effective sample size of an importance estimate follow from these three numbers, and
    :meth:`merge` adds those of another, disjoint set of draws.

    Example:
        >>> whole = LogMoments.of(torch.tensor([[0.0], [1.0]]))
        >>> parts = LogMoments.of(torch.tensor([[0.0]])).merge(LogMoments.of(torch.tensor([[1.0]])))
        >>> torch.allclose(whole.log_mean, parts.log_mean), whole.num_particles == parts.num_particles
        (True, True)
    """

    log_sum: Tensor
    log_sum_squares: Tensor
    num_particles: int | Tensor
    """The number of draws K, the same for all datapoints or one for each."""

    @classmethod
    def of(cls, log_w: Float[Tensor, "particles *batch"], /) -> LogMoments:
        """Return the summary of one block of log-weights, in float64."""
        log_w = log_w.double()
        return cls(torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0), log_w.shape[0])

    def merge(self, other: LogMoments) -> LogMoments:
        """Return the summary of both sets of draws."""
        return LogMoments(
            torch.logaddexp(self.log_sum, other.log_sum),
            torch.logaddexp(self.log_sum_squares, other.log_sum_squares),
            self.num_particles + other.num_particles,
        )

    @property
    def log_mean(self) -> Tensor:
        r"""The log-mean weight :math:`\log \frac1K \sum_k w_k`, per datapoint."""
        return self.log_sum - self._counts.log()

    @property
    def ess(self) -> Tensor:
        r"""Effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and K; 0 if all weights are 0."""
        ess = torch.exp(2 * self.log_sum - self.log_sum_squares).clamp(min=1).minimum(self._counts)
        return torch.where(self.log_sum == -torch.inf, torch.zeros_like(ess), ess)

    @property
    def stderr(self) -> Tensor:
        r"""Delta-method standard error of :attr:`log_mean`, :math:`\sqrt{(K / \mathrm{ESS} - 1) / (K - 1)}`, in nats.

        This is the relative standard error of the mean weight, :math:`\mathrm{sd}(w) / (\sqrt K \bar w)`, with the
        unbiased sample variance. It is nan for a single draw, and infinite where all weights are zero.
        """
        counts = self._counts
        stderr = torch.sqrt((counts / self.ess - 1).clamp(min=0) / (counts - 1).clamp(min=1))
        return torch.where(counts < 2, torch.nan, stderr)

    @property
    def _counts(self) -> Tensor:
        return torch.as_tensor(self.num_particles, dtype=torch.float64, device=self.log_sum.device)


class TailMoments(NamedTuple):
    r"""A streaming summary that keeps the largest weights themselves, and the power sums of all others.

    The shape of the tail decides whether an importance estimate can be trusted, and it can only be read from the
    largest weights themselves. All sums are of positive terms, so nothing cancels. :meth:`merge` adds the draws of
    another block; datapoints may have different numbers of draws.

    Example:
        >>> log_w = torch.linspace(-3, 0, 1000, dtype=torch.float64)[:, None]
        >>> summary = TailMoments.of(log_w[:500], capacity=20).merge(TailMoments.of(log_w[500:], capacity=20))
        >>> torch.allclose(summary.log_moments.log_mean, LogMoments.of(log_w).log_mean), summary.tail.shape
        (True, torch.Size([20, 1]))
    """

    tail: Float[Tensor, "tail *batch"]
    """The largest log-weights, in decreasing order, filled up with minus infinity where there are fewer draws."""
    body: Float[Tensor, "power *batch"]
    r"""The log-power sums :math:`\log \sum_k w_k^m` over all other weights, for :math:`m = 1, \dots, 4`."""
    num_particles: Int[Tensor, "*batch"]

    @classmethod
    def of(cls, log_w: Float[Tensor, "particles *batch"], /, *, capacity: int) -> TailMoments:
        """Return the summary of one block of log-weights, in float64; the tail holds the ``capacity`` largest."""
        counts = torch.full(log_w.shape[1:], log_w.shape[0], device=log_w.device)
        short = max(0, capacity - log_w.shape[0])
        tail, indices = log_w.topk(min(capacity, log_w.shape[0]), 0)
        padding = tail.new_full((short, *log_w.shape[1:]), -torch.inf)
        return cls(torch.cat([tail, padding]).double(), _log_powers(log_w.scatter(0, indices, -torch.inf)), counts)

    def merge(self, other: TailMoments) -> TailMoments:
        """Return the summary of both sets of draws."""
        both = torch.cat([self.tail, other.tail]).sort(0, descending=True).values
        body = torch.logaddexp(torch.logaddexp(self.body, other.body), _log_powers(both[len(self.tail) :]))
        return TailMoments(both[: len(self.tail)], body, self.num_particles + other.num_particles)

    def at(self, rows: Shaped[Tensor, " chosen"]) -> TailMoments:
        """Return the summary of some of the datapoints."""
        return TailMoments(self.tail[:, rows], self.body[:, rows], self.num_particles[rows])

    @classmethod
    def joined(cls, parts: Sequence[TailMoments]) -> TailMoments:
        """Return the datapoints of several summaries, one summary after the other."""
        tail, body, counts = zip(*parts, strict=True)
        return cls(torch.cat(tail, 1), torch.cat(body, 1), torch.cat(counts))

    @property
    def log_moments(self) -> LogMoments:
        """The sums over all draws, which give the mean, its error and the effective sample size."""
        return LogMoments(
            torch.logaddexp(torch.logsumexp(self.tail, 0), self.body[0]),
            torch.logaddexp(torch.logsumexp(2 * self.tail, 0), self.body[1]),
            self.num_particles,
        )


def _log_powers(log_w: Float[Tensor, "particles *batch"]) -> Float[Tensor, "power *batch"]:
    log_w = log_w.double()
    top = log_w.amax(0).clamp(min=torch.finfo(torch.float64).min)
    w = torch.exp(log_w - top)
    squares = w * w
    sums = torch.stack([w.sum(0), squares.sum(0), (squares * w).sum(0), (squares * squares).sum(0)])
    powers = torch.arange(1, 5, dtype=top.dtype, device=top.device).reshape(-1, *[1] * top.ndim)
    return sums.log() + powers * top


class Moments(NamedTuple):
    r"""The streaming summary of a plain mean: count, mean and sum of squared deviations, merged without cancellation.

    References:
        | Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979)
        | http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf

    Example:
        >>> Moments.of(torch.tensor([[1.0]])).merge(Moments.of(torch.tensor([[3.0]]))).stderr
        tensor([1.], dtype=torch.float64)
    """

    mean: Tensor
    sum_squares: Tensor
    num_particles: int

    @classmethod
    def of(cls, values: Float[Tensor, "particles *batch"], /) -> Moments:
        """Return the summary of one block of values, in float64."""
        values = values.double()
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        # One log-weight of -inf makes the mean -inf and its error infinite; equal values, even -inf, have no error.
        equal = (values == values[:1]).all(0)
        squares = torch.where(equal, 0.0, torch.where(mean == -torch.inf, torch.inf, squares))
        return cls(mean, squares, values.shape[0])

    def merge(self, other: Moments) -> Moments:
        """Return the summary of both blocks."""
        total = self.num_particles + other.num_particles
        step = torch.where(other.mean == self.mean, 0.0, other.mean - self.mean)  # 0 also if both are -inf
        return Moments(
            self.mean * (self.num_particles / total) + other.mean * (other.num_particles / total),
            self.sum_squares + other.sum_squares + step.square() * (self.num_particles * other.num_particles / total),
            total,
        )

    @property
    def stderr(self) -> Tensor:
        r"""The standard error of the mean, :math:`\mathrm{sd} / \sqrt K`; nan for a single value."""
        if self.num_particles < 2:
            return torch.full_like(self.mean, torch.nan)
        return torch.sqrt(self.sum_squares / (self.num_particles - 1) / self.num_particles)
