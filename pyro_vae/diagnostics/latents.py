r"""Which latent dimensions carry information."""

from __future__ import annotations

__all__ = ["LatentSummary", "latent_summary"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..ops.streaming import Moments
from ..pairs.handlers import untouched
from ..pairs.inputs import data_for
from ..pairs.memory import blocks_of
from ..pairs.traces import Program, guide_sites, latent_sites, replay, require_one_size, require_rows, trace

_ROWS = 1024


class LatentSummary(NamedTuple):
    """One latent site, dimension by dimension (an event of several dimensions is flattened)."""

    mean_variance: Float[Tensor, " latent"]
    r""":math:`\mathrm{Var}_x\, \mathbb E_q[z]`: how much the posterior mean moves with x."""
    kl: Float[Tensor, " latent"]
    r"""Mean over x of :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))`, in nats; nan where there is no closed form."""

    @property
    def active(self) -> Bool[Tensor, " latent"]:
        """Burda's active units: those whose ``mean_variance`` exceeds 0.01."""
        return self.mean_variance > 0.01

    @property
    def num_active(self) -> int | None:
        """How many units are active; 0 means that the posterior has collapsed onto the prior, None is not known."""
        return None if self.mean_variance.isnan().any() else int(self.active.sum())


def latent_summary(model: Program, guide: Program, x: Any, *, seed: int = 0) -> dict[str, LatentSummary]:
    r"""Activity and KL divergence of every latent dimension, per latent site of any Pyro pair.

    A unit whose posterior mean does not vary with x, and whose KL divergence is zero, has *collapsed*: the decoder
    ignores it. Sites that depend on other latent sites are summarised at one draw of those.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type; n of at least 2.
        seed: Of the draws that sites depend on; torch's own generator is left as it is.

    Errors:
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), section 5.2  https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro_vae as pv
        >>> problem = pv.problems.linear_gaussian(W=[[1.0, 0.0]], scale=1.0)  # the second latent dimension is not used
        >>> latent_summary(problem.model, problem.guide(mean_field=True), problem.sample(1000, seed=0))["z"].active
        tensor([ True, False])
    """
    x = data_for(x, model, guide)
    with untouched(model, guide, seed=(seed, "latents")):
        parts = [_moments(model, guide, batch) for batch in blocks_of(model, guide, x, _ROWS)]
    summary = {}
    for name in parts[0]:
        means, kls = parts[0][name]
        for part in parts[1:]:
            means, kls = means.merge(part[name][0]), kls.merge(part[name][1])
        summary[name] = LatentSummary(means.sum_squares / (means.num_particles - 1), kls.mean)
    return summary


def _moments(model: Program, guide: Program, x: Tensor) -> dict[str, tuple[Moments, Moments]]:
    """Moments over the datapoints of the posterior mean and of the KL divergence, per site."""
    guide_trace = trace(guide, (x,), {})
    p, q = latent_sites(replay(model, guide_trace, (x,), {})), guide_sites(guide_trace)
    require_rows(q, len(x))
    require_one_size([*q.values(), *p.values()])
    found = {}
    for name in p:
        site = q[name]
        values = site["value"].reshape(len(x), -1)
        found[name] = (Moments.of(_mean(site["fn"], values)), Moments.of(_kl(site["fn"], p[name]["fn"], values)))
    return found


def _mean(q: Any, values: Tensor) -> Tensor:
    """E_q[z], nan for a distribution that does not know its mean (a flow)."""
    try:
        return q.mean.reshape(values.shape)
    except NotImplementedError:
        return torch.full_like(values, torch.nan)


def _kl(q: Any, p: Any, values: Tensor) -> Tensor:
    """KL(q || p) of each dimension, nan where there is no closed form or the dimensions are not independent."""
    q, p = (part.base_dist if isinstance(part, Independent) else part for part in (q, p))
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return torch.full_like(values, torch.nan)
    return kl.reshape(values.shape) if kl.numel() == values.numel() else torch.full_like(values, torch.nan)
