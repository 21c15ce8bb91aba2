r"""Sums of p(x, z) over given latent values, which are decoded once for all data where that is possible."""

from __future__ import annotations

__all__ = ["DirectSums", "Nodes", "SharedSums", "densities_of", "sums_over"]

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import PairError
from ..ops.pairwise import pairwise_log_prob
from ..ops.streaming import LogMoments
from ..pairs.density import Density
from ..pairs.pair import Pair
from ..pairs.traces import is_masked, site_log_prob, total

_MAX_ROWS = 256
_COPIES = 16  # copies of the largest activation while a node is decoded, some in double precision


@runtime_checkable
class Nodes(Protocol):
    """Numbered latent values."""

    @property
    def num_nodes(self) -> int: ...

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes latent"]: ...


class SharedSums:
    r"""Sums for a model with the same :math:`p(z)` and :math:`p(x \mid z)` for every datapoint: a node is decoded once.

    The nodes take the place of rows, in batches that any network takes. Only the resulting distributions are kept, and
    each datapoint is scored under them.
    """

    def __init__(self, densities: Sequence[Density], *, max_bytes: int, on_progress: Callable[[int], Any]) -> None:
        self._density, self._max_bytes, self._on_progress = densities[0], max_bytes, on_progress
        observed = [density.observed() for density in densities]
        self._values = {name: torch.cat([values[name] for values in observed]) for name in observed[0]}
        self._num_rows, self.dtype = sum(map(len, densities)), densities[0].draw(1).dtype
        self._capacity = densities[0].pair.capacity(max_bytes, copies=_COPIES)

    def log_sums(self, nodes: Nodes, rows: Int[Tensor, " rows"], *, prior: bool = True) -> LogMoments:
        r"""Return :math:`\log \sum_n p(x_b, z_n)` over the nodes, and that of squares, for these rows.

        Without ``prior`` the sum is :math:`\log \sum_n p(x_b \mid z_n)`.
        """
        num = min(self._capacity, nodes.num_nodes)
        parts = rows.split(max(1, self._max_bytes // (8 * 8 * num)))
        sums: list[LogMoments | None] = [None] * len(parts)
        for start in range(0, nodes.num_nodes, num):
            log_prior, fns = self._decoded(nodes.nodes(start, start + num).to(self.dtype))
            for index, part in enumerate(parts):
                log_likelihood = self._log_likelihood(fns, part)
                block = LogMoments.of(log_likelihood + log_prior[:, None] if prior else log_likelihood)
                sums[index] = _merged(sums[index], block)
                self._on_progress(len(log_prior) * len(part))
        return _joined(sums)

    def terms(self, u: Float[Tensor, "nodes latent"]) -> tuple[Float[Tensor, " nodes"], Float[Tensor, "nodes rows"]]:
        """Return the logarithms of the prior and of the likelihood of all rows."""
        log_prior, fns = self._decoded(u)
        return log_prior, self._log_likelihood(fns, torch.arange(self._num_rows, device=u.device))

    def _decoded(self, u: Float[Tensor, "nodes latent"]) -> tuple[Float[Tensor, " nodes"], dict[str, Any]]:
        sites = self._density.sites_at(u)
        if masked := [name for name, site in sites.items() if is_masked(site)]:
            raise PairError(f"sites {masked} are masked: their densities may not be the same for all datapoints")
        prior = {name: site_log_prob(site, 1)[0] for name, site in sites.items() if not site["is_observed"]}
        jacobian = self._density.log_jacobian(u[:, None], self._density.values(u[:, None]))[:, 0]
        fns = {name: site["fn"] for name, site in sites.items() if site["is_observed"]}
        return (total(prior) + jacobian).double(), fns

    def _log_likelihood(self, fns: dict[str, Any], rows: Int[Tensor, " rows"]) -> Float[Tensor, "#nodes rows"]:
        terms = {
            name: pairwise_log_prob(fn, self._values[name][rows], max_bytes=self._max_bytes) for name, fn in fns.items()
        }
        return total(terms) if terms else torch.zeros(1, len(rows), dtype=torch.float64, device=rows.device)


class DirectSums:
    """Sums for any model: every node is decoded for every datapoint."""

    def __init__(self, densities: Sequence[Density], *, max_bytes: int, on_progress: Callable[[int], Any]) -> None:
        self._densities, self._on_progress, self.dtype = densities, on_progress, densities[0].draw(1).dtype
        self._capacity = densities[0].pair.capacity(max_bytes, copies=_COPIES)

    def log_sums(self, nodes: Nodes, rows: Int[Tensor, " rows"]) -> LogMoments:
        """Return the same sums as :meth:`SharedSums.log_sums`."""
        parts, first = [], 0
        for density in self._densities:
            here = rows[(rows >= first) & (rows < first + len(density))] - first
            first += len(density)
            if len(here):
                sums = reduce(_merged, self._blocks(density, nodes))
                parts.append(LogMoments(sums.log_sum[here], sums.log_sum_squares[here], sums.num_particles))
        return _joined(parts)

    def _blocks(self, density: Density, nodes: Nodes) -> Iterator[LogMoments]:
        num = max(1, self._capacity // len(density))
        for start in range(0, nodes.num_nodes, num):
            u = nodes.nodes(start, start + num).to(self.dtype)[:, None]
            log_p = density.terms(u.expand(-1, len(density), -1), q=False).log_p
            self._on_progress(log_p.numel())
            yield LogMoments.of(log_p)


def densities_of(pair: Pair, max_bytes: int) -> Iterator[Density]:
    """Yield the densities of consecutive blocks of rows that fit into memory."""
    return (Density(block) for _, block, _ in pair.blocks(max_bytes, max_rows=_MAX_ROWS))


def sums_over(
    densities: Sequence[Density], *, max_bytes: int, on_progress: Callable[[int], Any]
) -> SharedSums | DirectSums:
    """Return shared sums if they agree with the pair's densities at a few nodes for every datapoint, else direct ones.

    Arguments:
        densities: The densities of consecutive rows of the data.
        max_bytes: The approximate memory of a block, in bytes.
        on_progress: Called with the number of evaluations, one for each node and datapoint, since the last call.
    """
    first = densities[0]
    first.terms(first.draw(1), q=False)  # errors of the model are raised here, not caught below
    try:
        shared = SharedSums(densities, max_bytes=max_bytes, on_progress=on_progress)
        if _agree(shared, densities):
            return shared
    except Exception:  # networks for a fixed number of rows, masks for all data: nodes cannot take the place of rows
        pass
    return DirectSums(densities, max_bytes=max_bytes, on_progress=on_progress)


def _agree(shared: SharedSums, densities: Sequence[Density]) -> bool:
    first = densities[0]
    u = torch.cat([first.draw_prior(1)[:, 0], first.draw(2)[:, -1]])
    direct = [density.terms(u[:, None].expand(-1, len(density), -1), q=False) for density in densities]
    log_prior, log_likelihood = shared.terms(u)
    return _close(log_prior[:, None], torch.cat([part.log_prior for part in direct], 1)) and _close(
        log_likelihood, torch.cat([part.log_likelihood for part in direct], 1)
    )


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Return whether the two are equal but for rounding, which grows in networks and in sums over many dimensions."""
    rounding = torch.finfo(expected.dtype).eps ** 0.75  # 6e-6 in single and 2e-12 in double precision
    actual = actual.expand_as(expected)
    return torch.allclose(actual, expected.double(), rounding, max(1e-7, 100 * rounding), equal_nan=True)


def _merged(sums: LogMoments | None, block: LogMoments) -> LogMoments:
    return block if sums is None else sums.merge(block)


def _joined(parts: Sequence[LogMoments | None]) -> LogMoments:
    log_sums, squares, counts = zip(*(part for part in parts if part is not None), strict=True)
    return LogMoments(torch.cat(log_sums), torch.cat(squares), counts[0])
