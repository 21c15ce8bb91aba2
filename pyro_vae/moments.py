r"""Streaming summaries of draws, block by block, so that a million particles never have to be in memory at once."""

from __future__ import annotations

__all__ = ["LogMoments", "Moments"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class LogMoments(NamedTuple):
    r"""The streaming summary of a set of weights: :math:`\log \sum_k w_k`, :math:`\log \sum_k w_k^2` and :math:`K`.

    Two summaries of disjoint sets of draws add up with :meth:`merge`, so a million particles never have to be in
    memory at once. Everything an importance estimate reports follows from the three numbers.

    Example:
        >>> whole = LogMoments.of(torch.tensor([[0.0], [1.0]]))
        >>> parts = LogMoments.of(torch.tensor([[0.0]])).merge(LogMoments.of(torch.tensor([[1.0]])))
        >>> torch.allclose(whole.log_mean, parts.log_mean), whole.num_particles == parts.num_particles
        (True, True)
    """

    log_sum: Tensor
    log_sum_squares: Tensor
    num_particles: int

    @classmethod
    def of(cls, log_w: Float[Tensor, "particles *batch"], /) -> LogMoments:
        """Summarise one block of log-weights, accumulating in float64."""
        log_w = log_w.double()
        return cls(torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0), log_w.shape[0])

    def merge(self, other: LogMoments) -> LogMoments:
        """The summary of both sets of draws."""
        return LogMoments(
            torch.logaddexp(self.log_sum, other.log_sum),
            torch.logaddexp(self.log_sum_squares, other.log_sum_squares),
            self.num_particles + other.num_particles,
        )

    @property
    def log_mean(self) -> Tensor:
        r""":math:`\log \frac1K \sum_k w_k`, per datapoint."""
        return self.log_sum - math.log(self.num_particles)

    @property
    def ess(self) -> Tensor:
        r"""Effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and K; 0 if all weights are 0."""
        found = torch.exp(2 * self.log_sum - self.log_sum_squares).clamp(1, self.num_particles)
        return torch.where(self.log_sum == -torch.inf, torch.zeros_like(found), found)

    @property
    def stderr(self) -> Tensor:
        r"""Delta-method standard error of :attr:`log_mean`, :math:`\sqrt{(K / \mathrm{ESS} - 1) / (K - 1)}`, in nats.

        This is the relative standard error of the mean weight, :math:`\mathrm{sd}(w) / (\sqrt K \bar w)`, with the
        unbiased sample variance. One draw has no standard error (nan); all weights zero gives infinity.
        """
        if self.num_particles < 2:
            return torch.full_like(self.log_sum, torch.nan)
        return torch.sqrt((self.num_particles / self.ess - 1).clamp(min=0) / (self.num_particles - 1))


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
        """Summarise one block of values, accumulating in float64."""
        values = values.double()
        mean = values.mean(0)
        spread = (values - mean).square().sum(0)
        # A weight of zero among others makes the mean -inf and its error infinite; the same value throughout has none.
        equal = (values == values[:1]).all(0)
        spread = torch.where(equal, 0.0, torch.where(mean == -torch.inf, torch.inf, spread))
        return cls(mean, spread, values.shape[0])

    def merge(self, other: Moments) -> Moments:
        """The summary of both blocks."""
        total = self.num_particles + other.num_particles
        step = torch.where(other.mean == self.mean, 0.0, other.mean - self.mean)  # also if both are -inf
        return Moments(
            self.mean * (self.num_particles / total) + other.mean * (other.num_particles / total),
            self.sum_squares + other.sum_squares + step.square() * (self.num_particles * other.num_particles / total),
            total,
        )

    @property
    def stderr(self) -> Tensor:
        r"""Standard error of the mean, :math:`\mathrm{sd} / \sqrt K`; nan for a single value."""
        if self.num_particles < 2:
            return torch.full_like(self.mean, torch.nan)
        return torch.sqrt(self.sum_squares / (self.num_particles - 1) / self.num_particles)
