r"""The ELBO in its two parts."""

from __future__ import annotations

__all__ = ["ELBOParts", "elbo_parts"]

from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_count
from ..ops.streaming import Moments
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.sites import Sites, draw_sites
from ..pairs.traces import guide_sites, require_rows

_ROWS, _PARTICLES = 256, 32


class ELBOParts(NamedTuple):
    r"""The terms of :math:`\mathbb E_q[\log p(x \mid z)] - \sum_i \mathrm{KL}_i`, in nats per datapoint, float64."""

    reconstruction: Float[Tensor, " batch"]
    r"""The reconstruction term :math:`\mathbb E_q[\log p(x \mid z)]`."""
    kl: dict[str, Float[Tensor, " batch"]]
    r"""The divergence of each latent site, :math:`\mathrm{KL}(q(z_i \mid \cdot) \,\|\, p(z_i \mid \cdot))`.

    Each is a mean over the draws of the sites before. An automatic guide's auxiliary site and the site that it
    is mapped to share one divergence: their sum.
    """
    reconstruction_stderr: Float[Tensor, " batch"]
    """The Monte-Carlo standard errors of ``reconstruction``, in nats."""
    kl_stderr: dict[str, Float[Tensor, " batch"]]
    """The standard errors of ``kl``, in nats; zero, but for rounding, where the term is exact."""

    @property
    def elbo(self) -> Float[Tensor, " batch"]:
        """The ELBO."""
        return self.reconstruction - sum(self.kl.values(), torch.zeros_like(self.reconstruction))


def elbo_parts(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 100,
    analytic_kl: bool = False,
    seed: int = 0,
) -> ELBOParts:
    r"""Split the ELBO into the reconstruction and the cost of each latent site, per datapoint, for any Pyro pair.

    .. math:: \mathcal L(x) = \mathbb E_q[\log p(x \mid z)]
        - \sum_i \mathbb E_q\big[\log q(z_i \mid \cdot) - \log p(z_i \mid \cdot)\big]

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type.
        num_particles: Draws per datapoint.
        analytic_kl: Take each site's KL divergence in closed form, given the draws of the sites that it depends on.
        seed: The seed of the draws; torch's own generator is left as it is.

    Errors:
        DataError: for empty or non-finite data.
        PairError: with ``analytic_kl``, where a closed form does not exist.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), equation 3  https://arxiv.org/abs/1312.6114

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0]], scale=0.5**0.5)
        >>> parts = elbo_parts(problem.model, problem.guide(mean_field=True), torch.zeros(3, 1), analytic_kl=True)
        >>> parts.kl["z"]  # of N(0, 1/3) from N(0, 1)
        tensor([0.2160, 0.2160, 0.2160], dtype=torch.float64)
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    pair = Pair.of(model, guide, x)
    with pair.evaluation(seed, "parts"):
        blocks = [_moments(block, num_particles, analytic_kl) for block in pair.split(_ROWS)]
    reconstruction, kl = zip(*blocks, strict=True)
    return ELBOParts(
        torch.cat([part.mean for part in reconstruction]),
        {name: torch.cat([part[name].mean for part in kl]) for name in kl[0]},
        torch.cat([part.stderr for part in reconstruction]),
        {name: torch.cat([part[name].stderr for part in kl]) for name in kl[0]},
    )


Summary = tuple[Moments, dict[str, Moments]]
"""The moments of the reconstruction, and of the KL term of every latent site."""


def _moments(pair: Pair, num_particles: int, analytic_kl: bool) -> Summary:
    """Return the moments of some rows over all particles, with one block of particles in memory at a time."""
    guide_trace = pair.run_guide()
    require_rows(guide_sites(guide_trace), len(pair))
    vectorized = pair.vectorized(guide_trace)

    def block(num: int) -> Summary:
        sites = draw_sites(pair, num_particles=num, vectorized=vectorized, analytic_kl=analytic_kl)
        return Moments.of(sites.reconstruction), {name: Moments.of(_kl(sites, name)) for name in sites.log_q}

    sizes = (min(_PARTICLES, num_particles - start) for start in range(0, num_particles, _PARTICLES))
    return reduce(_merged, map(block, sizes))


def _kl(sites: Sites, name: str) -> Float[Tensor, "particles batch"]:
    log_q = sites.log_q[name]
    if sites.kl:
        return sites.kl[name].sum(-1).expand_as(log_q)
    return log_q - sites.log_prior.get(name, torch.zeros_like(log_q))  # an auxiliary site has no prior


def _merged(one: Summary, other: Summary) -> Summary:
    return one[0].merge(other[0]), {name: moments.merge(other[1][name]) for name, moments in one[1].items()}
