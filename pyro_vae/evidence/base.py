"""The result of every evidence estimator."""

from __future__ import annotations

__all__ = ["LogEvidence"]

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ops import verdicts
from ..ops.means import Mean
from ..ops.verdicts import Judgement


class LogEvidence(NamedTuple):
    r"""An estimate of :math:`\log p(x)` or of a bound on it, per datapoint.

    ``side`` says in which direction ``value`` errs *in expectation*: ``"lower"``, ``"upper"``, or ``"point"`` for
    neither. ``stderr`` is its Monte-Carlo standard error, the standard deviation over repetitions on the same
    datapoint. The mean over a test set has a second, usually far larger error, due to the choice of datapoints; the two
    are reported separately and never mixed.
    """

    value: Float[Tensor, " batch"]
    """The estimate in nats per datapoint, float64."""
    stderr: Float[Tensor, " batch"]
    """The Monte-Carlo standard error, in nats."""
    side: Literal["lower", "upper", "point"]
    ess: Float[Tensor, " batch"]
    """The effective sample size of the weights, from 1 to ``num_particles``; nan where there are no weights."""
    pareto_k: Float[Tensor, " batch"]
    """The tail shape k-hat of the weights; nan where there are none, or too few."""
    judgement: Judgement
    num_particles: Int[Tensor, " batch"]
    """The number of draws, or of chains, per datapoint."""
    num_evaluations: Int[Tensor, " batch"]
    r"""The evaluations of :math:`\log p(x, z)` per datapoint, pilots included; one with its gradient counts once."""
    simulated: bool = False
    """True for data simulated from the model; it then holds for real data only as far as the two are alike."""

    @classmethod
    def joined(cls, parts: Sequence[LogEvidence], order: Int[Tensor, " batch"] | None = None) -> LogEvidence:
        """Return the datapoints of several estimates of one kind concatenated, then put into the given order."""
        whole = cls(*(_cat([getattr(part, name) for part in parts]) for name in cls._fields))
        if order is None:
            return whole
        return whole._replace(
            judgement=Judgement(*(texts[order.cpu().numpy()] for texts in whole.judgement)),
            **{name: part[order] for name, part in whole._asdict().items() if isinstance(part, Tensor)},
        )

    verdict, reason = verdicts.verdict, verdicts.reason

    def share(self, verdict: Literal["ok", "doubtful", "unreliable"]) -> float:
        """Return the share of datapoints with this verdict."""
        return float((self.verdict == verdict).mean())

    @property
    def mean(self) -> float:
        """The mean over datapoints, in nats per datapoint."""
        return Mean.of(self.value, self.stderr).value.item()

    @property
    def monte_carlo_error(self) -> float:
        r"""The standard error of :attr:`mean` from the draws, :math:`\sqrt{\sum_b \mathrm{stderr}_b^2} / N`."""
        return Mean.of(self.value, self.stderr).monte_carlo_error.item()

    @property
    def test_set_error(self) -> float:
        r"""The standard error of :attr:`mean` from the choice of datapoints, :math:`\mathrm{sd} / \sqrt N`."""
        return Mean.of(self.value, self.stderr).test_set_error.item()


def _cat(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], Judgement):
        return Judgement.joined(parts)
    return parts[0]
