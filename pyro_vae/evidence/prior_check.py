r"""Whether draws from the prior find what an estimator has overlooked: a part of the posterior far from the guide."""

from __future__ import annotations

__all__ = ["second_opinion"]

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PairError
from ..ops.streaming import LogMoments
from ..ops.verdicts import Judgement
from ..pairs.handlers import untouched
from ..pairs.traces import Program
from .base import LogEvidence
from .latent_sums import Shared, at_nodes, densities_of

_MOST_DRAWS = 2**15  # decoded once for all datapoints
_MOST_DIMENSIONS = 10  # in more, draws from the prior hardly ever meet a posterior
_ERRORS = 4.0


class Points(NamedTuple):
    """Latent values that stand where the nodes of a lattice do."""

    u: Float[Tensor, "nodes latent"]

    @property
    def num_nodes(self) -> int:
        return len(self.u)

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes latent"]:
        return self.u[start:stop]


def second_opinion(
    found: LogEvidence, model: Program, guide: Program, x: Tensor, *, seed: int, max_bytes: int
) -> LogEvidence:
    r"""The answer, with the verdict ``unreliable`` where draws from the prior find clearly more.

    An estimator cannot know of a mode that none of its draws has met: its weights are even and its error bar is small.
    Draws from the prior meet it, if there are few dimensions, whatever the guide says:

    .. math:: \hat p_0(x) = \frac1M \sum_{m=1}^M p(x \mid z_m), \qquad z_m \sim p(z)

    Clearly more is more by four standard errors, :math:`4 \sqrt{\text{stderr}^2 + \text{stderr}_0^2}`, and by another
    :math:`3 / \text{ESS}_0`, since an error bar from few hits says little. Because :math:`E[\hat p_0] = p(x)`, a single
    hit is above log p(x) by so much, 7 nats, with a probability below :math:`e^{-7}`, and several hits are hardly more
    often: a right value stays what it is.

    The draws, at most 32,768 and never more than the estimator's own of all datapoints together, are decoded once for
    all and not counted in ``num_evaluations``. Pairs of more than 10 latent dimensions, of discrete latents, or with a
    prior or a decoder that differ between datapoints get no second opinion.
    """
    with untouched(model, guide, seed=(seed, "second opinion")):
        try:
            others = densities_of(model, guide, x, max_bytes)
            first = next(others)
            if not 0 < first.dim <= _MOST_DIMENSIONS:
                return found
            densities = [first, *others]
        except PairError:
            return found
        nodes = at_nodes(densities, max_bytes=max_bytes, count=lambda _: None)
        if not isinstance(nodes, Shared):
            return found
        num = min(_MOST_DRAWS, int(found.num_evaluations.sum()))
        u = first.draw_prior(-(-num // len(first.x))).flatten(0, 1)[:num]
        prior = nodes.log_sums(Points(u), torch.arange(len(x), device=x.device), prior=False)
    return found._replace(judgement=_with(found, prior))


def _with(found: LogEvidence, prior: LogMoments) -> Judgement:
    more = prior.log_mean - found.value
    needed = _ERRORS * torch.hypot(found.stderr, prior.stderr) + 3 / prior.ess
    verdict, reason = (texts.tolist() for texts in found.judgement)
    for place in (more > needed).nonzero()[:, 0].tolist():
        if verdict[place] != "unreliable":
            verdict[place] = "unreliable"
            reason[place] = (
                f"draws from the prior find {more[place]:.2g} nats more: part of the posterior was overlooked"
            )
    return Judgement(np.array(verdict), np.array(reason, dtype=object))
