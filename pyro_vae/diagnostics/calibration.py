r"""Simulation-based calibration of a guide, and the coverage of its intervals."""

from __future__ import annotations

__all__ = ["Calibration", "calibration"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import require_count, require_number
from ..pairs.density import Density
from ..pairs.pair import Pair, data_for
from ..pairs.running import Program
from ..pairs.simulation import simulate

_SIGNIFICANCE = 0.01  # the level for the whole guide, shared by its dimensions
_MAX_BINS, _PER_BIN = 20, 10

_MAX_ROWS = 1024


class Calibration(NamedTuple):
    r"""Ranks of true latent values among the guide's draws, per coordinate of the latent space.

    The coordinates of a constrained site (positive, a simplex) are unconstrained ones.
    """

    ranks: Int[Tensor, "simulations latent"]
    """The number of draws below the true value, from 0 to ``num_draws``; uniform for an exact posterior."""
    num_draws: int
    names: tuple[str, ...]
    """The names of the coordinates, such as ``z[0]``."""
    levels: Float[Tensor, " levels"]
    """The nominal coverage: the shares of true values inside the central intervals of a calibrated guide's draws."""
    coverage: Float[Tensor, "levels latent"]
    """The observed coverage: the shares of true values inside these intervals."""
    coverage_stderr: Float[Tensor, "levels latent"]
    """The binomial standard errors of ``coverage``."""
    p_value: Float[Tensor, " latent"]
    """The p-value of uniform ranks: Bonferroni's over tests of histogram (chi-square), mean and spread."""
    shift: Float[Tensor, " latent"]
    """The mean distance of the truth above the guide's mean, in the guide's standard deviations; 0 if calibrated."""
    spread: Float[Tensor, " latent"]
    """The standard deviation of that distance, in the same unit: above 1 the guide is too narrow, below 1 too wide."""

    @property
    def verdict(self) -> np.ndarray:
        """``"calibrated"`` or the largest defect of each coordinate: ``"too narrow"``, ``"too wide"``, ``"shifted"``.

        A coordinate is calibrated if uniform ranks cannot be rejected at the level 0.01, shared by all coordinates.
        Many simulations reveal small defects too, so look at ``shift`` and ``spread``.
        """
        limit = _SIGNIFICANCE / len(self.names)
        numbers = zip(self.p_value.tolist(), self.shift.tolist(), self.spread.tolist(), strict=True)
        return np.array(["calibrated" if p >= limit else _defect(shift, spread) for p, shift, spread in numbers])


@torch.no_grad()
def calibration(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_draws: int = 999,
    num_simulations: int | None = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    seed: int = 0,
    max_bytes: int = 2**26,
) -> Calibration:
    r"""Simulate data with known latents from the model, and rank these among the guide's draws.

    .. math:: (z, x) \sim p(z, x), \quad z_1, \dots, z_L \sim q(\cdot \mid x), \quad
        r_j = \#\{l : z_{lj} < z_j\}

    For :math:`q(z \mid x) = p(z \mid x)` each rank is uniform on 0, ..., L, and the interval between the order
    statistics number a and L + 1 - a contains the truth with probability :math:`1 - 2a / (L + 1)`. A guide that is too
    narrow has too many ranks at both ends, one that is too wide in the middle, a shifted one at one end. The reverse
    does not hold: ranks look at one coordinate at a time and average over x, so a guide that returns the prior for
    every x passes too (its KL divergence, :func:`latent_summary`, shows that), and so do wrong correlations.

    The result holds for data from the model. On real data a guide is worse where they are unlike these.

    Arguments:
        model: A Pyro program with one data plate that observes its argument in one site.
        guide: Its guide, with continuous local latents.
        x: Data ``[n, ...]``, any array type; only their number and shape are used.
        num_draws: The guide's draws L per simulation; with 999 the default levels are met exactly.
        num_simulations: The number of simulated datapoints, by default n.
        levels: The levels of the central intervals; each is moved to the nearest that L draws allow, and reported so.
        seed: The seed of all draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block may take.

    Errors:
        ConfigError: for levels outside of [0, 1].
        DataError: for empty or non-finite data.
        PairError: for discrete latents, point masses, and a model with draws that cannot replace ``x``.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> found = calibration(problem.model, problem.guide(inflate=0.5), torch.zeros(500, 2), num_draws=99)
        >>> found.verdict.tolist(), bool(found.coverage[2] < 0.7)
        (['too narrow'], True)
    """
    num_draws = require_count("num_draws", num_draws, least=2)
    levels = [require_number("levels", level, least=0, most=1) for level in levels]
    max_bytes = require_count("max_bytes", max_bytes)
    x = data_for(x, model, guide)
    num = len(x) if num_simulations is None else require_count("num_simulations", num_simulations, least=2)
    truth = simulate(model, x[torch.arange(num, device=x.device) % len(x)], seed=seed)
    pair = Pair.of(model, guide, truth.x)
    with pair.evaluation(seed, "calibration"):
        ranks, names = [], ()
        for span, rows, max_particles in pair.blocks(max_bytes, num_particles=num_draws, max_rows=_MAX_ROWS):
            density = Density(rows).require_guide()
            u = density.coordinates({name: value[None, span] for name, value in truth.z.items()})
            sizes = [min(max_particles, num_draws - start) for start in range(0, num_draws, max_particles)]
            ranks.append(torch.stack([(density.draw(size) < u).sum(0) for size in sizes]).sum(0))
            names = tuple(f"{name}[{j}]" for name, size in density.sizes.items() for j in range(size))
    return _summary(torch.cat(ranks), num_draws, names, levels)


def _summary(
    ranks: Int[Tensor, "simulations latent"], num_draws: int, names: tuple[str, ...], levels: Sequence[float]
) -> Calibration:
    num, num_ranks = len(ranks), num_draws + 1
    cuts = torch.tensor([round(num_ranks * (1 - level) / 2) for level in levels], device=ranks.device)
    inside = (ranks >= cuts[:, None, None]) & (ranks <= num_draws - cuts[:, None, None])
    count = inside.sum(1).double()
    smoothed = (count + 2) / (num + 4)  # or the standard error would be 0 where all are inside
    scores = torch.special.ndtri((ranks.double() + 0.5) / num_ranks)
    return Calibration(
        ranks=ranks,
        num_draws=num_draws,
        names=names,
        levels=1 - 2 * cuts.double() / num_ranks,
        coverage=count / num,
        coverage_stderr=(smoothed * (1 - smoothed) / num).sqrt(),
        p_value=_p_value(ranks, num_ranks),
        shift=scores.mean(0),
        spread=scores.std(0) if num > 1 else torch.full_like(scores[0], torch.nan),
    )


def _p_value(ranks: Int[Tensor, "simulations latent"], num_ranks: int) -> Float[Tensor, " latent"]:
    """Return the p-value of uniform ranks from 0 to ``num_ranks`` - 1."""
    num = len(ranks)
    bins = max(2, min(_MAX_BINS, num_ranks, num // _PER_BIN))
    bin_of_rank = torch.arange(num_ranks, device=ranks.device) * bins // num_ranks
    expected = torch.bincount(bin_of_rank, minlength=bins).double() * (num / num_ranks)
    counts = torch.nn.functional.one_hot(bin_of_rank[ranks], bins).sum(0).double()
    chi_square = ((counts - expected).square() / expected).sum(-1)
    histogram = torch.special.gammaincc(torch.full_like(chi_square, (bins - 1) / 2), chi_square / 2)
    centred = (ranks.double() - (num_ranks - 1) / 2) / num_ranks
    variance = (1 - num_ranks**-2) / 12
    fourth = (1 - num_ranks**-2) * (3 - 7 * num_ranks**-2) / 240  # the fourth moment of the discrete uniform
    mean = centred.mean(0) / math.sqrt(variance / num)
    spread = (centred.square().mean(0) - variance) / math.sqrt((fourth - variance**2) / num)
    tails = [torch.special.erfc(z.abs() / math.sqrt(2)) for z in (mean, spread)]
    return (3 * torch.stack([histogram, *tails]).amin(0)).clamp(max=1)


def _defect(shift: float, spread: float) -> str:
    if abs(shift) >= abs(spread - 1):
        return "shifted"
    return "too narrow" if spread > 1 else "too wide"
