r"""The prior check: draws from the prior show where an estimate has missed a part of the posterior."""

from __future__ import annotations

__all__ = ["prior_check"]

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PairError
from ..ops.streaming import LogMoments
from ..ops.verdicts import Judgement
from ..pairs.pair import Pair
from .base import LogEvidence
from .latent_sums import SharedSums, densities_of, sums_over

_MAX_DRAWS = 2**15  # decoded once for all datapoints
_MAX_DIMENSIONS = 10  # in more, draws from the prior hardly ever meet a posterior
_ERRORS = 4.0  # standard errors


class Points(NamedTuple):
    """Latent values that stand in for the nodes of a grid."""

    u: Float[Tensor, "nodes latent"]

    @property
    def num_nodes(self) -> int:
        return len(self.u)

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes latent"]:
        return self.u[start:stop]


def prior_check(evidence: LogEvidence, pair: Pair, *, seed: int, max_bytes: int) -> LogEvidence:
    r"""Return the estimate, with the verdict ``unreliable`` where draws from the prior find clearly more.

    An estimator cannot know of a mode that none of its draws has met: its weights are even and its error bar is small.
    Draws from the prior meet it, if there are few dimensions, whatever the guide is:

    .. math:: \hat p_0(x) = \frac1M \sum_{m=1}^M p(x \mid z_m), \qquad z_m \sim p(z)

    Clearly more means more by four standard errors, :math:`4 \sqrt{\text{stderr}^2 + \text{stderr}_0^2}`, and by
    another :math:`3 / \text{ESS}_0`, since the error bar of few hits is itself uncertain. As
    :math:`E[\hat p_0] = p(x)`, a single hit exceeds log p(x) by these 4 + 3 nats with a probability below
    :math:`e^{-7}`, and several hits hardly more often: a right value keeps its verdict.

    The draws, at most 32,768 and never more than the estimator's evaluations of all datapoints together, are decoded
    once for all datapoints and not counted in ``num_evaluations``. Pairs with more than 10 latent dimensions, with
    discrete latents, or with a prior or a decoder that differs between datapoints are not checked.
    """
    with pair.evaluation(seed, "second opinion"):
        try:
            densities = densities_of(pair, max_bytes)
            first = next(densities)
            if not 0 < first.dim <= _MAX_DIMENSIONS:
                return evidence
            densities = [first, *densities]
        except PairError:
            return evidence
        sums = sums_over(densities, max_bytes=max_bytes, on_progress=lambda _: None)
        if not isinstance(sums, SharedSums):
            return evidence
        num = min(_MAX_DRAWS, int(evidence.num_evaluations.sum()))
        u = first.draw_prior(-(-num // len(first))).flatten(0, 1)[:num]
        prior = sums.log_sums(Points(u), torch.arange(len(pair), device=pair.x.device), prior=False)
    return evidence._replace(judgement=_judged(evidence, prior))


def _judged(evidence: LogEvidence, prior: LogMoments) -> Judgement:
    more = prior.log_mean - evidence.value
    needed = _ERRORS * torch.hypot(evidence.stderr, prior.stderr) + 3 / prior.ess
    verdict, reason = (texts.tolist() for texts in evidence.judgement)
    for row in (more > needed).nonzero()[:, 0].tolist():
        if verdict[row] != "unreliable":
            verdict[row] = "unreliable"
            reason[row] = f"draws from the prior find {more[row]:.2g} nats more: part of the posterior was overlooked"
    return Judgement.of(list(zip(verdict, reason, strict=True)))
