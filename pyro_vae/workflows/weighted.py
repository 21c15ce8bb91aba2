r"""Draws of z with importance weights, block by block, and replicates of the data given them."""

from __future__ import annotations

__all__ = ["Weighted", "replicates", "require_from_prior", "weighted_blocks"]

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
from ..pairs.pair import Pair
from ..pairs.particles import draw_particles
from ..pairs.running import as_trace, run_at


class Weighted(NamedTuple):
    """Draws for some rows of the data, with their log-weights."""

    pair: Pair
    z: dict[str, Tensor]
    """Site name -> ``[particles, batch, *event]``."""
    log_w: Float[Tensor, "particles batch"]

    @property
    def judgement(self) -> Judgement:
        """The verdict on expectations under these weights."""
        return judge(
            value=log_mean_exp(self.log_w),
            stderr=log_mean_exp_stderr(self.log_w),
            ess=ess(self.log_w),
            pareto_k=pareto_k(self.log_w),
            num_particles=len(self.log_w),
        )

    def resampled(self, num: int) -> dict[str, Tensor]:
        """Return ``num`` draws of z for each datapoint, in proportion to the weights and in random order."""
        index = systematic(self.log_w, num)
        index = index.gather(0, torch.rand(index.shape, device=index.device).argsort(0))
        rows = torch.arange(index.shape[1], device=index.device)
        return {name: value[index, rows] for name, value in self.z.items()}


def require_from_prior(num_particles: int, from_prior: int) -> int:
    """Return ``from_prior``, or raise :class:`~pyro_vae.errors.ConfigError` if it leaves no particle to the guide."""
    if require_count("from_prior", from_prior, least=0) >= num_particles:
        raise ConfigError(f"from_prior={from_prior}: expected fewer than num_particles={num_particles}")
    return from_prior


def weighted_blocks(pair: Pair, *, num_particles: int, max_bytes: int, from_prior: int = 0) -> Iterator[Weighted]:
    """Yield draws from the guide with their weights, for as many rows at a time as fit into memory.

    ``from_prior`` of them are from the prior instead, and then all have balance weights, those of one mixture.
    """
    for _, rows, _ in pair.blocks(require_count("max_bytes", max_bytes), num_particles=num_particles):
        if from_prior:
            density = Density(rows).require_guide()
            u, log_w = density.draw_defensive(num_particles, from_prior)
            z = density.values(u)
        else:
            log_w, _, _, z = draw_particles(rows.model, rows.guide, rows, num_particles=num_particles)
        yield Weighted(rows, z, log_w)


def replicates(pair: Pair, z: dict[str, Tensor]) -> dict[str, tuple[Tensor, list[Any]]]:
    """Return for the model's observed sites a draw ``[particles, batch, *event]`` given z, and the distributions.

    There is one distribution for all particles if the model takes them together, else one for each.
    """
    num, together = len(next(iter(z.values()))), pair.vectorized().model
    site = {"type": "sample", "is_observed": False, "infer": {}}
    latent = as_trace({name: {**site, "name": name, "value": value} for name, value in z.items()})
    runs = run_at(poutine.uncondition(pair.model), latent, z, pair.args, pair.kwargs, together=together)
    each = [_drawn_sites(one) for one in runs]
    if num > 1 and together:
        return {name: (site["value"], [site["fn"]]) for name, site in each[0].items()}
    return {
        name: (torch.stack([one[name]["value"] for one in each]), [one[name]["fn"] for one in each]) for name in each[0]
    }


def _drawn_sites(found: poutine.Trace) -> dict[str, Any]:
    """Return the sites that the model observes, drawn as if it did not."""
    sites: dict[str, Any] = dict(found.nodes)
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and site["infer"].get("was_observed")
        and not site["infer"].get("_deterministic")
        and not isinstance(site["fn"], Unit)
    }
