"""Reading a Pyro trace: the sites that count, and their log-densities per datapoint."""

from __future__ import annotations

__all__ = [
    "PARTICLES",
    "common_scale",
    "guide_sites",
    "is_masked",
    "is_point_mass",
    "latent_sites",
    "observed_site",
    "observed_values",
    "require_densities",
    "require_one_size",
    "require_rows",
    "require_same_sites",
    "sample_sites",
    "site_kl",
    "site_log_prob",
    "total",
]

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ..errors import PairError, ShapeError

Site = Any
"""A node of a trace: a dictionary with ``fn``, ``value``, ``mask``, ``scale``, ``infer`` and so on."""
PARTICLES = "num_particles_vectorized"  # Pyro's own name for the plate over particles


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the stochastic sites, without ``deterministic`` ones; each must be in the data plate and in no other."""
    sites = {}
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or site["infer"].get("_deterministic"):
            continue
        frames = _data_frames(site)
        if [frame.dim for frame in frames] != [-1]:
            where = ", ".join(f"{frame.name!r} at dim {frame.dim}" for frame in frames) or "no plate"
            raise PairError(
                f"site {name!r} is in {where}, expected exactly one data plate at dim -1: put it into "
                "`with pyro.plate('data', len(x)):` and declare further dimensions with .to_event()"
            )
        sites[name] = site
    return sites


def latent_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the stochastic sites that are not observed."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def guide_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the guide's latent sites, at least one; observed sites and factors, which also have a density, are errors.

    The auxiliary sites of Pyro's automatic guides, which have a density but no site in the model, are among them.
    """
    latent = latent_sites(trace)
    if other := sorted(sample_sites(trace).keys() - latent.keys()):
        raise PairError(
            f"sites {other} of the guide are observed or factors, expected latent ones: move them to the model"
        )
    if not latent:
        raise PairError("the guide has no latent site: sample each of the model's latent sites in the guide")
    return latent


def observed_values(sites: dict[str, Site]) -> dict[str, Tensor]:
    """Return site name -> the values ``[batch, *event]`` that a model observes, which may differ from its data."""
    return {
        name: site["value"].expand(torch.broadcast_shapes(site["value"].shape, site["fn"].shape()))
        for name, site in sites.items()
        if site["is_observed"]
    }


def observed_site(sites: dict[str, Site], x: Tensor) -> str:
    """Return the name of the one observed site, whose values must be those of ``x``, where these are not NaN.

    Errors:
        PairError: for several observed sites or factors, and for a site that observes other values.
    """
    observed = [name for name, site in sites.items() if site["is_observed"]]
    if len(observed) != 1:
        raise PairError(
            f"found {len(observed)} observed sites and factors {observed}, expected one, whose values are x"
        )
    value, known = sites[observed[0]]["value"], ~x.isnan()
    if value.numel() != x.numel() or not torch.equal(value.reshape(x.shape).to(x.dtype)[known], x[known]):
        raise PairError(
            f"observed site {observed[0]!r} holds something else than x (shapes {tuple(value.shape)} and "
            f"{tuple(x.shape)}), expected its values: give the pair data that it observes as they are"
        )
    return observed[0]


def site_log_prob(site: Site, num_particles: int) -> Float[Tensor, "particles batch"]:
    """Return the site's log-density, masked but not scaled."""
    extra = site["value"].ndim - site["fn"].event_dim - 1
    if site["is_observed"] and not isinstance(site["fn"], dist.Unit) and extra > 0:
        raise PairError(
            f"observed site {site['name']!r} has values of shape {tuple(site['value'].shape)} under a distribution "
            f"over events of {site['fn'].event_dim} dimensions: declare {extra} more with .to_event()"
        )
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    batch = next(frame.size for frame in site["cond_indep_stack"] if frame.dim == -1)
    if log_prob.ndim > 2 or (log_prob.ndim == 2 and num_particles == 1 and len(log_prob) > 1):
        raise PairError(
            f"site {site['name']!r} has a log-density of shape {tuple(log_prob.shape)}, expected one number per "
            f"datapoint, ({batch},): declare its event dimensions with .to_event()"
        )
    return log_prob.expand(num_particles, batch)


def site_kl(q: Site, p: Site) -> Float[Tensor, "particles batch latent"]:
    """Return the exact KL(q || p) of one site, given the values of the sites before it; zero where it is masked.

    There is one number per latent dimension where both distributions are products over dimensions, else one in all.

    Errors:
        PairError: where there is no closed form.
    """
    try:
        shape = torch.broadcast_shapes(q["fn"].batch_shape, p["fn"].batch_shape)
        one, other = (_as_multivariate(part["fn"].expand(shape), q["fn"]) for part in (q, p))
        if products := all(isinstance(fn, Independent) for fn in (one, other)):
            one, other = one.base_dist, other.base_dist
        kl = kl_divergence(one, other)
        kl = kl.reshape(*shape, -1) if products else kl[..., None]
    except NotImplementedError:
        raise PairError(
            f"site {q['name']!r}: no closed form for the KL divergence from {type(q['fn']).__name__} to "
            f"{type(p['fn']).__name__}: sample it (analytic_kl=False)"
        ) from None
    mask = q["mask"][..., None] if isinstance(q["mask"], Tensor) else q["mask"]
    return scale_and_mask(kl, 1.0, mask).expand(torch.broadcast_shapes(kl.shape, (1, 1, 1)))


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum over sites, zero if there are none."""
    first, *rest = terms.values() or (torch.zeros(()),)
    return sum(rest, first)


def is_point_mass(fn: Any) -> bool:
    """Return whether a distribution is a ``Delta``, or one with independent or transformed dimensions."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def is_masked(site: Site) -> bool:
    """Return whether some of the site's log-densities may be left out."""
    return site["mask"] is not None and site["mask"] is not True


