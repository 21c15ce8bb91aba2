r"""Hamiltonian Monte Carlo for many datapoints at once, in coordinates in which each posterior is nearly standard."""

from __future__ import annotations

__all__ = ["Whitened", "from_chains", "hmc"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from ...ops.hmc import Evaluation, Info, State, init, jump, kernel
from ...ops.streaming import Moments
from ...ops.weights import log_mixture
from ...pairs.density import Terms
from ...samplers import Start, fitted, start_of
from ...samplers.fitted_proposal import inflation
from ...samplers.tempering import Path, unvalidated
from .base import Plan, Refinement, implied_evidence, unknown, weighed
from .convergence import effective_draws, judged, r_hat

_ACCEPTANCE = 0.8
_WINDOWS = 3  # of the warm-up: after each but the last the coordinates are found anew
_QUARTER = math.pi / 2  # of a turn, after which a standard normal has forgotten where it was
_MOST_STEPS = 16  # of a trajectory, however small they have to be
_PLACES = 8  # to jump to


class Whitened(NamedTuple):
    r"""The posterior's log-density of :math:`v` in :math:`u = m_b + L_b v`, up to a constant for each datapoint."""

    path: Path
    start: Start
    """Of :math:`m_b` and :math:`L_b`."""
    most: int

    def __call__(self, v: Float[Tensor, "particles batch latent"]) -> Evaluation:
        pieces = [self._evaluated(piece) for piece in v.split(self.most)]
        log_p, slope, log_prior = map(torch.cat, zip(*pieces, strict=True))
        return Evaluation(log_p, slope, carried=(log_prior,))

    def points(self, v: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch latent"]:
        """Where v is in the pair's unconstrained coordinates."""
        return self.start.loc + torch.einsum("bij,kbj->kbi", self.start.scale_tril, v)

    def begin(self, u: Float[Tensor, "particles batch latent"]) -> State:
        """Chains at u."""
        return init(self.start.noise(u), self)

    def jumped(self, state: State) -> State:
        """The chains after jumps among draws of an even mixture of an inflated standard normal and the prior."""
        num, size = len(state.position), inflation(state.position.shape[-1])
        near = size * torch.randn(_PLACES * num, *state.position.shape[1:]).to(state.position)
        there = _either(near, self.start.noise(self.path.density.draw_prior(len(near))))
        terms = [self._terms(piece) for piece in there.split(self.most)]
        log_p = torch.cat([state.log_density, *(one.log_p for one in terms)])
        log_prior = torch.cat([*state.carried, *(one.log_prior for one in terms)])
        log_near = Normal(0.0, size).log_prob(torch.cat([state.position, there])).sum(-1)
        log_volume = self.start.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_w = log_p - log_mixture(log_near, log_prior + log_volume, 0.5)
        return jump(self, state, there.unflatten(0, (-1, num)), log_w.unflatten(0, (-1, num)))

    def _evaluated(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            terms = self._terms(v)
            (slope,) = torch.autograd.grad(terms.log_p.sum(), v)
        return terms.log_p.detach(), slope, terms.log_prior.detach()

    def _terms(self, v: Float[Tensor, "particles batch latent"]) -> Terms:
        self.path.note(len(v))
        with unvalidated():
            return self.path.density.terms(self.points(v), q=False)


def _either(
    near: Float[Tensor, "particles batch latent"], far: Float[Tensor, "particles batch latent"]
) -> Float[Tensor, "particles batch latent"]:
    """One or the other, each by a coin of its own: half of each would not leave the posterior unchanged."""
    return torch.where(torch.rand(near.shape[:2])[..., None].to(near) < 0.5, near, far)


class StepSize(NamedTuple):
    r"""Dual averaging of each datapoint's step size, until its chains accept what they should on average.

    References:
        | The No-U-Turn Sampler (Hoffman & Gelman, 2014)  https://arxiv.org/abs/1111.4246
    """

    anchor: Float[Tensor, " batch"]
    log_size: Float[Tensor, " batch"]
    average: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    num_told: int

    @classmethod
    def near(cls, log_size: Float[Tensor, " batch"]) -> StepSize:
        return cls(log_size, log_size, log_size, torch.zeros_like(log_size), 0)

    def told(self, acceptance: Float[Tensor, " batch"]) -> StepSize:
        """The next, after chains that accepted so much."""
        num = self.num_told + 1
        error = self.error + (_ACCEPTANCE - acceptance - self.error) / (num + 10)
        log_size = (self.anchor - math.sqrt(num) / 0.05 * error).clamp(max=math.log(_QUARTER))
        average = self.average + num**-0.75 * (log_size - self.average)
        return StepSize(self.anchor, log_size, average, error, num)


def hmc(path: Path, most: int, plan: Plan) -> Refinement:
    r"""Chains for every datapoint, from draws of the guide, all moved together by :func:`~pyro_vae.ops.hmc.kernel`.

    They run in coordinates in which the guide, as a Gaussian, is standard. A third and two thirds through the warm-up
    these are replaced by those in which the chains so far are; all along, each datapoint's step size follows the
    acceptance of its chains. Then all of that is frozen. A trajectory takes a quarter of a turn, which in a standard
    normal leads to an independent point, by equal steps that are no larger than what is accepted at four times in five;
    its length is jittered by 15% for each chain and transition, so that none can go round in circles. After each
    trajectory there is a jump (:func:`~pyro_vae.ops.hmc.jump`) among eight points, each drawn about where the chains
    are or, as often, from the prior: that is how chains reach other modes.
    """
    density = path.density.require_guide()
    start = start_of(density, most)
    whitened, state, log_size = _warmed_up(Whitened(path, start, most), path.draw(plan.num_chains), plan.num_warmup)
    drawn = []
    for _ in range(plan.draws_per_chain):
        state, _ = _moved(whitened, state, log_size)
        drawn.append(whitened.points(state.position))
    return from_chains("hmc", path, torch.stack(drawn, 1), most, plan)


def _warmed_up(
    whitened: Whitened, u: Float[Tensor, "chains batch latent"], num_warmup: int
) -> tuple[Whitened, State, Float[Tensor, " batch"]]:
    """Coordinates, chains and step sizes, none of which depends on any later transition."""
    log_size = u.new_full(u.shape[1:2], -0.25 * math.log(u.shape[-1]))
    for window in range(_WINDOWS):
        state, sizes, seen = whitened.begin(u), StepSize.near(log_size), []
        for _ in range(num_warmup // _WINDOWS):
            state, info = _moved(whitened, state, sizes.log_size)
            sizes = sizes.told(info.acceptance.mean(0))
            seen.append(whitened.points(state.position))
        log_size, u = sizes.average, whitened.points(state.position)
        if window < _WINDOWS - 1 and seen:
            whitened = whitened._replace(start=fitted(torch.cat(seen[len(seen) // 2 :]), whitened.start))
    return whitened, whitened.begin(u), log_size


def _moved(whitened: Whitened, state: State, log_size: Float[Tensor, " batch"]) -> tuple[State, Info]:
    """A transition by trajectories of about a quarter of a turn, and then a jump."""
    num_steps = min(_MOST_STEPS, max(1, math.ceil(_QUARTER / log_size.median().exp().item() - 0.05)))
    size = log_size.exp().clamp(max=_QUARTER / num_steps) * (0.85 + 0.3 * torch.rand_like(state.log_density))
    scale = torch.ones_like(state.position[0, 0])
    state, info = kernel(whitened)(state, step_size=size, scale=scale, num_steps=num_steps)
    return whitened.jumped(state), info


def from_chains(
    method: str, path: Path, u: Float[Tensor, "chains draws batch latent"], most: int, plan: Plan
) -> Refinement:
    """What draws of chains say, and what they imply for the evidence."""
    r, ess, flat = r_hat(u), effective_draws(u), u.flatten(0, 1)
    evidence = implied_evidence(path, flat, start_of(path.density, most), most, plan.num_particles)
    elbo = Moments.of(weighed(path, plan.num_particles, most)[1])
    return Refinement(
        method=method,
        x=path.density.x,
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
