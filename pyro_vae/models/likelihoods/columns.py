"""Tables whose columns are of different kinds."""

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
    r"""Columns that are independent given z, each of its kind; a block likelihood for mixed tables.

    .. math:: p(x \mid z) = \prod_{\mathrm{normal}} \mathcal N(x_d; \mu_d, \sigma_d^2)
        \prod_{\mathrm{count}} \mathrm{Poisson}(x_d; \lambda_d) \prod_{\mathrm{categorical}} \pi_{d, x_d}

    Densities of normal columns and probabilities of the others: nats can be compared between models of one table in one
    set of units, and not between tables. Normal columns are best standardised. The decoder returns, column by column, a
    location and a log-scale, a log-rate, or logits. A category is stored as its number, 0, 1, ...; its mean is that of
    the number, so look at draws instead.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number of categories)``.
        min_scale, max_scale: The bounds on the scales of normal columns.

    Errors:
        ConfigError: for a kind that there is not.
        DataError: for counts that are negative or no whole numbers, and categories that there are not.

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
        places: dict[int, list[int]] = {}
        for place, (number, part) in enumerate(zip(self.num_categories, params.split(self.sizes, -1), strict=True)):
            blocks.setdefault(number, []).append(part)
            places.setdefault(number, []).append(place)
        fns = [self._block(number, torch.stack(parts, -2)) for number, parts in blocks.items()]
        return _Columns(fns, [*places.values()]).to_event(1)

    def check(self, x: Tensor) -> None:
        super().check(x)
        for place, number in enumerate(self.num_categories):
            column = x[..., place]
            beyond = column >= number if number > 1 else torch.zeros_like(column, dtype=torch.bool)
            wrong = (column < 0) | (column != column.floor()) | beyond
            if number and bool(wrong.any()):
                wanted = f"categories 0 to {number - 1}" if number > 1 else "counts 0, 1, 2, ..."
                raise DataError(f"column {place}: expected {wanted}, found {column[wrong][0]:g}")

    def hits(self, params: Tensor) -> Tensor:
        held = torch.zeros((), dtype=torch.long, device=params.device)
        for number, part in zip(self.num_categories, params.split(self.sizes, -1), strict=True):
            low, high = self.log_bounds if number == 0 else (-_MOST_LOG_RATE, _MOST_LOG_RATE)
            if number < 2:
                held = held + ((part[..., -1] < low) | (part[..., -1] > high)).sum()
        return held

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.cat([_start(value, number) for value, number in zip(mean, self.num_categories, strict=True)])

    def _block(self, number: int, params: Tensor) -> Any:
        """The columns of one kind, of the parameters ``[*lead, columns, size]``."""
        if number == 0:
            return dist.Normal(params[..., 0], params[..., 1].clamp(*self.log_bounds).exp(), validate_args=False)
        if number == 1:
            rate = params[..., 0].clamp(-_MOST_LOG_RATE, _MOST_LOG_RATE).exp()
            return dist.Poisson(rate, validate_args=False)
        return dist.Categorical(logits=params, validate_args=False)


_MOST_LOG_RATE = 15.0


class _Columns(TorchDistribution):
    """Columns of several distributions, put back into their places."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    def __init__(self, fns: Sequence[Any], places: Sequence[Sequence[int]]) -> None:
        self.fns, self.places = fns, places
        order = [place for part in places for place in part]
        self.back = torch.tensor(order).argsort()
        super().__init__(torch.Size([*fns[0].batch_shape[:-1], len(order)]), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Columns:
        lead = tuple(batch_shape)[:-1]
        fns = [fn.expand((*lead, len(part))) for fn, part in zip(self.fns, self.places, strict=True)]
        return type(self)(fns, self.places)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._joined([fn.log_prob(value[..., part]) for fn, part in zip(self.fns, self.places, strict=True)])

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
        return torch.cat([part.to(like) for part in parts], -1)[..., self.back.to(like.device)]


def _start(mean: Tensor, number: int) -> Tensor:
    """The parameters of a column of this mean; of categories all the same, whose mean number says little."""
    if number == 0:
        return torch.stack([mean, torch.zeros_like(mean)])
    return mean.clamp(min=1e-3).log()[None] if number == 1 else mean.new_zeros(number)


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(fn, dist.Categorical):
        return fn.mean, fn.variance
    codes = torch.arange(fn.probs.shape[-1]).to(fn.probs)
    mean = (fn.probs * codes).sum(-1)
    return mean, (fn.probs * codes.square()).sum(-1) - mean.square()
