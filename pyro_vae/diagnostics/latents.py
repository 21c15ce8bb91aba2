r"""Activity and KL divergence of the latent dimensions."""

from __future__ import annotations

__all__ = ["LatentSummary", "latent_summary"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import PairError
from ..ops.streaming import Moments
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.traces import guide_sites, latent_sites, require_one_size, require_rows, site_kl

_ROWS = 1024


class LatentSummary(NamedTuple):
    """The summary of one latent site, dimension by dimension (an event of several dimensions is flattened)."""

    mean_variance: Float[Tensor, " latent"]
    r"""The variance of the posterior mean over datapoints, :math:`\mathrm{Var}_x\, \mathbb E_q[z]`."""
    kl: Float[Tensor, " latent"]
    r"""The mean over x of :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))`, in nats; nan without a closed form."""

    @property
    def active(self) -> Bool[Tensor, " latent"]:
        """Burda's active units: those with a ``mean_variance`` above 0.01."""
        return self.mean_variance > 0.01

    @property
    def num_active(self) -> int | None:
        """The number of active units: 0 if the posterior has collapsed onto the prior, None if it is not known."""
        return None if self.mean_variance.isnan().any() else int(self.active.sum())


def latent_summary(model: Program, guide: Program, x: Any, *, seed: int = 0) -> dict[str, LatentSummary]:
    r"""Return activity and KL divergence of every latent dimension, per latent site of any Pyro pair.

    A unit with a posterior mean that does not vary with x, and a KL divergence of zero, has *collapsed*: the decoder
    ignores it. Sites that depend on other latent sites are summarised at one draw of those. Where a site is masked, its
    KL divergence counts as zero and its mean does not count.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type; n of at least 2.
        seed: The seed of the draws that sites depend on; torch's own generator is left as it is.

    Errors:
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), section 5.2  https://arxiv.org/abs/1509.00519

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0, 0.0]], scale=1.0)  # the second latent dimension is not used
        >>> latent_summary(problem.model, problem.guide(mean_field=True), problem.sample(1000, seed=0))["z"].active
        tensor([ True, False])
    """
    pair = Pair.of(model, guide, x)
    with pair.evaluation(seed, "latents"):
        blocks = [_site_summaries(block) for block in pair.split(_ROWS)]
    return {name: _summary(*map(torch.cat, zip(*(block[name] for block in blocks), strict=True))) for name in blocks[0]}


def _site_summaries(pair: Pair) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return, for each site of the model, posterior means and KL divergences, ``[batch, latent]``, and the mask."""
    guide_trace = pair.run_guide()
    p, q = latent_sites(pair.run_model(guide_trace)), guide_sites(guide_trace)
    require_rows(q, len(pair))
    require_one_size([*q.values(), *p.values()])
    summaries = {}
    for name in p:
        values, mask = q[name]["value"].reshape(len(pair), -1), q[name]["mask"]
        mask = torch.as_tensor(True if mask is None else mask, device=values.device).expand(len(pair))
        summaries[name] = _mean(q[name]["fn"], values), _kl(q[name], p[name], values), mask
    return summaries


def _summary(
    means: Float[Tensor, "batch latent"], kl: Float[Tensor, "batch latent"], mask: Bool[Tensor, " batch"]
) -> LatentSummary:
    counted = Moments.of(means[mask])
    return LatentSummary(counted.sum_squares / (counted.num_particles - 1), Moments.of(kl).mean)


def _mean(q: Any, values: Tensor) -> Tensor:
    """Return E_q[z], nan for a distribution without a known mean (a flow)."""
    try:
        return q.mean.reshape(values.shape)
    except NotImplementedError:
        return torch.full_like(values, torch.nan)


def _kl(q: Any, p: Any, values: Tensor) -> Tensor:
    """Return KL(q || p) of each dimension, nan without a closed form or where the dimensions are not independent."""
    try:
        kl = site_kl(q, p)[0]
    except PairError:
        return torch.full_like(values, torch.nan)
    return kl.expand(values.shape) if kl.shape[-1] == values.shape[-1] else torch.full_like(values, torch.nan)
