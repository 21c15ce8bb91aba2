r"""Refinement by Hamiltonian Monte Carlo, and the result that chains of any kind have."""

from __future__ import annotations

__all__ = ["from_chains", "hmc"]

import torch
from jaxtyping import Float
from torch import Tensor

from ...ops.streaming import Moments
from ...samplers.chains import Whitened, moved, warmed_up
from ...samplers.gaussian_fit import gaussian_of_guide
from ...samplers.tempering import TemperedPath
from .base import Plan, Refinement, implied_evidence, unknown, weighed
from .convergence import effective_draws, judged, r_hat


def hmc(path: TemperedPath, most: int, plan: Plan) -> Refinement:
    r"""Run chains for every datapoint from draws of the guide, all moved together by :func:`~pyro_vae.ops.hmc.kernel`.

    They run in coordinates in which the guide, as a Gaussian, is standard. A third and two thirds through the warm-up
    these are replaced by those in which the chains so far are; all along, each datapoint's step size follows the
    acceptance of its chains. Then all of that is frozen. A trajectory takes a quarter of a turn, which in a standard
    normal leads to an independent point, by equal steps that are no larger than what is accepted at four times in five;
    its length is jittered by 15% for each chain and transition, so that none can go round in circles. After each
    trajectory there is a jump (:func:`~pyro_vae.ops.hmc.jump`) among eight points, each drawn about where the chains
    are or, as often, from the prior: that is how chains reach other modes.
    """
    density = path.density.require_guide()
    start = gaussian_of_guide(density, most)
    whitened, state, log_size = warmed_up(Whitened(path, start, most), path.draw(plan.num_chains), plan.num_warmup)
    drawn = []
    for _ in range(plan.draws_per_chain):
        state, _ = moved(whitened, state, log_size)
        drawn.append(whitened.points(state.position))
    return from_chains("hmc", path, torch.stack(drawn, 1), most, plan)


def from_chains(
    method: str, path: TemperedPath, u: Float[Tensor, "chains draws batch latent"], most: int, plan: Plan
) -> Refinement:
    """Return the refinement of draws of chains, with the evidence that they imply."""
    r, ess, flat = r_hat(u), effective_draws(u), u.flatten(0, 1)
    evidence = implied_evidence(path, flat, gaussian_of_guide(path.density, most), most, plan.num_particles)
    elbo = Moments.of(weighed(path, plan.num_particles, most)[1])
    return Refinement(
        method=method,
        x=path.density.pair.x,
        z=path.density.values(flat),
        log_w=torch.zeros_like(flat[..., 0]),
        num_chains=len(u),
        r_hat=r,
        ess=ess,
        pareto_k=unknown(ess),
        judgement=judged(r, ess),
        evidence=evidence,
        elbo=elbo.mean,
        elbo_stderr=elbo.stderr,
        gain=evidence.value - elbo.mean,
        gain_stderr=torch.hypot(evidence.stderr, elbo.stderr),
    )
