"""What a pair can do with particles and datapoints, found out by running it: its networks cannot be asked."""

from __future__ import annotations

__all__ = ["Verdicts", "rows_apart", "vectorizes"]

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
from .sites import Vectorized, particle_of, particle_plate, redraw
from .traces import (
    Program,
    guide_sites,
    latent_sites,
    replay,
    require_rows,
    same_rows,
    sample_sites,
    site_log_prob,
    trace,
)


def vectorizes(
    model: Program, guide: Program, args: tuple, kwargs: dict[str, Any], *, drawn: poutine.Trace | None = None
) -> Vectorized:
    """Find out by running both functions with two particles, and with each of them alone: same densities or not.

    Catching errors alone would not do: a softmax over dimension 1 or a batch normalisation takes a tensor of three
    dimensions without a word and computes something else. Networks are asked in evaluation mode; no gradient, no
    generator and no parameter is touched. A guide that was ``drawn`` from already need not run again, and an owner of
    both functions that says ``takes_particles``, as a VAE does of itself, is not asked at all.
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


class Verdicts:
    """What :func:`vectorizes` said of pairs, by what they were called with.

    A yes is asked for again at the 2nd, 4th, 8th, ... call, because it holds for the weights that were seen: a layer
    that starts at zero or a fresh batch normalisation hides what a network does with particles. A no is final.
    """

    _MOST_PAIRS, _MOST_CALLS = 4, 512

    def __init__(self) -> None:
        # With the programs themselves, so that no other one can come to live at their address.
        self._found: dict[Key, tuple[tuple[Program, Program], dict[Key, tuple[Vectorized, int]]]] = {}

    def __reduce__(self) -> tuple[type[Verdicts], tuple]:
        return Verdicts, ()  # a copy has not asked anybody yet

    def of(self, model: Program, guide: Program, args: tuple, kwargs: dict[str, Any]) -> Vectorized:
        """The verdict of one pair called with these arguments."""
        pair = (unwrap(model), unwrap(guide))
        key = (*_identity(pair[0]), *_identity(pair[1]))
        known = self._found.pop(key, (pair, {}))
        self._found[key] = known
        if len(self._found) > self._MOST_PAIRS:
            del self._found[next(iter(self._found))]  # the one that was not asked about for the longest
        verdict, calls = known[1].get(given := _described(args, kwargs), (Vectorized(model=True, guide=True), 0))
        calls += 1
        if calls & (calls - 1) == 0 and (verdict.model or verdict.guide):
            verdict = vectorizes(model, guide, args, kwargs)
        known[1][given] = (verdict, calls)
        if len(known[1]) > self._MOST_CALLS:
            del known[1][next(iter(known[1]))]
        return verdict


Key = tuple[Any, ...]


def _identity(program: Program) -> Key:
    """What tells a program from another; bound methods and partial functions are made anew whenever they are named."""
    if isinstance(program, partial):
        return (*_identity(program.func), *_described(program.args, program.keywords))
    return id(getattr(program, "__func__", program)), id(getattr(program, "__self__", None))


def _described(args: tuple, kwargs: dict[str, Any]) -> Key:
    """The arguments as far as they may decide what is computed, and not only with which numbers."""
    parts = (part.shape if isinstance(part, Tensor) else part for part in tree_leaves((args, kwargs)))
    # With its type, since True == 1; functions and networks are kept alive by being a key.
    return tuple((type(part), part if isinstance(part, _DECIDING) else None) for part in parts)


_DECIDING = (torch.Size, bool, int, str, nn.Module, FunctionType, MethodType)


def rows_apart(model: Program, guide: Program, x: Tensor) -> bool:
    """Whether a datapoint's densities are the same when it is given alone or elsewhere, so that ``x`` may be cut.

    They are not in a pair that looks things up by the plate's indices, that mixes datapoints, or that holds a parameter
    for each of them. A few datapoints are tried: together, one of them alone, and all of them under the indices of the
    middle and of the end.
    """
    if isinstance(unwrap(guide), AutoGuide):  # has a parameter for each, and makes them for those that it sees first
        return False
    few = x[:_FEW]
    try:
        with torch.no_grad(), evaluating(model, guide), forked():
            drawn = trace(guide, (few,), {})
            require_rows(guide_sites(drawn), len(few))
            places = {(len(x) - len(few)) // 2, len(x) - len(few)}
            return all(_same_alone_and_elsewhere(program, drawn, few, places) for program in (guide, model))
    except Exception:  # whatever is wrong with the pair, or with x, is said when it runs on all of x
        return False


_FEW = 64


def _same_alone_and_elsewhere(program: Program, drawn: poutine.Trace, x: Tensor, places: set[int]) -> bool:
    """Whether the program gives datapoints the densities they have together also alone, and under other indices."""
    together = replay(program, drawn, (x,), {})
    expected = {name: site_log_prob(site, 1) for name, site in sample_sites(together).items()}
    for row in {len(x) // 2, len(x) - 1}:
        alone = replay(program, _one(drawn, row), (x[row : row + 1],), {})
        for name, site in sample_sites(alone).items():
            if not _close(site_log_prob(site, 1), expected[name][:, row : row + 1]):
                return False
    for place in places - {0}:
        for name, site in sample_sites(replay(program, _moved(together, place), (x,), {})).items():
            if not _close(site_log_prob(site, 1), expected[name]):
                return False
    return True


def _one(found: poutine.Trace, row: int) -> poutine.Trace:
    """The latent values of one row, without the plates' indices."""
    one = poutine.Trace()
    for name, site in latent_sites(found).items():
        one.add_node(name, **{**site, "value": site["value"][row : row + 1]})
    return one


def _moved(found: poutine.Trace, place: int) -> poutine.Trace:
    """A copy of the trace in which the plates' indices start at ``place``."""
    moved: Any = found.copy()
    nodes: dict[str, Any] = dict(found.nodes)
    for name, site in nodes.items():
        if site_is_subsample(site):
            moved.nodes[name] = {**site, "value": site["value"] + place}
    return moved


def _same_densities(program: Program, two: poutine.Trace, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the program gives both of two particles the densities that it gives each alone."""
    try:
        with particle_plate(2):
            both = sample_sites(replay(program, two, args, kwargs))
        return all(
            _close(site_log_prob(both[name], 2)[k], site_log_prob(site, 1)[0])
            for k in range(2)
            for name, site in sample_sites(replay(program, particle_of(two, k), args, kwargs)).items()
        )
    except _SHAPE_ERRORS:
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: networks add up in another order for another batch size."""
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-3, equal_nan=True)


# What a network that cannot take other leading dimensions raises (KeyError: a flow that knows no inverse). A program
# that is at fault in another way raises again when it is run as it was written, where nothing is caught.
_SHAPE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, PairError)
