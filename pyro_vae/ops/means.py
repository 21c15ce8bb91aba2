"""A mean over datapoints, with its two errors."""

from __future__ import annotations

__all__ = ["Mean"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
