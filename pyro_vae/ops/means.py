"""The mean over datapoints, with its two standard errors."""

from __future__ import annotations

__all__ = ["Mean"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Mean(NamedTuple):
    """The mean over datapoints, in float64, with two standard errors that are never mixed."""

    value: Float[Tensor, "*part"]
    monte_carlo_error: Float[Tensor, "*part"]
    """The standard error due to the draws, for these datapoints."""
    test_set_error: Float[Tensor, "*part"]
    """The standard error due to the choice of datapoints; nan for a single one."""

    @classmethod
    def of(cls, values: Float[Tensor, "batch *part"], stderr: Float[Tensor, "batch *part"]) -> Mean:
        """Return the mean of one value per datapoint, given the Monte-Carlo standard error of each.

        Example:
            >>> Mean.of(torch.tensor([1.0, 3.0]), torch.tensor([0.3, 0.4])).value
            tensor(2., dtype=torch.float64)
        """
        values, stderr = values.double(), stderr.double()
        spread = values.std(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
        return cls(values.mean(0), stderr.square().sum(0).sqrt() / len(values), spread / math.sqrt(len(values)))
