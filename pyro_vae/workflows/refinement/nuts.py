r"""Pyro's No-U-Turn sampler for one datapoint, started from the guide and in coordinates in which it is standard."""

from __future__ import annotations

__all__ = ["nuts"]

import torch
from jaxtyping import Float
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ...pairs.handlers import unvalidated
from ...samplers.chains import Whitened
from ...samplers.gaussian_fit import gaussian_of_guide
from ...samplers.tempering import TemperedPath
from .base import Plan, Refinement
from .hmc import from_chains


def nuts(path: TemperedPath, most: int, plan: Plan) -> Refinement:
    r"""Run chains of :class:`pyro.infer.NUTS`, one after the other in this process, each from a draw of the guide.

    The potential is :math:`-\log p(x, m + L v)`, with the guide's mean m and Cholesky factor L; Pyro adapts a step size
    and a diagonal mass matrix on top.

    References:
        | The No-U-Turn Sampler (Hoffman & Gelman, 2014)  https://arxiv.org/abs/1111.4246
    """
    density = path.density.require_guide()
    whitened = Whitened(path, gaussian_of_guide(density, most), most)
    begin = whitened.start.noise(path.draw(plan.num_chains))
    drawn = [whitened.points(_chain(whitened, v, plan)) for v in begin]
    return from_chains("nuts", path, torch.stack(drawn), most, plan)


def _chain(whitened: Whitened, begin: Float[Tensor, "1 latent"], plan: Plan) -> Float[Tensor, "draws 1 latent"]:
    def potential(at: dict[str, Tensor]) -> Tensor:
        whitened.path.count(1)
        return -whitened.path.density.terms(whitened.points(at["v"][None]), q=False).log_p.sum()

    sampler = MCMC(
        NUTS(potential_fn=potential),
        num_samples=plan.draws_per_chain,
        warmup_steps=plan.num_warmup,
        initial_params={"v": begin},
        disable_progbar=True,
    )
    with torch.enable_grad(), unvalidated():
        sampler.run()
    return sampler.get_samples()["v"].detach()
