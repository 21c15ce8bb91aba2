"""One run of a pair, term by term: densities per site, particle and datapoint."""

from __future__ import annotations

__all__ = [
    "Sites",
    "Vectorized",
    "draw",
    "draw_sites",
    "particle_of",
    "particle_plate",
    "redraw",
    "total",
    "weigh",
    "weigh_chosen",
    "with_values",
]

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor

from ..errors import require_count
from .pathwise import Detached, Flow, log_density
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

    ``z`` are the values at which the model was run, copies of the guide's draws: a gradient hook on one of them acts on
    the model's part of a weight and not on the guide's. ``kl`` is ``[particles, batch, latent]`` and empty unless exact
    terms were asked for; ``q`` holds the guide's distributions. ``scale`` is what :class:`pyro.poutine.scale` and
    subsampled plates ask for; it belongs outside the bound.
    """

    log_prior: Terms
    log_likelihood: Terms
    log_q: Terms
    z: dict[str, Tensor]
    kl: Terms
    q: dict[str, Any]
    scale: Any
    reparameterized: bool
    masked: bool

    @property
    def log_p(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z)`."""
        return total({**self.log_prior, **self.log_likelihood})

    @property
    def log_w(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z) - \log q(z \mid x)`."""
        return self.log_p - total(self.log_q)

    @property
    def elbo(self) -> Float[Tensor, " batch"]:
        """The plain ELBO of these draws, with exact KL terms if they were asked for."""
        return (self.reconstruction - self.divergence if self.kl else self.log_w).mean(0)

    @property
    def reconstruction(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x \mid z)`."""
        return total(self.log_likelihood) if self.log_likelihood else torch.zeros_like(total(self.log_q))

    @property
    def divergence(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z))`, exact if that was asked for, else estimated draw by draw."""
        if self.kl:
            return total({name: kl.sum(-1) for name, kl in self.kl.items()})
        return total(self.log_q) - total(self.log_prior)


class Vectorized(NamedTuple):
    """Which of a pair's two functions take a leading particle dimension."""

    model: bool
    guide: bool


def draw_sites(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    num_particles: int,
    vectorized: Vectorized,
    analytic_kl: bool = False,
    flow: Flow = "total",
) -> Sites:
    """One run of the pair, term by term; see :func:`draw_particles`.

    ``vectorized`` is what :func:`vectorizes` said of the pair; ``analytic_kl`` fills ``kl`` with exact terms.
    """
    drawn = draw(guide, args, kwargs, num_particles, vectorized, flow)
    return weigh(model, drawn, args, kwargs, num_particles, vectorized, analytic_kl=analytic_kl, flow=flow)


def particle_plate(num_particles: int) -> AbstractContextManager[Any]:
    """The plate over particles; one particle needs none, so any program can run as it was written."""
    return pyro.plate(PARTICLES, num_particles, dim=-2) if num_particles > 1 else nullcontext()


def draw(
    guide: Program, args: tuple, kwargs: dict[str, Any], num_particles: int, vectorized: Vectorized, flow: Flow
) -> list[poutine.Trace]:
    """Run the guide: one trace of all particles or, if its networks cannot, one of each, on the same rows of data."""
    require_count("num_particles", num_particles)
    with Detached() if flow == "score" else nullcontext():
        if num_particles == 1 or vectorized.guide:
            with particle_plate(num_particles):
                return [trace(guide, args, kwargs)]
        first = trace(guide, args, kwargs)
        again = same_rows(guide, first)
        return [first, *(trace(again, args, kwargs) for _ in range(num_particles - 1))]


