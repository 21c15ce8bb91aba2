r"""The result of every refinement, the weights of draws, and the evidence that draws imply."""

from __future__ import annotations

__all__ = ["Plan", "Refinement", "implied_evidence", "weighed"]

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...evidence.base import LogEvidence
from ...evidence.importance import of_weights
from ...ops import verdicts
from ...ops.means import Mean
from ...ops.verdicts import Judgement
from ...samplers.families import Full
from ...samplers.fitted_proposal import inflation, mixture_weights
from ...samplers.gaussian_fit import GuideGaussian, fitted
from ...samplers.proposals import even_blocks
from ...samplers.tempering import TemperedPath


class Plan(NamedTuple):
    """The options of a refinement; each method uses those that concern it."""

    num_draws: int
    num_particles: int
    family: str
    num_steps: int
    num_chains: int
    num_warmup: int

    @property
    def draws_per_chain(self) -> int:
        """The number of draws of each chain, rounded up."""
        return -(-self.num_draws // self.num_chains)


class Refinement(NamedTuple):
    r"""Draws that are closer to :math:`p(z \mid x)` than those of the guide, and what they gain; see :func:`refine`."""

    method: str
    x: Tensor
    """The data ``[batch, *event]``, as floating-point numbers."""
    z: dict[str, Tensor]
    """Site name -> ``[draws, batch, *event]``; of chains, the draws of the first come first, then those of the next."""
    log_w: Float[Tensor, "draws batch"]
    """The draws' log-weights, not normalised; zero for draws that all count the same."""
    num_chains: int
    """The number of chains of each datapoint; 1 for independent draws."""
    r_hat: Float[Tensor, " batch"]
    """The largest R-hat over latent dimensions; nan for independent draws."""
    ess: Float[Tensor, " batch"]
    """The number of effective draws; for chains, the smallest over latent dimensions."""
    pareto_k: Float[Tensor, " batch"]
    """The tail shape of the weights behind the draws; nan for chains, which have none."""
    judgement: Judgement
    """The judgement on the draws; the evidence has its own."""
    evidence: LogEvidence
    r"""The estimate of :math:`\log p(x)` that the draws imply; a lower bound in expectation."""
    elbo: Float[Tensor, " batch"]
    r"""The ELBO of the guide, :math:`\mathcal L(q)`, in nats per datapoint, float64."""
    elbo_stderr: Float[Tensor, " batch"]
    gain: Float[Tensor, " batch"]
    """The gain over ``elbo``, in nats per datapoint, float64; see :func:`refine`."""
    gain_stderr: Float[Tensor, " batch"]
    """Monte-Carlo standard error."""

    @classmethod
    def joined(cls, parts: Sequence[Refinement]) -> Refinement:
        """Return the datapoints of several refinements by one method, concatenated."""
        first = parts[0]
        z = {name: torch.cat([part.z[name] for part in parts], 1) for name in first.z}
        evidence = LogEvidence.joined([part.evidence for part in parts])
        judgement = Judgement.joined([part.judgement for part in parts])
        log_w = torch.cat([part.log_w for part in parts], 1)
        x = torch.cat([part.x for part in parts]).to(log_w)
        rest = ("r_hat", "ess", "pareto_k", "elbo", "elbo_stderr", "gain", "gain_stderr")
        numbers = {name: torch.cat([getattr(part, name) for part in parts]) for name in rest}
        return first._replace(x=x, z=z, log_w=log_w, judgement=judgement, evidence=evidence, **numbers)

    verdict, reason = verdicts.verdict, verdicts.reason

    @property
    def mean_gain(self) -> Mean:
        """The gain in nats per datapoint, with both error bars."""
        return Mean.of(self.gain, self.gain_stderr)

    def __repr__(self) -> str:
        gain, sizes = self.mean_gain, ", ".join(f"{name} {list(value.shape)}" for name, value in self.z.items())
        chains = f" in {self.num_chains} chains" if self.num_chains > 1 else ""
        worst = "" if self.r_hat.isnan().all() else f", R-hat at most {self.r_hat.max():.3f}"
        return (
            f"Refinement by {self.method}: gained {gain.value:.2f} ± {gain.monte_carlo_error:.2g} nats per datapoint "
            f"over the guide's ELBO of {self.elbo.mean():.2f}; {sizes}{chains}; ESS at least {self.ess.min():.0f}"
            f"{worst}; {(self.verdict == 'ok').mean():.0%} ok"
        )


Method = Callable[[TemperedPath, int, Plan], Refinement]
"""From a path for some rows, the number of particles that fit into memory, and the options, to the refinement."""


def weighed(path: TemperedPath, num: int, most: int) -> tuple[Tensor, Float[Tensor, "particles batch"]]:
    """Return draws from the guide and their log-weights."""
    blocks = [path.draw(min(most, num - done)) for done in range(0, num, most)]
    return torch.cat(blocks), torch.cat([path.log_weights(u) for u in blocks])


def implied_evidence(
    path: TemperedPath, u: Float[Tensor, "draws batch latent"], start: GuideGaussian, most: int, num_particles: int
) -> LogEvidence:
    r"""Return the importance-sampling estimate from the Gaussian of the draws' mean and covariance, with fresh draws.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K
        \frac{p(x, z_k)}{\alpha\, q(z_k \mid x) + (1 - \alpha)\, g(z_k)}, \qquad \alpha = 0.1

    The Gaussian g is made wider as that of ``proposal="refined"`` is, and a tenth of the draws are from the guide, for
    modes that g does not know of. Fresh draws from a fixed density make this right on average, whatever g was fitted
    to, so it may be fitted to all there is.
    """
    g = fitted(u, start)
    member = Full(g.loc, inflation(u.shape[-1]) * g.scale_tril)
    before, blocks = path.num_evaluations, []
    for size in even_blocks(num_particles, max(10, most)):
        path.count(size)
        blocks.append(mixture_weights(path.density, member, size))
    return of_weights(torch.cat(blocks), pilot=before)


def unknown(like: Tensor) -> Any:
    """Return nan for every datapoint."""
    return torch.full_like(like, torch.nan)