def require_rows(latent: dict[str, Site], num: int) -> None:
    """Raise :class:`~pyro_vae.errors.ShapeError` unless the guide drew a value for each of ``num`` datapoints."""
    if (drawn := next(iter(latent.values()))["value"].shape[0]) != num:
        raise ShapeError(
            f"the guide drew {drawn} latent values for {num} datapoints: evaluation needs one for each, so call a pair "
            "whose data plate does not subsample"
        )


def require_densities(latent: dict[str, Site]) -> None:
    """Raise :class:`~pyro_vae.errors.PairError` for point masses that no auxiliary sites stand behind."""
    masses = {name: site["value"].numel() for name, site in latent.items() if is_point_mass(site["fn"])}
    auxiliary = sum(site["value"].numel() for site in latent.values() if site["infer"].get("is_auxiliary"))
    if sum(masses.values()) > auxiliary:
        raise PairError(
            f"sites {sorted(masses)} of the guide are point masses (Delta), expected densities: log p(x, z) at a point "
            "is no bound on log p(x); give the guide a distribution around the point"
        )


def require_one_size(sites: list[Site]) -> int:
    """Return the size of all data plates, or raise :class:`~pyro_vae.errors.PairError` if they differ."""
    (_, size), *others = ((frame.name, frame.size) for site in sites for frame in _data_frames(site))
    for name, other in others:
        if other != size:
            raise PairError(
                f"the data plates are of {size} and, {name!r}, of {other} datapoints, expected one size: a latent "
                "variable that datapoints share is not local to one, so its bound is none per datapoint"
            )
    return size


def common_scale(sites: list[Site]) -> Any:
    """Return the one scale that all sites of a pair carry: a number, or one for each datapoint of the data plate."""
    first, size = sites[0]["scale"], require_one_size(sites)
    if isinstance(first, Tensor) and first.numel() > 1 and first.shape != (size,):
        raise PairError(
            f"found a scale of shape {tuple(first.shape)}, expected a number or ({size},), one per datapoint"
        )
    for site in sites[1:]:
        scale = site["scale"]
        if scale is not first and not _equal(scale, first):
            raise PairError(
                f"sites {sites[0]['name']!r} and {site['name']!r} carry different scales ({first} and {scale}): a "
                "bound on log p(x) has one scale, outside it; scale the whole model and the whole guide"
            )
    return first


def require_same_sites(q: dict[str, Site], latent: dict[str, Site], analytic_kl: bool = False) -> None:
    """Raise :class:`~pyro_vae.errors.PairError` unless guide and model have the same latent sites.

    Auxiliary sites of the guide need no prior. For a closed-form KL divergence the order has to be the same, too.
    """
    if missing := sorted(latent.keys() - q.keys()):
        raise PairError(
            f"latent sites {missing} are in the model but not in the guide: sample them in the guide, or sum discrete "
            "ones out with pyro.infer.TraceEnum_ELBO"
        )
    auxiliary = {name for name, site in q.items() if site["infer"].get("is_auxiliary")}
    if missing := sorted(q.keys() - latent.keys() - auxiliary):
        raise PairError(f"latent sites {missing} are in the guide but not in the model: give them a prior there")
    if analytic_kl and auxiliary:
        raise PairError(
            f"no closed form with auxiliary sites {sorted(auxiliary)} in the guide: sample it (analytic_kl=False)"
        )
    if analytic_kl and list(q) != list(latent):
        raise PairError(
            f"a closed-form KL term needs the model to sample its latent sites in the guide's order {list(q)}, found "
            f"{list(latent)}: sample it (analytic_kl=False)"
        )


def _data_frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]


def _as_multivariate(fn: Any, like: Any) -> Any:
    """Return a vector of independent normals as one multivariate normal, if ``like`` is one."""
    independent = isinstance(fn, Independent) and isinstance(fn.base_dist, Normal) and len(fn.event_shape) == 1
    if not (independent and isinstance(like, MultivariateNormal)):
        return fn
    return MultivariateNormal(fn.mean, scale_tril=torch.diag_embed(fn.stddev), validate_args=False)


def _equal(scale: Any, other: Any) -> bool:
    if not isinstance(scale, Tensor) and not isinstance(other, Tensor):
        return math.isclose(scale, other)
    scale, other = (torch.as_tensor(value, dtype=torch.float64, device="cpu") for value in (scale, other))
    same_size = scale.shape == other.shape or 1 in (scale.numel(), other.numel())
    return same_size and torch.allclose(scale, other, 1e-6, 0.0)
