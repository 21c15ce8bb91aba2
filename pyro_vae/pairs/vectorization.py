"""Probing a pair by running it: does it take particles together, and rows alone?"""

from __future__ import annotations

__all__ = ["VectorizationCache", "rows_are_independent", "takes_particles"]

from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import unwrap
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import PairError
from ..ops.seeds import forked
from .handlers import evaluating
from .running import (
    Program,
    Vectorized,
    as_trace,
    particle_of,
    particle_plate,
    redraw,
    replay,
    run_at,
    same_rows,
    trace,
)
from .traces import guide_sites, latent_sites, require_rows, sample_sites, site_log_prob


def takes_particles(
    model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], *, drawn: poutine.Trace | None = None
) -> Vectorized:
    """Return which of two programs take a leading particle dimension.

    Both are run with two particles together and with each of them alone, and the densities are compared. To catch
    errors would not be enough: a softmax over dimension 1 or a batch normalisation takes a tensor of three dimensions
    without an error, and computes something else. The networks run in evaluation mode; no gradient, no generator and no
    parameter is touched. A trace ``drawn`` from the guide saves a run of it. If both programs are methods of an object
    with a true attribute ``takes_particles``, such as a VAE, nothing is run.
    """
    if all(getattr(getattr(unwrap(part), "__self__", None), "takes_particles", False) for part in (model, guide)):
        return Vectorized(model=True, guide=True)
    with torch.no_grad(), evaluating(model, guide), forked():
        drawn = trace(guide, args, kwargs) if drawn is None else drawn
        latent = guide_sites(drawn)
        for site in latent.values():
            site_log_prob(site, 1)  # a forgotten .to_event() must not pass for the particle dimension below
        if len(latent) == 1:  # its one distribution is declared before there is anything that has particles
            return Vectorized(model=_same_densities(model, redraw(drawn, 2), args, kwargs), guide=True)
        try:
            with particle_plate(2):
                two = trace(same_rows(guide, drawn), args, kwargs)
        except _SHAPE_ERRORS:
            return Vectorized(model=False, guide=False)  # both are run one particle at a time
        return Vectorized(*(_same_densities(program, two, args, kwargs) for program in (model, guide)))


