"""What kinds of columns a table has, and an encoder that reads them."""

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
    """For each column its number of categories, 1 for a count and 0 for a normal one.

    Errors:
        ConfigError: for a kind that there is not, and for no columns.

    Example:
        >>> num_categories(["normal", "count", ("categorical", 3)])
        [0, 1, 3]
    """
    if not len(kinds):
        raise ConfigError("kinds: found none, expected one for each column")
    return [_one(place, kind) for place, kind in enumerate(kinds)]


def _one(place: int, kind: Kind) -> int:
    if kind in ("normal", "count"):
        return int(kind == "count")
    match kind:
        case ["categorical", Integral() as number] if int(number) >= 2:
            return int(number)
    raise ConfigError(
        f"column {place}: found {kind!r}, expected 'normal', 'count' or ('categorical', number of categories)"
    )


class ColumnsEncoder(TakesMask):
    r"""An encoder of a table's rows: normal columns as they are, log(1 + count), categories one by one, and the mask.

    The network gets all of that, zero where it is missing, and for each column whether it is observed.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number)``.
        net: A function of that number of features that makes the module, ``[n, features] ->
            [n, *posterior.param_shape]``.

    Errors:
        ConfigError: for a kind that there is not.

    Example:
        >>> import pyro_vae as pv
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
        seen = torch.ones_like(x) if mask is None else mask.to(x)
        columns = [_feature(x[:, place], number) for place, number in enumerate(self.num_categories)]
        features = [column * seen[:, place, None] for place, column in enumerate(columns)]
        return self.net(torch.cat([*features, seen], 1))


def _feature(column: Tensor, number: int) -> Tensor:
    if number > 1:
        return one_hot(column.long(), number).to(column)
    return (torch.log1p(column) if number else column)[:, None]
