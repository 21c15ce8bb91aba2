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
from ..pairs.inputs import data_for
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.simulation import simulate

_SIGNIFICANT = 0.01  # of the whole guide: shared by its dimensions
_MOST_BINS, _PER_BIN = 20, 10

_MAX_ROWS = 1024


class Calibration(NamedTuple):
    r"""Ranks of true latent values among the guide's draws, per coordinate of the latent space.

    A constrained site (positive, a simplex) is looked at in unconstrained coordinates.
    """

    ranks: Int[Tensor, "simulations latent"]
    """How many of the draws are below the true value, from 0 to ``num_draws``; uniform for an exact posterior."""
    num_draws: int
    names: tuple[str, ...]
    """Of the coordinates, such as ``z[0]``."""
    levels: Float[Tensor, " levels"]
    """The shares of true values that the central intervals of so many draws hold if the guide is calibrated."""
    coverage: Float[Tensor, "levels latent"]
    """The shares that they held."""
    coverage_stderr: Float[Tensor, "levels latent"]
    """Binomial standard errors."""
    p_value: Float[Tensor, " latent"]
    """Of uniform ranks: Bonferroni's over their histogram (chi-square), their mean and their spread."""
    shift: Float[Tensor, " latent"]
    """How far the truth lies above the guide's mean on average, in the guide's standard deviations; 0 if calibrated."""
    spread: Float[Tensor, " latent"]
    """The truth's spread about it in the same unit: above 1 the guide is too narrow, below 1 too wide."""

    @property
    def verdict(self) -> np.ndarray:
        """``"calibrated"`` or the largest defect of each coordinate: ``"too narrow"``, ``"too wide"``, ``"shifted"``.

        Calibrated means that uniform ranks could not be rejected at 0.01 shared by all coordinates; with many
        simulations small defects are found too, so look at ``shift`` and ``spread``.
        """
        limit = _SIGNIFICANT / len(self.names)
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
    statistics number a and L + 1 - a holds the truth with probability :math:`1 - 2a / (L + 1)`. A guide that is too
    narrow has too many ranks at both ends, one that is too wide in the middle, a shifted one at one end. The reverse
    does not hold: ranks look at one coordinate at a time and average over x, so a guide that returns the prior for
    every x passes too (its KL divergence, :func:`latent_summary`, shows that), and so do wrong correlations.

    It speaks of data from the model. On real data a guide is worse where they are unlike these.

    Arguments:
        model: A Pyro program with one data plate that observes what it is called with in one site.
        guide: Its guide, with continuous local latents.
        x: Data ``[n, ...]``, any array type; only their number and shape are used.
        num_draws: The guide's draws L per simulation; with 999 the default levels are met exactly.
        num_simulations: How many datapoints are simulated, by default n.
        levels: Of the central intervals; each is moved to the nearest that L draws allow, which is reported.
        seed: Of all draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block may take.

    Errors:
        ConfigError: for levels outside of [0, 1].
        DataError: for empty or non-finite data.
        PairError: for discrete latents, point masses, and a model whose draw cannot take the place of ``x``.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788

    Example:
        >>> import pyro_vae as pv
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
        for span, rows, most in pair.blocks(max_bytes, num_particles=num_draws, max_rows=_MAX_ROWS):
            density = Density(rows).require_guide()
            u = density.coordinates({name: value[None, span] for name, value in truth.z.items()})
            sizes = [min(most, num_draws - done) for done in range(0, num_draws, most)]
            ranks.append(torch.stack([(density.draw(size) < u).sum(0) for size in sizes]).sum(0))
            names = tuple(f"{name}[{j}]" for name, size in density.sizes.items() for j in range(size))
    return _summary(torch.cat(ranks), num_draws, names, levels)


def _summary(
    ranks: Int[Tensor, "simulations latent"], num_draws: int, names: tuple[str, ...], levels: Sequence[float]
) -> Calibration:
    num, places = len(ranks), num_draws + 1
    cuts = torch.tensor([round(places * (1 - level) / 2) for level in levels], device=ranks.device)
    inside = (ranks >= cuts[:, None, None]) & (ranks <= num_draws - cuts[:, None, None])
    held = inside.sum(1).double()
    smoothed = (held + 2) / (num + 4)  # so that an interval that held all of them is not certain to
    scores = torch.special.ndtri((ranks.double() + 0.5) / places)
    return Calibration(
        ranks=ranks,
        num_draws=num_draws,
        names=names,
        levels=1 - 2 * cuts.double() / places,
        coverage=held / num,
        coverage_stderr=(smoothed * (1 - smoothed) / num).sqrt(),
        p_value=_p_value(ranks, places),
        shift=scores.mean(0),
        spread=scores.std(0) if num > 1 else torch.full_like(scores[0], torch.nan),
    )


def _p_value(ranks: Int[Tensor, "simulations latent"], places: int) -> Float[Tensor, " latent"]:
    """Return the p-value of uniform ranks from 0 to ``places`` - 1."""
    num = len(ranks)
    bins = max(2, min(_MOST_BINS, places, num // _PER_BIN))
    of_rank = torch.arange(places, device=ranks.device) * bins // places
    expected = torch.bincount(of_rank, minlength=bins).double() * (num / places)
    counts = torch.nn.functional.one_hot(of_rank[ranks], bins).sum(0).double()
    chi_square = ((counts - expected).square() / expected).sum(-1)
    histogram = torch.special.gammaincc(torch.full_like(chi_square, (bins - 1) / 2), chi_square / 2)
    away = (ranks.double() - (places - 1) / 2) / places
    variance = (1 - places**-2) / 12
    fourth = (1 - places**-2) * (3 - 7 * places**-2) / 240  # of the discrete uniform distribution
    mean = away.mean(0) / math.sqrt(variance / num)
    spread = (away.square().mean(0) - variance) / math.sqrt((fourth - variance**2) / num)
    tails = [torch.special.erfc(z.abs() / math.sqrt(2)) for z in (mean, spread)]
    return (3 * torch.stack([histogram, *tails]).amin(0)).clamp(max=1)


def _defect(shift: float, spread: float) -> str:
    if abs(shift) >= abs(spread - 1):
        return "shifted"
    return "too narrow" if spread > 1 else "too wide"
