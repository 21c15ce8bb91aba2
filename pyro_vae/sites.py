"""One run of a pair, term by term: densities per site, particle and datapoint."""

from __future__ import annotations

__all__ = ["Sites", "Vectorized", "Verdicts", "draw_sites", "redraw", "rows_apart", "total", "vectorizes", "weigh"]

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.messenger import unwrap
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .errors import PairError, require_count
from .modules import evaluating
from .randomness import forked
from .traces import (
    PARTICLES,
    Program,
    common_scale,
    guide_sites,
    latent_sites,
    replay,
    require_rows,
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
    with _particle_plate(num_particles):
        guide_trace = trace(guide, args, kwargs)
    return weigh(model, guide_trace, args, kwargs, num_particles, vectorized, analytic_kl)


class Vectorized(NamedTuple):
    """Which of a pair's two functions take a leading particle dimension."""

    model: bool
    guide: bool


def vectorizes(
    model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], *, drawn: poutine.Trace | None = None
) -> Vectorized:
    """Find out by running both functions with two particles, and with each of them alone: same densities or not.

    Catching errors alone would not do: a softmax over dimension 1 or a batch normalisation takes a tensor of three
    dimensions without a word and computes something else. Networks are asked in evaluation mode; no gradient, no
    generator and no parameter is touched. A guide that was ``drawn`` from already need not run again, and an owner of
    both functions that says that it is ``rowwise``, as a VAE does of itself, is not asked at all.
    """
    if _rowwise(model, guide):
        return Vectorized(model=True, guide=True)
    with torch.no_grad(), evaluating(model, guide), forked():
        drawn = trace(guide, args, kwargs) if drawn is None else drawn
        latent = guide_sites(drawn)
        for site in latent.values():
            site_log_prob(site, 1)  # a forgotten .to_event() must not pass for the particle dimension below
        if len(latent) == 1:  # its one distribution is declared before there is anything that has particles
            return Vectorized(model=_same_densities(model, redraw(drawn, 2), args, kwargs), guide=True)
        try:
            with _particle_plate(2):
                two = trace(same_rows(guide, drawn), args, kwargs)
        except _SHAPE_ERRORS:
            return Vectorized(model=_same_densities(model, drawn, args, kwargs), guide=False)
        return Vectorized(*(_same_densities(program, two, args, kwargs) for program in (model, guide)))


class Verdicts:
    """What :func:`vectorizes` said of pairs, by the shapes of their arguments.

    A yes is asked for again at the 2nd, 4th, 8th, ... call, because it holds for the weights that were seen: a layer
    that starts at zero or a fresh batch normalisation hides what a network does with particles. A no is final.
    """

    _MOST = 32

    def __init__(self) -> None:
        # With the programs themselves, so that no other one can come to live at their address.
        self._found: dict[tuple[Any, ...], tuple[Vectorized, int, tuple[Program, Program]]] = {}

    def __reduce__(self) -> tuple[type[Verdicts], tuple]:
        return Verdicts, ()  # a copy has not asked anybody yet

    def of(self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Vectorized:
        """The verdict of one pair called with these arguments."""
        pair = (unwrap(model), unwrap(guide))
        shapes = (part.shape if isinstance(part, Tensor) else type(part) for part in tree_leaves((args, kwargs)))
        key = (*map(_address, pair), *shapes)
        verdict, calls, _ = self._found.pop(key, (Vectorized(model=True, guide=True), 0, pair))
        calls += 1
        if calls & (calls - 1) == 0 and (verdict.model or verdict.guide):
            verdict = vectorizes(model, guide, args, kwargs)
        self._found[key] = (verdict, calls, pair)
        if len(self._found) > self._MOST:
            del self._found[next(iter(self._found))]  # the one that was not asked for the longest
        return verdict


def _address(program: Program) -> tuple[int, int]:
    """A function's identity; a bound method is made anew whenever it is named."""
    return id(getattr(program, "__func__", program)), id(getattr(program, "__self__", None))


def _rowwise(*pair: Program) -> bool:
    return all(getattr(getattr(unwrap(part), "__self__", None), "rowwise", False) for part in pair)


def rows_apart(model: Program, guide: Program, x: Tensor) -> bool:
    """Whether a datapoint's densities are the same when it is given alone, so that ``x`` may be cut into blocks.

    They are not in a pair that looks things up by the plate's indices, or that holds a parameter for each datapoint.
    """
    if _rowwise(model, guide):
        return True
    with torch.no_grad(), evaluating(model, guide), forked():
        drawn = trace(guide, (x,), {})
        require_rows(guide_sites(drawn), len(x))
        return all(_same_densities_alone(program, drawn, x) for program in (guide, model))


def _same_densities_alone(program: Program, drawn: poutine.Trace, x: Tensor) -> bool:
    """Whether the program gives a datapoint in the middle, and the last one, the densities that it gives each alone."""
    try:
        among = sample_sites(replay(program, drawn, (x,), {}))
        for row in {len(x) // 2, len(x) - 1}:
            here = slice(row, row + 1)
            alone = _with_values(drawn, lambda site, here=here: site["value"][here])
            for name, site in sample_sites(replay(program, alone, (x[here],), {})).items():
                if not _close(site_log_prob(site, 1), site_log_prob(among[name], 1)[:, here]):
                    return False
    except _SHAPE_ERRORS:
        return False
    return True


def _same_densities(program: Program, two: poutine.Trace, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the program gives both of two particles the densities that it gives each alone."""
    try:
        with _particle_plate(2):
            both = sample_sites(replay(program, two, args, kwargs))
        return all(
            _close(site_log_prob(both[name], 2)[k], site_log_prob(site, 1)[0])
            for k in range(2)
            for name, site in sample_sites(replay(program, _particle(two, k), args, kwargs)).items()
        )
    except _SHAPE_ERRORS:
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: networks add up in another order for another batch size."""
    return torch.allclose(found, expected, 1e-4, 1e-3, equal_nan=True)


# What a network that cannot take other leading dimensions raises (KeyError: a flow that knows no inverse). A program
# that is at fault in another way raises again when it is run as it was written, where nothing is caught.
_SHAPE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, PairError)


def _particle_plate(num_particles: int) -> AbstractContextManager[Any]:
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
        with _particle_plate(num_particles):
            model_trace = replay(model, guide_trace, args, kwargs)
        terms = [_model_terms(q, model_trace, num_particles, analytic_kl)]
    else:
        traces = (replay(model, _particle(guide_trace, k), args, kwargs) for k in range(num_particles))
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


def _particle(trace: poutine.Trace, k: int) -> poutine.Trace:
    return _with_values(trace, lambda site: site["value"][k])


def redraw(trace: poutine.Trace, num_particles: int) -> poutine.Trace:
    shape = torch.Size([num_particles] if num_particles > 1 else [])
    return _with_values(trace, lambda site: site["fn"](shape))


def total(terms: Terms) -> Tensor:
    """The sum over sites; a plain zero if there are none."""
    first, *rest = terms.values() or (torch.zeros(()),)
    return sum(rest, first)
