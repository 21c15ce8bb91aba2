"""Running a Pyro program: as it was written, with a plate of particles, or at latent values that are given."""

from __future__ import annotations

__all__ = [
    "Program",
    "Vectorized",
    "as_trace",
    "particle_of",
    "particle_plate",
    "redraw",
    "replay",
    "run_at",
    "same_rows",
    "subsample",
    "trace",
    "with_values",
]

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import PairError
from .traces import PARTICLES, latent_sites

Program = Callable[..., Any]


class Vectorized(NamedTuple):
    """Two flags: model and guide take a leading particle dimension."""

    model: bool
    guide: bool


def trace(program: Program, args: tuple, kwargs: dict) -> poutine.Trace:
    """Run a program and record its sites."""
    try:
        with poutine.trace() as tracer:  # as a context: called, it would rewrite the messages of errors
            program(*args, **kwargs)
    except ValueError as error:
        if "Shape mismatch inside plate" not in str(error):
            raise
        raise PairError(
            f"{str(error).splitlines()[0]}: a site needs one distribution per datapoint: declare its event dimensions "
            "with .to_event()"
        ) from error
    return tracer.trace


def replay(program: Program, values: poutine.Trace, args: tuple, kwargs: dict) -> poutine.Trace:
    """Run a program at the latent values of another trace, on the rows that it subsampled."""
    return trace(poutine.replay(program, trace=values), args, kwargs)


def run_at(
    program: Program,
    values: poutine.Trace,
    z: dict[str, Tensor],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    together: bool,
) -> Iterator[poutine.Trace]:
    """Run a program at latent values: once for all particles if it takes them together, else once for each.

    A trace is yielded after the other, so that they need not be in memory together.

    Arguments:
        values: A trace with the program's latent sites; its rows are kept, its values are replaced.
        z: Site name -> ``[particles, batch, *event]``.
        together: Whether the program takes a leading particle dimension.
    """
    num_particles = len(next(iter(z.values())))
    if num_particles > 1 and together:
        with particle_plate(num_particles):
            whole = replay(program, with_values(values, z), args, kwargs)
        yield whole  # outside of the plate
        return
    for k in range(num_particles):
        one = {name: value[k] for name, value in z.items()}
        yield replay(program, with_values(values, one), args, kwargs)


def particle_plate(num_particles: int) -> AbstractContextManager[Any]:
    """Return the plate over particles; one particle needs none, so that any program can run as it was written."""
    return pyro.plate(PARTICLES, num_particles, dim=-2) if num_particles > 1 else nullcontext()


def same_rows(program: Program, other: poutine.Trace) -> Program:
    """Return the program, made to subsample the rows that another run of it subsampled."""
    rows = poutine.Trace()
    nodes: dict[str, Any] = dict(other.nodes)
    for name, site in nodes.items():
        if site_is_subsample(site):
            rows.add_node(name, **site)
    return poutine.replay(program, trace=rows)


def subsample(trace: poutine.Trace, size: int) -> Tensor:
    """Return the indices of the datapoints, out of ``size``, on which a program ran."""
    nodes: dict[str, Any] = dict(trace.nodes)
    plates = (site["value"] for name, site in nodes.items() if site_is_subsample(site) and name != PARTICLES)
    return next(plates, torch.arange(size))


def as_trace(sites: dict[str, Any]) -> poutine.Trace:
    """Return a trace of these sites alone, without the plates' indices."""
    alone = poutine.Trace()
    for name, site in sites.items():
        alone.add_node(name, **site)
    return alone


def with_values(trace: poutine.Trace, values: dict[str, Tensor]) -> poutine.Trace:
    """Return a copy of the trace with other values at its latent sites."""
    changed: Any = trace.copy()
    for name, value in values.items():
        changed.nodes[name] = {**changed.nodes[name], "value": value}
    return changed


def particle_of(trace: poutine.Trace, k: int) -> poutine.Trace:
    """Return a copy of the trace of one particle."""
    return with_values(trace, {name: site["value"][k] for name, site in latent_sites(trace).items()})


def redraw(trace: poutine.Trace, num_particles: int) -> poutine.Trace:
    """Return a copy of the trace with fresh draws from its latent sites' distributions."""
    shape = torch.Size([num_particles] if num_particles > 1 else [])
    return with_values(trace, {name: site["fn"](shape) for name, site in latent_sites(trace).items()})
