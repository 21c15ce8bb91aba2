"""One run of a pair, term by term: densities per site, particle and datapoint."""

from __future__ import annotations

__all__ = [
    "Sites",
    "Vectorized",
    "draw_sites",
    "particle_of",
    "particle_plate",
    "redraw",
    "total",
    "weigh",
]

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from .errors import require_count
from .traces import (
    PARTICLES,
    Program,
    common_scale,
    guide_sites,
    latent_sites,
    replay,
    require_same_sites,
    same_rows,
    sample_sites,
    site_kl,
    site_log_prob,
    trace,
)

Terms = dict[str, Tensor]


class Sites(NamedTuple):
    r"""The same by site: every term is ``[particles, batch]``, in nats per datapoint, unscaled and masked.

    ``scale`` is what :class:`pyro.poutine.scale` and subsampled plates ask for; it belongs outside the bound.
    """

    log_prior: Terms
    log_likelihood: Terms
    log_q: Terms
    z: dict[str, Tensor]
    kl: Terms
    scale: Any
    reparameterized: bool

    @property
    def log_p(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z)`."""
        return total({**self.log_prior, **self.log_likelihood})

    @property
    def log_w(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z) - \log q(z \mid x)`."""
        return self.log_p - total(self.log_q)


def draw_sites(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    num_particles: int,
    vectorized: Vectorized,
    analytic_kl: bool = False,
) -> Sites:
    """One run of the pair, term by term; see :func:`draw_particles`.

    ``vectorized`` is what :func:`vectorizes` said of the pair; ``analytic_kl`` fills ``kl`` with exact terms.
    """
    require_count("num_particles", num_particles)
    if num_particles > 1 and not vectorized.guide:
        same_guide = same_rows(guide, trace(guide, args, kwargs))
        one = partial(draw_sites, num_particles=1, vectorized=vectorized, analytic_kl=analytic_kl)
        return _stack([one(model, same_guide, args, kwargs) for _ in range(num_particles)])
    with particle_plate(num_particles):
        guide_trace = trace(guide, args, kwargs)
    return weigh(model, guide_trace, args, kwargs, num_particles, vectorized, analytic_kl)


class Vectorized(NamedTuple):
    """Which of a pair's two functions take a leading particle dimension."""

    model: bool
    guide: bool


def particle_plate(num_particles: int) -> AbstractContextManager[Any]:
    """The plate over particles; one particle needs none, so any program can run as it was written."""
    return pyro.plate(PARTICLES, num_particles, dim=-2) if num_particles > 1 else nullcontext()


def weigh(
    model: Program,
    guide_trace: poutine.Trace,
    args: tuple,
    kwargs: dict,
    num_particles: int,
    vectorized: Vectorized,
    analytic_kl: bool,
) -> Sites:
    """Run the model at the guide's draws: all particles at once or, if its networks cannot, one by one."""
    q = guide_sites(guide_trace)
    if num_particles == 1 or vectorized.model:
        with particle_plate(num_particles):
            model_trace = replay(model, guide_trace, args, kwargs)
        terms = [_model_terms(q, model_trace, num_particles, analytic_kl)]
    else:
        traces = (replay(model, particle_of(guide_trace, k), args, kwargs) for k in range(num_particles))
        terms = [_model_terms(q, trace, 1, analytic_kl, particle=k) for k, trace in enumerate(traces)]
    prior, likelihood, kl, scale = zip(*terms, strict=True)
    return Sites(
        log_prior=_cat(prior),
        log_likelihood=_cat(likelihood),
        log_q={name: site_log_prob(site, num_particles) for name, site in q.items()},
        z={name: site["value"] if num_particles > 1 else site["value"][None] for name, site in q.items()},
        kl=_cat(kl),
        scale=scale[0],
        reparameterized=all(site["fn"].has_rsample for site in q.values()),
    )


def _model_terms(
    q: dict[str, Any], trace: poutine.Trace, num_particles: int, analytic_kl: bool, particle: int = 0
) -> tuple[Terms, Terms, Terms, Any]:
    """Log-prior, log-likelihood, KL and scale of a model trace that holds all particles, or the one given."""
    sites = sample_sites(trace)
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    require_same_sites(q, latent, analytic_kl)
    kl = (
        {name: site_kl(q[name], latent[name])[particle : particle + num_particles] for name in q} if analytic_kl else {}
    )
    return (
        {name: site_log_prob(site, num_particles) for name, site in latent.items()},
        {name: site_log_prob(site, num_particles) for name, site in sites.items() if site["is_observed"]},
        kl,
        common_scale([*q.values(), *sites.values()]),
    )


def _cat(parts: Sequence[Terms]) -> Terms:
    """Particles of several runs behind one another."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _stack(parts: list[Sites]) -> Sites:
    prior, likelihood, log_q, z, kl, scale, reparameterized = zip(*parts, strict=True)
    return Sites(*map(_cat, (prior, likelihood, log_q, z, kl)), scale=scale[0], reparameterized=reparameterized[0])


def _with_values(trace: poutine.Trace, value: Callable[[Any], Tensor]) -> poutine.Trace:
    """A copy of the trace with other values at its latent sites."""
    changed: Any = trace.copy()
    for name, site in latent_sites(trace).items():
        changed.nodes[name] = {**site, "value": value(site)}
    return changed


def particle_of(trace: poutine.Trace, k: int) -> poutine.Trace:
    return _with_values(trace, lambda site: site["value"][k])


def redraw(trace: poutine.Trace, num_particles: int) -> poutine.Trace:
    shape = torch.Size([num_particles] if num_particles > 1 else [])
    return _with_values(trace, lambda site: site["fn"](shape))


def total(terms: Terms) -> Tensor:
    """The sum over sites; a plain zero if there are none."""
    first, *rest = terms.values() or (torch.zeros(()),)
    return sum(rest, first)
