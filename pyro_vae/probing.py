"""What a pair can do with particles and datapoints, found out by running it: its networks cannot be asked."""

from __future__ import annotations

__all__ = ["Verdicts", "rows_apart", "vectorizes"]

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import unwrap
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .errors import PairError
from .modules import evaluating
from .randomness import forked
from .sites import Vectorized, particle_of, particle_plate, redraw, with_values
from .traces import Program, guide_sites, replay, require_rows, same_rows, sample_sites, site_log_prob, trace


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
            with particle_plate(2):
                two = trace(same_rows(guide, drawn), args, kwargs)
        except _SHAPE_ERRORS:
            return Vectorized(model=False, guide=False)  # both are run one particle at a time
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
            alone = with_values(drawn, lambda site, here=here: site["value"][here])
            for name, site in sample_sites(replay(program, alone, (x[here],), {})).items():
                if not _close(site_log_prob(site, 1), site_log_prob(among[name], 1)[:, here]):
                    return False
    except _SHAPE_ERRORS:
        return False
    return True


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
    return torch.allclose(found, expected, 1e-4, 1e-3, equal_nan=True)


# What a network that cannot take other leading dimensions raises (KeyError: a flow that knows no inverse). A program
# that is at fault in another way raises again when it is run as it was written, where nothing is caught.
_SHAPE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, PairError)
