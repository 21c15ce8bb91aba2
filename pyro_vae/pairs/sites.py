"""One run of a pair, term by term: the log-density of every site, particle and datapoint."""

from __future__ import annotations

__all__ = ["Sites", "draw", "draw_sites", "weigh", "weigh_chosen"]

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor

from ..errors import require_count
from .pair import Pair
from .pathwise import Detached, GradientPath, log_density
from .running import Vectorized, particle_plate, run_at, same_rows, trace
from .traces import (
    common_scale,
    guide_sites,
    is_masked,
    require_same_sites,
    sample_sites,
    site_kl,
    site_log_prob,
    total,
)

Terms = dict[str, Tensor]


class Sites(NamedTuple):
    r"""The terms of one run by site: each is ``[particles, batch]``, in nats per datapoint, unscaled and masked.

    ``z`` are the values at which the model was run, copies of the guide's draws: a gradient hook on one of them acts on
    the model's part of a weight and not on the guide's. ``kl`` is ``[particles, batch, latent]``, and empty unless
    exact terms were computed; ``q`` holds the guide's distributions. ``scale`` is that of ``poutine.scale`` and of
    subsampled plates; it belongs outside the bound.
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
        """The ELBO of these draws, with exact KL terms if there are any."""
        return (self.reconstruction - self.divergence if self.kl else self.log_w).mean(0)

    @property
    def reconstruction(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x \mid z)`."""
        return total(self.log_likelihood) if self.log_likelihood else torch.zeros_like(total(self.log_q))

    @property
    def divergence(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z))`, exact if ``kl`` has it, else estimated by each draw."""
        if self.kl:
            return total({name: kl.sum(-1) for name, kl in self.kl.items()})
        return total(self.log_q) - total(self.log_prior)


def draw_sites(
    pair: Pair,
    *,
    num_particles: int,
    vectorized: Vectorized | None = None,
    analytic_kl: bool = False,
    path: GradientPath = "total",
) -> Sites:
    """Draw from the guide and weigh the draws, term by term; see :func:`draw_particles`.

    Arguments:
        vectorized: Which of the two programs take particles together, if that is known.
        analytic_kl: Fill ``kl`` with exact terms.
        path: How the guide's parameters reach the weights.
    """
    vectorized = pair.vectorized() if vectorized is None else vectorized
    drawn = draw(pair, num_particles, vectorized, path)
    return weigh(pair, drawn, num_particles, vectorized, analytic_kl=analytic_kl, path=path)


def draw(pair: Pair, num_particles: int, vectorized: Vectorized, path: GradientPath = "total") -> list[poutine.Trace]:
    """Run the guide: one trace of all particles or, if its networks cannot, one of each, on the same rows of data."""
    require_count("num_particles", num_particles)
    with Detached() if path == "score" else nullcontext():
        if num_particles == 1 or vectorized.guide:
            with particle_plate(num_particles):
                return [pair.run_guide()]
        first = pair.run_guide()
        again = same_rows(pair.guide, first)
        return [first, *(trace(again, pair.args, pair.kwargs) for _ in range(num_particles - 1))]


def weigh(
    pair: Pair,
    drawn: list[poutine.Trace],
    num_particles: int,
    vectorized: Vectorized,
    *,
    analytic_kl: bool = False,
    path: GradientPath = "total",
) -> Sites:
    """Run the model at the guide's draws: all particles at once or, if its networks cannot, one by one."""
    qs = [guide_sites(one) for one in drawn]
    z = _particles(qs, num_particles)
    together = vectorized.model and len(drawn) == 1
    terms = [
        # Runs of the model go with runs of the guide, or with particles of the one run.
        _model_terms(qs[k], one, 1, analytic_kl)
        if len(qs) > 1
        else _model_terms(qs[0], one, num_particles if together else 1, analytic_kl, particle=k)
        for k, one in enumerate(run_at(pair.model, drawn[0], z, pair.args, pair.kwargs, together=together))
    ]
    prior, likelihood, kl, scale = zip(*terms, strict=True)
    return Sites(
        log_prior=_cat(prior),
        log_likelihood=_cat(likelihood),
        log_q=_cat([log_density(q, num_particles // len(drawn), path) for q in qs]),
        z=z,
        kl=_cat(kl),
        q={name: site["fn"] for name, site in qs[0].items()},
        scale=scale[0],
        reparameterized=_reparameterized(qs[0]),
        masked=any(map(is_masked, qs[0].values())),
    )


def weigh_chosen(
    pair: Pair, drawn: list[poutine.Trace], num_particles: int, vectorized: Vectorized, path: GradientPath
) -> tuple[Float[Tensor, "particles batch"], Int[Tensor, " batch"], Sites]:
    """Weigh all draws without a gradient, choose one per datapoint in proportion to its weight, and weigh that one.

    Returns:
        The log-weights of all draws, the indices of the chosen ones, and the chosen ones with their gradient.
    """
    with torch.no_grad():
        log_w = weigh(pair, drawn, num_particles, vectorized).log_w
    index = (log_w - torch.empty_like(log_w).exponential_().log()).argmax(0)  # the largest, with Gumbel noise on it
    qs = [guide_sites(one) for one in drawn]
    z = {name: _chosen(value, index) for name, value in _particles(qs, num_particles).items()}
    log_q = _cat([log_density(q, num_particles // len(drawn), path) for q in qs])
    (model_trace,) = run_at(pair.model, drawn[0], z, pair.args, pair.kwargs, together=False)
    prior, likelihood, _, scale = _model_terms(qs[0], model_trace, 1, False)
    chosen = {name: _chosen(terms, index) for name, terms in log_q.items()}
    masked = any(map(is_masked, qs[0].values()))
    return log_w, index, Sites(prior, likelihood, chosen, z, {}, {}, scale, _reparameterized(qs[0]), masked)


def _chosen(values: Tensor, index: Tensor) -> Tensor:
    """Return one particle of each datapoint, ``[1, batch, ...]``."""
    return values[index, torch.arange(len(index), device=values.device)][None]


def _reparameterized(q: dict[str, Any]) -> bool:
    return all(site["fn"].has_rsample for site in q.values())


def _particles(qs: list[dict[str, Any]], num_particles: int) -> dict[str, Tensor]:
    """Return copies of the guide's draws: site name -> ``[particles, batch, *event]``."""
    if len(qs) > 1:
        return {name: torch.stack([q[name]["value"] for q in qs]) for name in qs[0]}
    values = {name: site["value"] for name, site in qs[0].items()}
    return {name: value.view_as(value) if num_particles > 1 else value[None] for name, value in values.items()}


def _model_terms(
    q: dict[str, Any], trace: poutine.Trace, num_particles: int, analytic_kl: bool, particle: int = 0
) -> tuple[Terms, Terms, Terms, Any]:
    """Return log-prior, log-likelihood, KL and scale of a model's trace of ``num_particles`` particles.

    ``particle`` is the index of the first one in the guide's distributions, which may hold more.
    """
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
    """Return the particles of several runs behind one another."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
