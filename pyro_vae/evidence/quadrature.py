r"""Sums over a grid of latent values: log p(x) itself, where there are one or two latent dimensions."""

from __future__ import annotations

__all__ = ["quadrature"]

from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PairError, require_count, require_number
from ..ops.streaming import LogMoments
from ..ops.verdicts import Judgement, judge
from ..pairs.density import Density
from ..pairs.pair import Pair
from ..pairs.progress import progress_bar
from ..pairs.running import Program
from .base import LogEvidence
from .grid import Box, Grid, box_around
from .latent_sums import DirectSums, SharedSums, densities_of, sums_over

_MAX_DIMENSIONS = 2
_MAX_WIDENINGS = 12
_SMALL = 1e-3  # nats: a last change that exceeds the tolerance and yet is of no consequence
_FEWEST_NODES = 4  # effective nodes along each dimension in a settled sum


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
    decoder with kinks, such as one of rectified linear units, converges by a power of h alone: set ``tolerance`` to
    1e-4. ``side`` is ``"point"``.

    The grid covers 7 standard deviations of the prior and 8 of every q(z | x), and is widened while any datapoint has
    mass at its border. Its step starts at the smallest standard deviation of q(z | x), if that is affordable, and is
    halved until no datapoint's value changes by more than ``tolerance``, or by more than the rounding of the pair's
    numbers; datapoints that have settled are left out of further halvings. The guide has no other use, so its
    quality does not matter, except that a mode much narrower than all of q could slip through.

    Each node is decoded once for all data where :math:`p(x \mid z)` and :math:`p(z)` are the same for all datapoints,
    as in an ordinary VAE. This is tested by scoring a few nodes for every datapoint in both ways; else each node is
    decoded for each datapoint, at many times the cost.

    ``stderr`` is the last change, an indicator of the error that is rather too large; it is no standard error, since
    nothing is random. ``ess`` and ``pareto_k`` are nan. ``num_particles`` counts the nodes of a datapoint's last grid,
    ``num_evaluations`` every node that was scored for it. A datapoint that ``max_nodes`` does not suffice for gets the
    verdict ``unreliable``, with its last change, or ``doubtful`` if that is below 1e-3.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents, of one or two dimensions in all.
        x: Data ``[n, ...]``, any array type.
        tolerance: The change of a datapoint's value, in nats, at which it has settled.
        max_nodes: The largest number of nodes of the grid.
        seed: The seed of the draws that lay out the grid; torch's own generator is left as it is.
        max_bytes: The approximate memory of a block of nodes and datapoints, in bytes.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for options out of range.
        DataError: for empty or non-finite data.
        PairError: for more than two latent dimensions, discrete latents, or any other pair.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | The Exponentially Convergent Trapezoidal Rule (Trefethen & Weideman, 2014)  https://doi.org/10.1137/130932132

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = quadrature(problem.model, problem.guide(), x)
        >>> torch.allclose(evidence.value, problem.log_evidence(x).double(), atol=1e-4)
        True
    """
    require_number("tolerance", tolerance, least=1e-12)
    max_nodes = require_count("max_nodes", max_nodes, least=100)
    max_bytes = require_count("max_bytes", max_bytes)
    pair = Pair.of(model, guide, x)
    with pair.evaluation(seed, "quadrature"), progress_bar(None, progress) as bar:
        densities = densities_of(pair, max_bytes)
        _require_few_dimensions(first := next(densities))
        densities = [first, *densities]
        sums = sums_over(densities, max_bytes=max_bytes, on_progress=bar.update)
        rows = torch.arange(len(pair), device=pair.x.device)
        covered = _covering(sums, box_around(densities), rows, tolerance, max_nodes)
        result = _settled(sums, covered, tolerance, max_nodes)
    unknown = torch.full_like(result.value, torch.nan)
    return LogEvidence(
        value=result.value,
        stderr=result.error,
        side="point",
        ess=unknown,
        pareto_k=unknown,
        judgement=_judged(result, tolerance),
        num_particles=result.num_nodes,
        num_evaluations=result.num_evaluations,
    )


def _require_few_dimensions(density: Density) -> None:
    if density.dim > _MAX_DIMENSIONS:
        raise PairError(
            f"the pair has {density.dim} latent dimensions, expected 1 or 2 in all, since a grid grows by a power of "
            "their number: use importance, psis or ais"
        )


class _Covered(NamedTuple):
    grid: Grid
    sums: LogMoments
    border: Float[Tensor, " batch"]
    """An estimate of the share of a datapoint's mass beyond one side of the grid."""
    num_evaluations: int


