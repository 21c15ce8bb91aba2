r"""Hamiltonian chains for many datapoints at once, in coordinates in which each posterior is nearly standard normal."""

from __future__ import annotations

__all__ = ["StepSize", "Whitened", "moved", "warmed_up"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from ..ops.hmc import Evaluation, Info, State, init, jump, kernel
from ..ops.weights import log_mixture
from ..pairs.density import Terms
from ..pairs.handlers import unvalidated
from .fitted_proposal import inflation
from .gaussian_fit import GuideGaussian, fitted
from .tempering import TemperedPath

_TARGET_ACCEPTANCE = 0.8
_WINDOWS = 3  # of the warm-up: after each but the last, new coordinates are fitted
_QUARTER_TURN = math.pi / 2  # of a turn, after which a standard normal has forgotten where it was
_MAX_STEPS = 16  # leapfrog steps of a trajectory, however small they are
_NUM_JUMP_POINTS = 8  # points to choose from in a jump


class Whitened(NamedTuple):
    r"""The posterior's log-density of :math:`v` in :math:`u = m_b + L_b v`, up to a constant for each datapoint."""

    path: TemperedPath
    start: GuideGaussian
    """The Gaussian of mean :math:`m_b` and Cholesky factor :math:`L_b`."""
    most: int

    def __call__(self, v: Float[Tensor, "particles batch latent"]) -> Evaluation:
        pieces = [self._evaluated(piece) for piece in v.split(self.most)]
        log_p, slope, log_prior = map(torch.cat, zip(*pieces, strict=True))
        return Evaluation(log_p, slope, carried=(log_prior,))

    def points(self, v: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch latent"]:
        """Return v in the pair's unconstrained coordinates."""
        return self.start.loc + torch.einsum("bij,kbj->kbi", self.start.scale_tril, v)

    def begin(self, u: Float[Tensor, "particles batch latent"]) -> State:
        """Return chains at u."""
        return init(self.start.noise(u), self)

    def jumped(self, state: State) -> State:
        """Return the chains after jumps among draws from an even mixture of a wide standard normal and the prior."""
        num, size = len(state.position), inflation(state.position.shape[-1])
        near = size * torch.randn(_NUM_JUMP_POINTS * num, *state.position.shape[1:]).to(state.position)
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
        self.path.count(len(v))
        with unvalidated():
            return self.path.density.terms(self.points(v), q=False)


def _either(
    near: Float[Tensor, "particles batch latent"], far: Float[Tensor, "particles batch latent"]
) -> Float[Tensor, "particles batch latent"]:
    """Choose one or the other, each by a coin of its own: half of each would not leave the posterior unchanged."""
    return torch.where(torch.rand(near.shape[:2])[..., None].to(near) < 0.5, near, far)


class StepSize(NamedTuple):
    r"""Dual averaging of each datapoint's step size, until its chains have the target acceptance on average.

    References:
        | The No-U-Turn Sampler (Hoffman & Gelman, 2014)  https://arxiv.org/abs/1111.4246
    """

    anchor: Float[Tensor, " batch"]
    log_size: Float[Tensor, " batch"]
    average: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    num_updates: int

    @classmethod
    def near(cls, log_size: Float[Tensor, " batch"]) -> StepSize:
        return cls(log_size, log_size, log_size, torch.zeros_like(log_size), 0)

    def updated(self, acceptance: Float[Tensor, " batch"]) -> StepSize:
        """Return the next step sizes, after transitions with this acceptance."""
        num = self.num_updates + 1
        error = self.error + (_TARGET_ACCEPTANCE - acceptance - self.error) / (num + 10)
        log_size = (self.anchor - math.sqrt(num) / 0.05 * error).clamp(max=math.log(_QUARTER_TURN))
        average = self.average + num**-0.75 * (log_size - self.average)
        return StepSize(self.anchor, log_size, average, error, num)


def warmed_up(
    whitened: Whitened, u: Float[Tensor, "chains batch latent"], num_warmup: int
) -> tuple[Whitened, State, Float[Tensor, " batch"]]:
    """Return coordinates, chains and step sizes, none of which depends on any later transition."""
    log_size = u.new_full(u.shape[1:2], -0.25 * math.log(u.shape[-1]))
    for window in range(_WINDOWS):
        state, sizes, seen = whitened.begin(u), StepSize.near(log_size), []
        for _ in range(num_warmup // _WINDOWS):
            state, info = moved(whitened, state, sizes.log_size)
            sizes = sizes.updated(info.acceptance.mean(0))
            seen.append(whitened.points(state.position))
        log_size, u = sizes.average, whitened.points(state.position)
        if window < _WINDOWS - 1 and seen:
            whitened = whitened._replace(start=fitted(torch.cat(seen[len(seen) // 2 :]), whitened.start))
    return whitened, whitened.begin(u), log_size


def moved(whitened: Whitened, state: State, log_size: Float[Tensor, " batch"]) -> tuple[State, Info]:
    """Return the chains after a trajectory of about a quarter of a turn each, and then a jump."""
    num_steps = min(_MAX_STEPS, max(1, math.ceil(_QUARTER_TURN / log_size.median().exp().item() - 0.05)))
    size = log_size.exp().clamp(max=_QUARTER_TURN / num_steps) * (0.85 + 0.3 * torch.rand_like(state.log_density))
    scale = torch.ones_like(state.position[0, 0])
    state, info = kernel(whitened)(state, step_size=size, scale=scale, num_steps=num_steps)
    return whitened.jumped(state), info