class VectorizationCache:
    """The answers of :func:`takes_particles` for pairs in training, by the shapes of their arguments.

    A yes is checked again at the 2nd, 4th, 8th, ... call, because it holds for the weights at that time: a layer that
    starts at zero, or a fresh batch normalisation, hides how a network treats particles. A no is final.
    """

    _MOST_PAIRS, _MOST_CALLS = 4, 512

    def __init__(self) -> None:
        # With the programs themselves, so that no other one can come to live at their address.
        self._answers: dict[Key, tuple[tuple[Program, Program], dict[Key, tuple[Vectorized, int]]]] = {}

    def __reduce__(self) -> tuple[type[VectorizationCache], tuple]:
        return VectorizationCache, ()  # a copy starts empty

    def of(self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Vectorized:
        """Return the answer for one pair called with these arguments."""
        pair = (unwrap(model), unwrap(guide))
        key = (*_identity(pair[0]), *_identity(pair[1]))
        known = self._answers.pop(key, (pair, {}))
        self._answers[key] = known
        if len(self._answers) > self._MOST_PAIRS:
            del self._answers[next(iter(self._answers))]  # the one that was used least recently
        answer, calls = known[1].get(given := _described(args, kwargs), (Vectorized(model=True, guide=True), 0))
        calls += 1
        if calls & (calls - 1) == 0 and (answer.model or answer.guide):
            answer = takes_particles(model, guide, args, kwargs)
        known[1][given] = (answer, calls)
        if len(known[1]) > self._MOST_CALLS:
            del known[1][next(iter(known[1]))]
        return answer


Key = tuple[Any, ...]


def _identity(program: Program) -> Key:
    """Return a key that tells one program from another; bound methods are made anew whenever they are named."""
    if isinstance(program, partial):
        return (*_identity(program.func), *_described(program.args, program.keywords))
    return id(getattr(program, "__func__", program)), id(getattr(program, "__self__", None))


def _described(args: tuple, kwargs: dict[str, Any]) -> Key:
    """Return a key of the arguments: shapes of tensors, and the values of whatever else may decide what is computed."""
    parts = (part.shape if isinstance(part, Tensor) else part for part in tree_leaves((args, kwargs)))
    # With its type, since True == 1; functions and networks are kept alive by being a key.
    return tuple((type(part), part if isinstance(part, _DECIDING) else None) for part in parts)


_DECIDING = (torch.Size, bool, int, str, nn.Module, FunctionType, MethodType)


def rows_are_independent(model: Program, guide: Program, x: Tensor) -> bool:
    """Return whether a datapoint has the same densities when it is given alone or at another index.

    It has not in a pair that looks things up by the plate's indices, that mixes datapoints, or that holds parameters
    for each of them. A few datapoints are tried: together, one of them alone, and all of them at the indices of the
    middle and of the end.
    """
    if isinstance(unwrap(guide), AutoGuide):  # holds parameters for each of the rows that it sees first
        return False
    few = x[:_FEW] if len(x) > 1 else x.expand(2, *x.shape[1:])  # one row alone shows nothing
    try:
        with torch.no_grad(), evaluating(model, guide), forked():
            drawn = trace(guide, (few,), {})
            require_rows(guide_sites(drawn), len(few))
            starts = {(len(x) - len(few)) // 2, len(x) - len(few)} if len(x) > 1 else {0}
            return all(_same_alone_and_elsewhere(program, drawn, few, starts) for program in (guide, model))
    except Exception:  # an error of the pair, or of x, is raised when it runs on all of x
        return False


_FEW = 64


def _same_alone_and_elsewhere(program: Program, drawn: poutine.Trace, x: Tensor, starts: set[int]) -> bool:
    """Return whether datapoints have the same densities together, alone, and at other indices."""
    together = replay(program, drawn, (x,), {})
    expected = {name: site_log_prob(site, 1) for name, site in sample_sites(together).items()}
    for row in {len(x) // 2, len(x) - 1}:
        alone = replay(program, _one(drawn, row), (x[row : row + 1],), {})
        for name, site in sample_sites(alone).items():
            if not _close(site_log_prob(site, 1), expected[name][:, row : row + 1]):
                return False
    for start in starts - {0}:
        for name, site in sample_sites(replay(program, _moved(together, start), (x,), {})).items():
            if not _close(site_log_prob(site, 1), expected[name]):
                return False
    return True


def _one(found: poutine.Trace, row: int) -> poutine.Trace:
    """Return the latent values of one row, without the plates' indices."""
    sites = latent_sites(found).items()
    return as_trace({name: {**site, "value": site["value"][row : row + 1]} for name, site in sites})


def _moved(found: poutine.Trace, start: int) -> poutine.Trace:
    """Return a copy of the trace in which the plates' indices start at ``start``."""
    moved: Any = found.copy()
    nodes: dict[str, Any] = dict(found.nodes)
    for name, site in nodes.items():
        if site_is_subsample(site):
            moved.nodes[name] = {**site, "value": site["value"] + start}
    return moved


def _same_densities(program: Program, two: poutine.Trace, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Return whether the program gives two particles the same densities together and alone."""
    z = {name: site["value"] for name, site in latent_sites(two).items()}
    try:
        (both,) = run_at(program, two, z, args, kwargs, together=True)
        together = sample_sites(both)
        return all(
            _close(site_log_prob(together[name], 2)[k], site_log_prob(site, 1)[0])
            for k in range(2)
            for name, site in sample_sites(replay(program, particle_of(two, k), args, kwargs)).items()
        )
    except _SHAPE_ERRORS:
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether these are equal but for rounding: networks sum in another order for another batch size."""
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-3, equal_nan=True)


# The errors of a network that cannot take other leading dimensions (KeyError: a flow that knows no inverse). A program
# with another fault raises again when it is run as it was written, where nothing is caught.
_SHAPE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, PairError)