class _Result(NamedTuple):
    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    settled: Bool[Tensor, " batch"]
    border: Float[Tensor, " batch"]
    num_nodes: Int[Tensor, " batch"]
    num_evaluations: Int[Tensor, " batch"]


def _covering(
    sums_at: SharedSums | DirectSums,
    box: Box,
    rows: Int[Tensor, " batch"],
    tolerance: float,
    max_nodes: int,
    widenings: int = _MAX_WIDENINGS,
) -> _Covered:
    """Return the sums over a first grid, which leaves room for two halvings and is wide enough for all rows."""
    grid = box.grid(max_nodes // 4 ** len(box.low))
    sums, num_evaluations = sums_at.log_sums(grid, rows), grid.num_nodes
    border, wider = torch.zeros_like(sums.log_sum), box
    for dim, upper, face in grid.faces():
        # The share if the border's density held over as many nodes again: about the mass of a heavy tail outside.
        share = grid.counts[dim] * (sums_at.log_sums(face, rows).log_sum - sums.log_sum).exp()
        num_evaluations += face.num_nodes
        border = border.maximum(share.nan_to_num(0.0))
        if (share > tolerance / 10).any():
            wider = wider.widened(dim, upper)
    if wider is box or not widenings:
        return _Covered(grid, sums, border, num_evaluations)
    result = _covering(sums_at, wider, rows, tolerance, max_nodes, widenings - 1)
    return result._replace(num_evaluations=result.num_evaluations + num_evaluations)


def _settled(sums_at: SharedSums | DirectSums, first: _Covered, tolerance: float, max_nodes: int) -> _Result:
    """Halve the step for the datapoints that have not settled, as long as ``max_nodes`` allows it."""
    grid, sums, border, num_evaluations = first
    dim = len(grid.counts)
    value = sums.log_sum + grid.log_cell
    error, settled = torch.full_like(value, torch.inf), torch.zeros_like(value, dtype=torch.bool)
    count = torch.full_like(settled, grid.num_nodes, dtype=torch.long)
    moving = (value < torch.inf).nonzero()[:, 0]  # without datapoints that have the value nan
    sums = _at(sums, moving)
    while len(moving) and grid.num_nodes * 2**dim <= max_nodes:
        sums = reduce(LogMoments.merge, (sums_at.log_sums(part, moving) for part in grid.between()), sums)
        grid = grid.halved()
        before, now = value[moving], sums.log_sum + grid.log_cell
        rounding = torch.finfo(sums_at.dtype).eps * now.abs()
        change = torch.where(now == before, 0.0, (now - before).abs())
        rests = sums.ess >= _FEWEST_NODES**dim  # with fewer, an unchanged sum is a coincidence
        value[moving], error[moving], count[moving] = now, change.maximum(rounding), grid.num_nodes
        settled[moving] = (change <= rounding.clamp(min=tolerance)) & rests
        sums, moving = _at(sums, ~settled[moving]), moving[~settled[moving]]
    return _Result(value, error, settled, border, count, count + num_evaluations - first.grid.num_nodes)


def _at(sums: LogMoments, rows: Tensor) -> LogMoments:
    return LogMoments(sums.log_sum[rows], sums.log_sum_squares[rows], sums.num_particles)


def _judged(result: _Result, tolerance: float) -> Judgement:
    verdict, reason = (part.tolist() for part in judge(value=result.value, stderr=result.error))
    for row in (~result.settled | (result.border > tolerance)).nonzero()[:, 0].tolist():
        if not torch.isfinite(result.value[row]):
            continue
        settling = result.border[row] <= tolerance and result.error[row] <= _SMALL
        verdict[row] = "doubtful" if settling else "unreliable"
        if result.border[row] > tolerance:
            reason[row] = f"a share of about {result.border[row]:.2g} of the mass may be outside of the widest grid"
        else:
            reason[row] = (
                f"the grid of {result.num_nodes[row]} nodes did not settle: its last halving changed the value by "
                f"{result.error[row]:.2g} nats, more than {tolerance:g}"
            )
    return Judgement.of(list(zip(verdict, reason, strict=True)))
