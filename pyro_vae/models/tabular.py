"""The kinds of columns in a table, and an encoder of its rows."""

from __future__ import annotations

__all__ = ["ColumnsEncoder", "Kind", "num_categories"]

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..errors import ConfigError
from .nn import TakesMask

Kind = str | Sequence[Any]
"""``"normal"``, ``"count"``, or ``("categorical", number of categories)``."""


def num_categories(kinds: Sequence[Kind]) -> list[int]:
    """Return the number of categories of each column: 1 for a count and 0 for a normal column.

    Errors:
        ConfigError: for an unknown kind, and for no columns.

    Example:
        >>> num_categories(["normal", "count", ("categorical", 3)])
        [0, 1, 3]
    """
    if not len(kinds):
        raise ConfigError("kinds: found none, expected one for each column")
    return [_num_categories_of(index, kind) for index, kind in enumerate(kinds)]


def _num_categories_of(index: int, kind: Kind) -> int:
    if kind in ("normal", "count"):
        return int(kind == "count")
    match kind:
        case ["categorical", Integral() as number] if int(number) >= 2:
            return int(number)
    raise ConfigError(
        f"column {index}: found {kind!r}, expected 'normal', 'count' or ('categorical', number of categories)"
    )


class ColumnsEncoder(TakesMask):
    r"""An encoder of the rows of a table, which presents its columns to a network as features.

    The features are normal columns as they are, log(1 + count), and categories one-hot, all zero where they are
    missing; and for each column whether it is observed.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number)``.
        net: A function of the number of features that returns the network, ``[n, features] ->
            [n, *posterior.param_shape]``.

    Errors:
        ConfigError: for an unknown kind.

    Example:
        >>> kinds = ["normal", "count", ("categorical", 3)]
        >>> encoder = ColumnsEncoder(kinds, lambda size: pv.nn.MLP(size, (16,), (2, 2)))
        >>> encoder(torch.tensor([[0.5, 4.0, 2.0]])).shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, kinds: Sequence[Kind], net: Any) -> None:
        super().__init__()
        self.num_categories = num_categories(kinds)
        self.net: nn.Module = net(sum(max(number, 1) for number in self.num_categories) + len(kinds))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        observed = torch.ones_like(x) if mask is None else mask.to(x)
        columns = zip(self.num_categories, x.unbind(1), observed.unbind(1), strict=True)
        features = [_features(column, number) * known[:, None] for number, column, known in columns]
        return self.net(torch.cat([*features, observed], 1))


def _features(column: Tensor, number: int) -> Tensor:
    if number > 1:
        return one_hot(column.long(), number).to(column)
    return (torch.log1p(column) if number else column)[:, None]
