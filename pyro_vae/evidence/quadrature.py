r"""Sums over a grid of latent values: log p(x) itself, where there are one or two latent dimensions."""

from __future__ import annotations

__all__ = ["quadrature"]

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PairError, require_count, require_number
from ..ops.streaming import LogMoments
from ..ops.verdicts import Judgement, judge
from ..pairs.density import Density
from ..pairs.handlers import untouched
from ..pairs.inputs import data_for
from ..pairs.progress import progress_bar
from ..pairs.traces import Program
from .base import LogEvidence
from .box import Box, box_around
from .grid import Lattice
from .latent_sums import Direct, Shared, at_nodes, densities_of

_MOST_DIMENSIONS = 2
_MOST_WIDENINGS = 12
_SMALL = 1e-3  # nats: a last change that is too large and yet of no consequence
_FEWEST_NODES = 4  # along each dimension, that a settled sum rests on


def quadrature(
    model: Program,
    guide: Program,
    x: Any,
    *,
    tolerance: float = 1e-6,
    max_nodes: int = 4_000_000,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Sum :math:`p(x, z)` over a grid: :math:`\log p(x)` to rounding, for one or two latent dimensions in all.

    .. math:: \log p(x) = \log \int p(x, z) \, dz \approx \log \Big( h_1 h_2 \sum_n p(x, z_n) \Big)

    The trapezoid rule converges faster than any power of the step h for smooth integrands that vanish at both ends: a
    Gaussian posterior of standard deviation s is off by :math:`2 e^{-2 \pi^2 s^2 / h^2}`, which is 5e-9 at h = s. A
    decoder with kinks, such as one of rectified linear units, converges by a power of h alone: ask for a ``tolerance``
    of 1e-4. ``side`` is ``"point"``.

    The grid covers 7 standard deviations of the prior and 8 of every q(z | x), and is widened while any datapoint has
    mass at its border. Its step starts at the smallest standard deviation of q(z | x), if that is affordable, and is
    halved until no datapoint's value changes by more than ``tolerance``, or by more than the rounding of the pair's
    numbers; datapoints that have settled are left out of further halvings. The guide is asked for nothing else, so its
    quality does not matter, except that a mode much narrower than all of q could slip through.

    Each node is decoded once for all data where :math:`p(x \mid z)` and :math:`p(z)` are the same for all datapoints,
    as in an ordinary VAE. This is found out by scoring a few nodes for every datapoint in both ways; else each node is
    decoded for each datapoint, at many times the cost.

    ``stderr`` is no standard error, since nothing is random: it is the last change, an indicator of the error, and
    rather too large. ``ess`` and ``pareto_k`` are nan. ``num_particles`` counts the nodes of a datapoint's last grid,
    ``num_evaluations`` every node that was scored for it. A datapoint that ``max_nodes`` does not suffice for gets the
    verdict ``unreliable``, with its last change, or ``doubtful`` if that is below 1e-3.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents, of one or two dimensions in all.
        x: Data ``[n, ...]``, any array type.
        tolerance: The change of a datapoint's value, in nats, at which it has settled.
        max_nodes: The largest number of nodes of the grid.
        seed: Of the draws that the grid is laid out by; torch's own generator is left as it is.
        max_bytes: About how much memory a block of nodes and datapoints may take.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for options that are no such numbers.
        DataError: for empty or non-finite data.
        PairError: for more than two latent dimensions, discrete latents, or what is not such a pair.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | The Exponentially Convergent Trapezoidal Rule (Trefethen & Weideman, 2014)  https://doi.org/10.1137/130932132

    Example:
        >>> import pyro_vae as pv
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = quadrature(problem.model, problem.guide(), x)
        >>> torch.allclose(evidence.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    require_number("tolerance", tolerance, least=1e-12)
    max_nodes = require_count("max_nodes", max_nodes, least=100)
    max_bytes = require_count("max_bytes", max_bytes)
    x = data_for(x, model, guide)
    with untouched(model, guide, seed=(seed, "quadrature")), progress_bar(None, progress) as bar:
        others = densities_of(model, guide, x, max_bytes)
        _require_few_dimensions(first := next(others))
        densities = [first, *others]
        nodes = at_nodes(densities, max_bytes=max_bytes, count=bar.update)
        rows = torch.arange(len(x), device=x.device)
        found = _refined(
            nodes, _covering(nodes, box_around(densities), rows, tolerance, max_nodes), tolerance, max_nodes
        )
    nothing = torch.full_like(found.value, torch.nan)
    return LogEvidence(
        value=found.value,
        stderr=found.error,
        side="point",
        ess=nothing,
        pareto_k=nothing,
        judgement=_judged(found, tolerance),
        num_particles=found.num_nodes,
        num_evaluations=found.num_evaluations,
    )


def _require_few_dimensions(density: Density) -> None:
    if density.dim > _MOST_DIMENSIONS:
        raise PairError(
            f"the pair has {density.dim} latent dimensions, expected 1 or 2 in all, since a grid grows by a power of "
            "their number: use importance, psis or ais"
        )


class _Covered(NamedTuple):
    lattice: Lattice
    sums: LogMoments
    border: Float[Tensor, " batch"]
    """About which share of a datapoint's mass may lie beyond one side of the lattice."""
    num_evaluations: int


class _Found(NamedTuple):
    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    settled: Bool[Tensor, " batch"]
    border: Float[Tensor, " batch"]
    num_nodes: Int[Tensor, " batch"]
    num_evaluations: Int[Tensor, " batch"]


def _covering(
    nodes: Shared | Direct,
    box: Box,
    rows: Int[Tensor, " batch"],
    tolerance: float,
    max_nodes: int,
    widenings: int = _MOST_WIDENINGS,
) -> _Covered:
    """The sums over a first lattice, which leaves room for two halvings and is wide enough for all rows."""
    lattice = box.lattice(max_nodes // 4 ** len(box.low))
    sums, num_evaluations = nodes.log_sums(lattice, rows), lattice.num_nodes
    border, wider = torch.zeros_like(sums.log_sum), box
    for dim, upper, face in lattice.faces():
        # As if the density went on over as many nodes again: of a heavy tail that is what lies outside.
        share = lattice.counts[dim] * (nodes.log_sums(face, rows).log_sum - sums.log_sum).exp()
        num_evaluations += face.num_nodes
        border = border.maximum(share.nan_to_num(0.0))
        if (share > tolerance / 10).any():
            wider = wider.widened(dim, upper)
    if wider is box or not widenings:
        return _Covered(lattice, sums, border, num_evaluations)
    found = _covering(nodes, wider, rows, tolerance, max_nodes, widenings - 1)
    return found._replace(num_evaluations=found.num_evaluations + num_evaluations)


def _refined(nodes: Shared | Direct, first: _Covered, tolerance: float, max_nodes: int) -> _Found:
    """Halve the step for the datapoints that have not settled, as long as ``max_nodes`` allows it."""
    lattice, sums, border, num_evaluations = first
    dim = len(lattice.counts)
    value = sums.log_sum + lattice.log_cell
    error, settled = torch.full_like(value, torch.inf), torch.zeros_like(value, dtype=torch.bool)
    count = torch.full_like(settled, lattice.num_nodes, dtype=torch.long)
    moving = (value < torch.inf).nonzero()[:, 0]  # not those that are nan
    sums = _of(sums, moving)
    while len(moving) and lattice.num_nodes * 2**dim <= max_nodes:
        sums = reduce(LogMoments.merge, (nodes.log_sums(part, moving) for part in lattice.between()), sums)
        lattice = lattice.halved()
        before, now = value[moving], sums.log_sum + lattice.log_cell
        rounding = torch.finfo(nodes.dtype).eps * now.abs()
        change = torch.where(now == before, 0.0, (now - before).abs())
        rests = sums.ess >= _FEWEST_NODES**dim  # with fewer, an unchanged sum is a coincidence
        value[moving], error[moving], count[moving] = now, change.maximum(rounding), lattice.num_nodes
        settled[moving] = (change <= rounding.clamp(min=tolerance)) & rests
        sums, moving = _of(sums, ~settled[moving]), moving[~settled[moving]]
    return _Found(value, error, settled, border, count, count + num_evaluations - first.lattice.num_nodes)


def _of(sums: LogMoments, rows: Tensor) -> LogMoments:
    return LogMoments(sums.log_sum[rows], sums.log_sum_squares[rows], sums.num_particles)


def _judged(found: _Found, tolerance: float) -> Judgement:
    verdict, reason = (part.tolist() for part in judge(value=found.value, stderr=found.error))
    for place in (~found.settled | (found.border > tolerance)).nonzero()[:, 0].tolist():
        if not torch.isfinite(found.value[place]):
            continue
        settling = found.border[place] <= tolerance and found.error[place] <= _SMALL
        verdict[place] = "doubtful" if settling else "unreliable"
        if found.border[place] > tolerance:
            reason[place] = f"a share of about {found.border[place]:.2g} of the mass may be outside of the widest grid"
        else:
            reason[place] = (
                f"the grid of {found.num_nodes[place]} nodes did not settle: its last halving changed the value by "
                f"{found.error[place]:.2g} nats, more than {tolerance:g}"
            )
    return Judgement(np.array(verdict), np.array(reason, dtype=object))
