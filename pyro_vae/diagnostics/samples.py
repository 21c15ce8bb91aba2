r"""Comparisons of two samples of data: nearest neighbours, and the distance of their distributions."""

from __future__ import annotations

__all__ = ["Neighbours", "energy_distance", "nearest_neighbours"]

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..data.arrays import as_batch
from ..errors import DataError, ShapeError, require_count


class Neighbours(NamedTuple):
    """The nearest neighbour of each datapoint among the others."""

    place: Int[Tensor, " batch"]
    """The index of the neighbour among the others."""
    distance: Float[Tensor, " batch"]
    """The Euclidean distance, float64; for binary images its square is the number of pixels that differ."""


def nearest_neighbours(x: Any, others: Any, *, max_bytes: int = 2**26) -> Neighbours:
    r"""Return the nearest of ``others`` for every datapoint, in Euclidean distance over all entries.

    .. math:: i_n = \operatorname{argmin}_m \|x_n - y_m\|, \qquad d_n = \|x_n - y_{i_n}\|

    The samples of a generative model that copies its training data are much nearer to them than held-out data are.
    With the samples as ``others`` and held-out data as ``x``, the datapoints that the samples leave out are far.

    Arguments:
        x: Data ``[n, ...]``, any array type.
        others: Data ``[m, ...]`` of the same shape each; ties are broken arbitrarily.
        max_bytes: About how much memory a block of distances may take.

    Errors:
        DataError: for empty or non-finite data.
        ShapeError: for datapoints of different shapes.

    Example:
        >>> found = nearest_neighbours([[0.0, 0.0], [5.0, 1.0]], [[0.0, 1.0], [5.0, 5.0]])
        >>> found.place, found.distance
        (tensor([0, 1]), tensor([1., 4.], dtype=torch.float64))
    """
    x, others = _as_rows(x, others, other="others")
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    squares = torch.full_like(index, torch.inf, dtype=torch.float64)
    for start, block in _squares(x, others, max_bytes):
        least = block.min(1)
        nearer = least.values < squares
        index, squares = torch.where(nearer, start + least.indices, index), torch.where(nearer, least.values, squares)
    # The distance is computed again, since the expanded square is not exactly zero for two equal datapoints.
    return Neighbours(index, (x.double() - others[index].double()).norm(dim=1))


def energy_distance(x: Any, y: Any, *, max_bytes: int = 2**26) -> Float[Tensor, ""]:
    r"""Return the energy distance of two samples, estimated without bias; it is zero only for equal distributions.

    .. math:: D^2(p, q) = 2\, \mathbb E \|x - y\| - \mathbb E \|x - x'\| - \mathbb E \|y - y'\|,
        \qquad x, x' \sim p, \; y, y' \sim q

    The distance is in the units of the data, float64. An estimate may be negative; compare it with the estimate for two
    samples of one distribution, such as training and held-out data, to judge whether it is small.

    Arguments:
        x, y: Data ``[n, ...]`` and ``[m, ...]``, any array type; n and m of at least 2.
        max_bytes: About how much memory a block of distances may take.

    Errors:
        DataError: for empty or non-finite data, or a single datapoint.
        ShapeError: for datapoints of different shapes.

    References:
        | Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013)
        | https://doi.org/10.1016/j.jspi.2013.03.018

    Example:
        >>> energy_distance([[0.0], [0.0]], [[3.0], [3.0]])
        tensor(6., dtype=torch.float64)
    """
    x, y = _as_rows(x, y)
    for name, sample in (("x", x), ("y", y)):
        if len(sample) < 2:
            raise DataError(
                f"{name}: found one datapoint, expected at least 2 for the distances within the sample: pass more"
            )

    def total(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([block.sqrt().sum() for _, block in _squares(one, other, max_bytes)]).sum()

    within = [total(sample, sample) / (len(sample) * (len(sample) - 1)) for sample in (x, y)]
    return 2 * total(x, y) / (len(x) * len(y)) - within[0] - within[1]


def _as_rows(x: Any, y: Any, *, other: str = "y") -> tuple[Shaped[Tensor, "n data"], Shaped[Tensor, "m data"]]:
    """Return both as rows of numbers."""
    x, y = as_batch(x), as_batch(y, name=other)
    if x.shape[1:] != y.shape[1:]:
        raise ShapeError(f"expected datapoints of one shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    return x.reshape(len(x), -1), y.to(x.device).reshape(len(y), -1)


def _squares(
    x: Shaped[Tensor, "n data"], y: Shaped[Tensor, "m data"], max_bytes: int
) -> Iterator[tuple[int, Float[Tensor, "n columns"]]]:
    """Yield squared distances in float64 from all of x to some of y, with the index at which these start."""
    centre = x.double().mean(0)  # products of large numbers would leave little of their difference
    x = x.double() - centre
    size = max(1, require_count("max_bytes", max_bytes) // (8 * max(x.shape)))
    for start in range(0, len(y), size):
        part = y[start : start + size].double() - centre
        yield start, (x.square().sum(1, keepdim=True) + part.square().sum(1) - 2 * x @ part.T).clamp(min=0)
