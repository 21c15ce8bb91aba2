r"""Draws of z with importance weights, block by block, and what the model makes of them."""

from __future__ import annotations

__all__ = ["Weighted", "replicates", "some_of", "weighted_blocks"]

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from ..errors import ConfigError, require_count
from ..ops.pareto import pareto_k
from ..ops.resampling import systematic
from ..ops.verdicts import Judgement, judge
from ..ops.weights import ess, log_mean_exp, log_mean_exp_stderr
from ..pairs.density import Density
from ..pairs.memory import room
from ..pairs.particles import draw_particles
from ..pairs.sites import Vectorized, particle_plate
from ..pairs.traces import Program, trace
from ..pairs.vectorization import vectorizes


class Weighted(NamedTuple):
    """Draws from the guide for some rows of the data, and their log-weights; what they are worth."""

    x: Tensor
    z: dict[str, Tensor]
    """Site name -> ``[particles, batch, *event]``."""
    log_w: Float[Tensor, "particles batch"]
    vectorized: Vectorized

    @property
    def judgement(self) -> Judgement:
        """Whether expectations under these weights can be relied on."""
        return judge(
            value=log_mean_exp(self.log_w),
            stderr=log_mean_exp_stderr(self.log_w),
            ess=ess(self.log_w),
            pareto_k=pareto_k(self.log_w),
            num_particles=len(self.log_w),
        )

    def resampled(self, num: int) -> dict[str, Tensor]:
        """``num`` draws of z for each datapoint, in proportion to the weights and in random order."""
        index = systematic(self.log_w, num)
        index = index.gather(0, torch.rand(index.shape, device=index.device).argsort(0))
        rows = torch.arange(index.shape[1], device=index.device)
        return {name: value[index, rows] for name, value in self.z.items()}


def some_of(num_particles: int, from_prior: int) -> int:
    """``from_prior``, if it leaves some of the particles to the guide; else :class:`~pyro_vae.errors.ConfigError`."""
    if require_count("from_prior", from_prior, least=0) >= num_particles:
        raise ConfigError(f"from_prior={from_prior}: expected fewer than num_particles={num_particles}")
    return from_prior


def weighted_blocks(
    model: Program, guide: Program, x: Tensor, *, num_particles: int, max_bytes: int, from_prior: int = 0
) -> Iterator[Weighted]:
    """Draws from the guide with their weights, for as many rows at a time as fit the memory.

    So many of them are ``from_prior`` instead, and all have balance weights, those of one mixture.
    """
    fits, apart = room(model, guide, x, require_count("max_bytes", max_bytes))
    for rows in x.split(max(1, fits // num_particles) if apart else len(x)):
        if from_prior:
            density = Density(model, guide, rows).require_guide()
            u, log_w = density.draw_defensive(num_particles, from_prior)
            z = density.values(u)
        else:
            log_w, _, _, z = draw_particles(model, guide, rows, num_particles=num_particles)
        yield Weighted(rows, z, log_w, vectorizes(model, guide, (rows,), {}))


def replicates(
    model: Program, z: dict[str, Tensor], x: Tensor, vectorized: Vectorized
) -> dict[str, tuple[Tensor, list[Any]]]:
    """Of the model's observed sites at these z: a draw ``[particles, batch, *event]``, and the distributions.

    The latter are one for all particles if the model takes them together, else one for each.
    """
    num = len(next(iter(z.values())))
    if num > 1 and vectorized.model:
        with particle_plate(num):
            return {name: (site["value"], [site["fn"]]) for name, site in _unobserved(model, z, x).items()}
    each = [_unobserved(model, {name: value[k] for name, value in z.items()}, x) for k in range(num)]
    return {
        name: (torch.stack([one[name]["value"] for one in each]), [one[name]["fn"] for one in each]) for name in each[0]
    }


def _unobserved(model: Program, z: dict[str, Tensor], x: Tensor) -> dict[str, Any]:
    """The observed sites, drawn as if they were not."""
    found = trace(poutine.condition(poutine.uncondition(model), data=z), (x,), {})
    sites: dict[str, Any] = dict(found.nodes)
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and site["infer"].get("was_observed")
        and not site["infer"].get("_deterministic")
        and not isinstance(site["fn"], Unit)
    }
