r"""Local variational inference: for each datapoint the best member of a family, optimised from the guide's Gaussian."""

from __future__ import annotations

__all__ = ["svi"]

import torch

from ...evidence.importance import of_weights
from ...samplers import local_svi
from ...samplers.families import FAMILIES
from ...samplers.gaussian_fit import gaussian_of_guide
from ...samplers.local_svi import best_member, compared
from ...samplers.tempering import TemperedPath
from .base import Plan, Refinement, implied_evidence, unknown

_STEP_PARTICLES, _LEARNING_RATE = 10, 0.05


def svi(path: TemperedPath, most: int, plan: Plan) -> Refinement:
    r"""Draw from :math:`q^* = \arg\max_{q \in \mathcal Q} \mathcal L(q)` and weigh the draws.

    The optimum is found by Adam on the path derivative of the ELBO, as in
    :func:`~pyro_vae.diagnostics.inference_gaps`; where it is no better than the start, the start is kept.

    References:
        | Semi-Amortized Variational Autoencoders (Kim et al., 2018)  https://arxiv.org/abs/1802.02550
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)  https://arxiv.org/abs/1801.03558
    """
    density = path.density.require_guide()
    start = gaussian_of_guide(density, most)
    member = FAMILIES[plan.family](start.loc, start.scale_tril)
    plans = local_svi.Plan(plan.num_steps, plan.num_particles, _LEARNING_RATE, _STEP_PARTICLES, most)
    best = best_member(density, member, plans, lambda steps: path.count(steps * _STEP_PARTICLES))
    before, after, stderr = compared(density, start, member, best, plans)
    path.count(3 * plan.num_particles)
    noise = torch.randn(plan.num_draws, *start.loc.shape).to(start.loc)
    u, log_q = member.draw(noise, best)
    log_w = torch.cat([density.terms(part, q=False).log_p for part in u.split(most)]) - log_q
    path.count(plan.num_draws)
    draws = of_weights(log_w)
    return Refinement(
        method="svi",
        x=density.pair.x,
        z=density.values(u),
        log_w=log_w,
        num_chains=1,
        r_hat=unknown(draws.ess),
        ess=draws.ess,
        pareto_k=draws.pareto_k,
        judgement=draws.judgement,
        evidence=implied_evidence(path, u, start, most, plan.num_particles),
        elbo=before.mean,
        elbo_stderr=before.stderr,
        gain=after.mean - before.mean,
        gain_stderr=stderr,
    )
