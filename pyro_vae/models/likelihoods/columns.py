"""Tables with columns of different kinds."""

from __future__ import annotations

__all__ = ["Columns"]

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from ...errors import DataError
from ..tabular import Kind, num_categories
from .base import Likelihood


class Columns(Likelihood):
    r"""A likelihood for tables with normal, count and categorical columns, which are independent given z.

    .. math:: p(x \mid z) = \prod_{\mathrm{normal}} \mathcal N(x_d; \mu_d, \sigma_d^2)
        \prod_{\mathrm{count}} \mathrm{Poisson}(x_d; \lambda_d) \prod_{\mathrm{categorical}} \pi_{d, x_d}

    Normal columns have densities and the others probabilities, so nats can be compared between models of one table in
    the same units, but not between tables. Normal columns are best standardised. The decoder returns, column by column,
    a location and a log-scale, a log-rate, or logits. A category is stored as its number, 0, 1, ...; since the mean of
    such a number says little, look at draws instead.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number of categories)``.
        min_scale, max_scale: The bounds on the scales of normal columns.

    Errors:
        ConfigError: for an unknown kind.
        DataError: for counts that are not whole numbers from 0, and categories that are out of range.

    References:
        | Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2020)  https://arxiv.org/abs/1807.03653

    Example:
        >>> table = Columns(["normal", "count", ("categorical", 3)])
        >>> table.param_shape, table(torch.zeros(5, 6)).log_prob(torch.tensor([0.0, 1.0, 2.0]))[0]
        ((6,), tensor(-3.0176))
    """

    def __init__(self, kinds: Sequence[Kind], *, min_scale: float = 0.01, max_scale: float = 100.0) -> None:
        self.num_categories = num_categories(kinds)
        self.sizes = [2 if number == 0 else number for number in self.num_categories]
        super().__init__((len(self.sizes),), (sum(self.sizes),))
        self.log_bounds = (math.log(min_scale), math.log(max_scale))

    def forward(self, params: Tensor) -> Distribution:
        blocks: dict[int, list[Tensor]] = {}
        indices: dict[int, list[int]] = {}
        for index, (number, part) in enumerate(zip(self.num_categories, params.split(self.sizes, -1), strict=True)):
            blocks.setdefault(number, []).append(part)
            indices.setdefault(number, []).append(index)
        fns = [self._block(number, torch.stack(parts, -2)) for number, parts in blocks.items()]
        return _Columns(fns, [*indices.values()]).to_event(1)

    def check(self, x: Tensor) -> None:
        super().check(x)
        for index, number in enumerate(self.num_categories):
            column = x[..., index]
            beyond = column >= number if number > 1 else torch.zeros_like(column, dtype=torch.bool)
            wrong = (column < 0) | (column != column.floor()) | beyond
            if number and bool(wrong.any()):
                support = f"categories 0 to {number - 1}" if number > 1 else "counts 0, 1, 2, ..."
                raise DataError(f"column {index}: expected {support}, found {column[wrong][0]:g}")

    def hits(self, params: Tensor) -> Tensor:
        count = torch.zeros((), dtype=torch.long, device=params.device)
        for number, part in zip(self.num_categories, params.split(self.sizes, -1), strict=True):
            low, high = self.log_bounds if number == 0 else (-_MOST_LOG_RATE, _MOST_LOG_RATE)
            if number < 2:
                count = count + ((part[..., -1] < low) | (part[..., -1] > high)).sum()
        return count

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.cat([_bias(value, number) for value, number in zip(mean, self.num_categories, strict=True)])

    def _block(self, number: int, params: Tensor) -> Any:
        """Return the distribution of the columns of one kind, with parameters ``[*lead, columns, size]``."""
        if number == 0:
            return dist.Normal(params[..., 0], params[..., 1].clamp(*self.log_bounds).exp(), validate_args=False)
        if number == 1:
            rate = params[..., 0].clamp(-_MOST_LOG_RATE, _MOST_LOG_RATE).exp()
            return dist.Poisson(rate, validate_args=False)
        return dist.Categorical(logits=params, validate_args=False)


_MOST_LOG_RATE = 15.0


class _Columns(TorchDistribution):
    """The columns of several distributions, in the order of the table."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    def __init__(self, fns: Sequence[Any], indices: Sequence[Sequence[int]]) -> None:
        self.fns, self.indices = fns, indices
        order = [index for part in indices for index in part]
        self.order = torch.tensor(order).argsort()
        super().__init__(torch.Size([*fns[0].batch_shape[:-1], len(order)]), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Columns:
        lead = tuple(batch_shape)[:-1]
        fns = [fn.expand((*lead, len(part))) for fn, part in zip(self.fns, self.indices, strict=True)]
        return type(self)(fns, self.indices)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._joined([fn.log_prob(value[..., part]) for fn, part in zip(self.fns, self.indices, strict=True)])

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._joined([fn.sample(torch.Size(sample_shape)) for fn in self.fns])

    @property
    def mean(self) -> Tensor:
        return self._joined([_moments(fn)[0] for fn in self.fns])

    @property
    def variance(self) -> Tensor:
        return self._joined([_moments(fn)[1] for fn in self.fns])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        like = next((part for part in parts if part.is_floating_point()), parts[0])
        return torch.cat([part.to(like) for part in parts], -1)[..., self.order.to(like.device)]


def _bias(mean: Tensor, number: int) -> Tensor:
    """Return the parameters of a column with this mean; those of categories are always uniform."""
    if number == 0:
        return torch.stack([mean, torch.zeros_like(mean)])
    return mean.clamp(min=1e-3).log()[None] if number == 1 else mean.new_zeros(number)


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(fn, dist.Categorical):
        return fn.mean, fn.variance
    codes = torch.arange(fn.probs.shape[-1]).to(fn.probs)
    mean = (fn.probs * codes).sum(-1)
    return mean, (fn.probs * codes.square()).sum(-1) - mean.square()