def weigh(
    model: Program,
    drawn: list[poutine.Trace],
    args: tuple,
    kwargs: dict[str, Any],
    num_particles: int,
    vectorized: Vectorized,
    *,
    analytic_kl: bool = False,
    flow: Flow = "total",
) -> Sites:
    """Run the model at the guide's draws: all particles at once or, if its networks cannot, one by one."""
    qs = [guide_sites(one) for one in drawn]
    each = num_particles // len(drawn)
    z = {name: _particles([q[name]["value"] for q in qs], num_particles) for name in qs[0]}
    terms: list[tuple[Terms, Terms, Terms, Any]] = []
    if num_particles == 1 or (vectorized.model and len(drawn) == 1):
        values = z if num_particles > 1 else {name: value[0] for name, value in z.items()}
        with particle_plate(num_particles):
            model_trace = replay(model, with_values(drawn[0], values), args, kwargs)
        terms.append(_model_terms(qs[0], model_trace, num_particles, analytic_kl))
    else:
        for k in range(num_particles):
            run, place = (k, 0) if len(drawn) > 1 else (0, k)
            one = with_values(drawn[run], {name: value[k] for name, value in z.items()})
            terms.append(_model_terms(qs[run], replay(model, one, args, kwargs), 1, analytic_kl, particle=place))
    prior, likelihood, kl, scale = zip(*terms, strict=True)
    return Sites(
        log_prior=_cat(prior),
        log_likelihood=_cat(likelihood),
        log_q=_cat([log_density(q, each, flow) for q in qs]),
        z=z,
        kl=_cat(kl),
        q={name: site["fn"] for name, site in qs[0].items()},
        scale=scale[0],
        reparameterized=_reparameterized(qs[0]),
        masked=_masked(qs[0]),
    )


def weigh_chosen(
    model: Program,
    drawn: list[poutine.Trace],
    args: tuple,
    kwargs: dict[str, Any],
    num_particles: int,
    vectorized: Vectorized,
    flow: Flow,
) -> tuple[Float[Tensor, "particles batch"], Int[Tensor, " batch"], Sites]:
    """Weigh all draws without a gradient, choose one per datapoint in proportion to its weight, and weigh that one.

    The log-weights of all, which ones were chosen, and the chosen ones with their gradient.
    """
    with torch.no_grad():
        log_w = weigh(model, drawn, args, kwargs, num_particles, vectorized).log_w
    index = (log_w - torch.empty_like(log_w).exponential_().log()).argmax(0)  # the largest, with Gumbel noise on it
    qs = [guide_sites(one) for one in drawn]
    z = {name: _chosen(_particles([q[name]["value"] for q in qs], num_particles), index) for name in qs[0]}
    log_q = _cat([log_density(q, num_particles // len(drawn), flow) for q in qs])
    model_trace = replay(model, with_values(drawn[0], {name: value[0] for name, value in z.items()}), args, kwargs)
    prior, likelihood, _, scale = _model_terms(qs[0], model_trace, 1, False)
    chosen = {name: _chosen(terms, index) for name, terms in log_q.items()}
    return log_w, index, Sites(prior, likelihood, chosen, z, {}, {}, scale, _reparameterized(qs[0]), _masked(qs[0]))


def _chosen(values: Tensor, index: Tensor) -> Tensor:
    """One particle of each datapoint, ``[1, batch, ...]``."""
    return values[index, torch.arange(len(index), device=values.device)][None]


def _reparameterized(q: dict[str, Any]) -> bool:
    return all(site["fn"].has_rsample for site in q.values())


def _masked(q: dict[str, Any]) -> bool:
    return any(site["mask"] is not None and site["mask"] is not True for site in q.values())


def _particles(values: list[Tensor], num_particles: int) -> Tensor:
    """Copies of a site's values, ``[particles, batch, *event]``."""
    if len(values) > 1:
        return torch.stack(values)
    return values[0].view_as(values[0]) if num_particles > 1 else values[0][None]


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


def with_values(trace: poutine.Trace, values: dict[str, Tensor]) -> poutine.Trace:
    """A copy of the trace with other values at its latent sites."""
    changed: Any = trace.copy()
    for name, value in values.items():
        changed.nodes[name] = {**changed.nodes[name], "value": value}
    return changed


def particle_of(trace: poutine.Trace, k: int) -> poutine.Trace:
    return with_values(trace, {name: site["value"][k] for name, site in latent_sites(trace).items()})


def redraw(trace: poutine.Trace, num_particles: int) -> poutine.Trace:
    shape = torch.Size([num_particles] if num_particles > 1 else [])
    return with_values(trace, {name: site["fn"](shape) for name, site in latent_sites(trace).items()})


def total(terms: Terms) -> Tensor:
    """The sum over sites; a plain zero if there are none."""
    first, *rest = terms.values() or (torch.zeros(()),)
    return sum(rest, first)
