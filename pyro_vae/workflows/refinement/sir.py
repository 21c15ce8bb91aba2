r"""Sampling importance resampling: the guide's own draws, resampled by their importance weights."""

from __future__ import annotations

__all__ = ["sir"]

import torch

from ...evidence.importance import of_weights
from ...ops.pareto import smooth
from ...ops.resampling import systematic
from ...ops.streaming import Moments
from ...samplers.tempering import TemperedPath
from .base import Plan, Refinement, unknown, weighed


def sir(path: TemperedPath, most: int, plan: Plan) -> Refinement:
    r"""Draw K particles from the guide and keep ``num_draws``, each with a probability in proportion to its weight.

    The weights are those of Pareto smoothing, which keep a few draws from making up the sample. With n effective
    particles the draws are worth :math:`1 / (1/n + 1/\text{num_draws})`. The gain is from the same draws on both
    sides, so its error is that of the mean of :math:`w_k / \bar w - \log w_k`.

    References:
        | Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988)
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)  https://arxiv.org/abs/1507.02646
    """
    path.density.require_guide()
    u, log_w = weighed(path, plan.num_particles, most)
    evidence, elbo = of_weights(log_w), Moments.of(log_w)
    smoothed, _ = smooth(log_w)
    chosen = systematic(torch.where(smoothed.isfinite(), smoothed, -torch.inf), plan.num_draws)
    drawn = u.gather(0, chosen[..., None].expand(-1, -1, u.shape[-1]))
    influence = (log_w - evidence.value).exp() - log_w
    return Refinement(
        method="sir",
        x=path.density.pair.x,
        z=path.density.values(drawn),
        log_w=torch.zeros_like(drawn[..., 0]),
        num_chains=1,
        r_hat=unknown(evidence.ess),
        ess=1 / (1 / evidence.ess + 1 / plan.num_draws),
        pareto_k=evidence.pareto_k,
        judgement=evidence.judgement,
        evidence=evidence,
        elbo=elbo.mean,
        elbo_stderr=elbo.stderr,
        gain=evidence.value - elbo.mean,
        gain_stderr=Moments.of(influence).stderr,
    )
