r"""What diagnostics share: a mean with its two errors, and blocks of rows that fit."""

from __future__ import annotations

__all__ = ["Mean", "row_blocks"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..density import Density
from ..errors import require_count
from ..modules import largest_output
from ..probing import rows_apart
from ..randomness import forked
from ..traces import Program

_MOST_ROWS = 1024
_COPIES = 8  # of the largest activation: what is kept for a gradient, and temporaries


class Mean(NamedTuple):
    """A mean over datapoints, float64, with two standard errors that are never mixed."""

    value: Float[Tensor, "*part"]
    monte_carlo_error: Float[Tensor, "*part"]
    """From the draws, for these datapoints."""
    test_set_error: Float[Tensor, "*part"]
    """From which datapoints there are; nan for a single one."""

    @classmethod
    def of(cls, values: Float[Tensor, "batch *part"], stderr: Float[Tensor, "batch *part"]) -> Mean:
        """From one value per datapoint and the Monte-Carlo standard error of each.

        Example:
            >>> Mean.of(torch.tensor([1.0, 3.0]), torch.tensor([0.3, 0.4])).value
            tensor(2., dtype=torch.float64)
        """
        values, stderr = values.double(), stderr.double()
        spread = values.std(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
        return cls(values.mean(0), stderr.square().sum(0).sqrt() / len(values), spread / math.sqrt(len(values)))


def row_blocks(
    model: Program, guide: Program, x: Tensor, *, num_particles: int, max_bytes: int, square: bool = False
) -> tuple[list[slice], int]:
    """Runs of rows of ``x`` whose ``num_particles`` fit ``max_bytes``, and how many particles of one run fit.

    ``square`` also counts matrices of the latent dimension, one per row. A pair that does not take its datapoints one
    by one gets all of them.
    """
    max_bytes = require_count("max_bytes", max_bytes)
    apart = rows_apart(model, guide, x)
    each, dim = _bytes(model, guide, x[:1] if apart else x)
    fits = max(1, max_bytes // each)
    if not apart:
        return [slice(0, len(x))], fits
    rows = min(_MOST_ROWS, len(x), max(1, fits // num_particles))
    if square:
        rows = min(rows, max(1, max_bytes // (8 * _COPIES * dim * dim)))
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)], max(1, fits // rows)


@torch.no_grad()
def _bytes(model: Program, guide: Program, x: Tensor) -> tuple[int, int]:
    """What one particle of each row takes, and the latent dimension."""
    with forked(), largest_output(len(x)) as largest:
        density = Density(model, guide, x)
        u = density.draw(1)
        density.terms(u)
    return _COPIES * max(largest(), x.nbytes, u.nbytes), density.dim
