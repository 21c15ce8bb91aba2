r"""Sums of p(x, z) over the nodes of a lattice of latent values, which are decoded once for all data if they can be."""

from __future__ import annotations

__all__ = ["Direct", "Nodes", "Shared", "at_nodes", "densities_of"]

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
from ..pairs.memory import blocks_of, largest_output
from ..pairs.sites import total
from ..pairs.traces import Program, site_log_prob

Count = Callable[[int], Any]

_MOST_ROWS = 256
_COPIES = 16  # of the largest activation while a node is decoded, some of them in double precision


@runtime_checkable
class Nodes(Protocol):
    """Numbered latent values."""

    @property
    def num_nodes(self) -> int: ...

    def nodes(self, start: int, stop: int) -> Float[Tensor, "nodes latent"]: ...


class Shared:
    r"""The model where every datapoint has the same :math:`p(z)` and :math:`p(x \mid z)`: a node is decoded once.

    The latent values of the nodes take the place of rows, which any network takes; only the distributions that come
    out are kept, and each datapoint is scored under them.
    """

    def __init__(self, densities: Sequence[Density], *, max_bytes: int, count: Count) -> None:
        self._density, self._max_bytes, self._count = densities[0], max_bytes, count
        observed = [density.observed() for density in densities]
        self._values = {name: torch.cat([values[name] for values in observed]) for name in observed[0]}
        self._num, self.dtype = sum(len(density.x) for density in densities), densities[0].draw(1).dtype
        self._fit = max(1, max_bytes // (_COPIES * _bytes(densities[0])))

    def log_sums(self, lattice: Nodes, rows: Int[Tensor, " rows"], *, prior: bool = True) -> LogMoments:
        r""":math:`\log \sum_n p(x_b, z_n)` over the lattice, and that of the squares, for these rows.

        Without ``prior`` it is :math:`\log \sum_n p(x_b \mid z_n)`.
        """
        num = min(self._fit, lattice.num_nodes)
        parts = rows.split(max(1, self._max_bytes // (8 * 8 * num)))
        sums: list[LogMoments | None] = [None] * len(parts)
        for start in range(0, lattice.num_nodes, num):
            log_prior, fns = self._decoded(lattice.nodes(start, start + num).to(self.dtype))
            for place, part in enumerate(parts):
                log_likelihood = self._log_likelihood(fns, part)
                block = LogMoments.of(log_likelihood + log_prior[:, None] if prior else log_likelihood)
                sums[place] = _merged(sums[place], block)
                self._count(len(log_prior) * len(part))
        return _joined(sums)

    def terms(self, u: Float[Tensor, "nodes latent"]) -> tuple[Float[Tensor, " nodes"], Float[Tensor, "nodes rows"]]:
        """The prior's and the likelihood's logarithm, of all rows."""
        log_prior, fns = self._decoded(u)
        return log_prior, self._log_likelihood(fns, torch.arange(self._num, device=u.device))

    def _decoded(self, u: Float[Tensor, "nodes latent"]) -> tuple[Float[Tensor, " nodes"], dict[str, Any]]:
        sites = self._density.sites_at(u)
        if masked := [name for name, site in sites.items() if site["mask"] is not None and site["mask"] is not True]:
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


class Direct:
    """The model as it is: every node is decoded for every datapoint."""

    def __init__(self, densities: Sequence[Density], *, max_bytes: int, count: Count) -> None:
        self._densities, self._count, self.dtype = densities, count, densities[0].draw(1).dtype
        self._fit = max(1, max_bytes // (_COPIES * _bytes(densities[0])))

    def log_sums(self, lattice: Nodes, rows: Int[Tensor, " rows"]) -> LogMoments:
        """As of :class:`Shared`."""
        found, first = [], 0
        for density in self._densities:
            size = len(density.x)
            here = rows[(rows >= first) & (rows < first + size)] - first
            first += size
            if len(here):
                sums = reduce(_merged, self._blocks(density, lattice))
                found.append(LogMoments(sums.log_sum[here], sums.log_sum_squares[here], sums.num_particles))
        return _joined(found)

    def _blocks(self, density: Density, lattice: Nodes) -> Any:
        num = max(1, self._fit // len(density.x))
        for start in range(0, lattice.num_nodes, num):
            u = lattice.nodes(start, start + num).to(self.dtype)[:, None]
            log_p = density.terms(u.expand(-1, len(density.x), -1), q=False).log_p
            self._count(log_p.numel())
            yield LogMoments.of(log_p)


def densities_of(model: Program, guide: Program, x: Tensor, max_bytes: int) -> Iterator[Density]:
    """The pair on consecutive rows of the data, of which so many fit memory; made one after the other."""
    rows = min(_MOST_ROWS, max(1, max_bytes // (4 * 8 * x[0].nbytes)))
    return (Density(model, guide, block) for block in blocks_of(model, guide, x, rows))


def at_nodes(densities: Sequence[Density], *, max_bytes: int, count: Count) -> Shared | Direct:
    """Whichever gives the densities of the pair: a few nodes are scored for every datapoint in both ways.

    Arguments:
        densities: The pair on consecutive rows of the data.
        max_bytes: About how much memory a block may take.
        count: Is told how many pairs of a node and a datapoint were scored.
    """
    try:
        shared = Shared(densities, max_bytes=max_bytes, count=count)
        if _right(shared, densities):
            return shared
    except Exception:  # networks that need rows of another number, masks for all data: what the pair was not made for
        pass
    return Direct(densities, max_bytes=max_bytes, count=count)


def _right(shared: Shared, densities: Sequence[Density]) -> bool:
    first = densities[0]
    u = torch.cat([first.draw_prior(1)[:, 0], first.draw(2)[:, -1]])
    direct = [density.terms(u[:, None].expand(-1, len(density.x), -1), q=False) for density in densities]
    log_prior, log_likelihood = shared.terms(u)
    return _close(log_prior[:, None], torch.cat([part.log_prior for part in direct], 1)) and _close(
        log_likelihood, torch.cat([part.log_likelihood for part in direct], 1)
    )


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which networks and sums over many dimensions make more of than one operation would."""
    rounding = torch.finfo(expected.dtype).eps ** 0.75  # 6e-6 in single and 2e-12 in double precision
    found = found.expand_as(expected)
    return torch.allclose(found, expected.double(), rounding, max(1e-7, 100 * rounding), equal_nan=True)


def _bytes(density: Density) -> int:
    """The largest tensor that a node needs."""
    with largest_output(len(density.x)) as largest:
        density.terms(density.draw(1), q=False)
    return max(largest() // len(density.x), density.x[0].nbytes, 8)


def _merged(sums: LogMoments | None, block: LogMoments) -> LogMoments:
    return block if sums is None else sums.merge(block)


def _joined(parts: Sequence[LogMoments | None]) -> LogMoments:
    log_sums, squares, counts = zip(*(part for part in parts if part is not None), strict=True)
    return LogMoments(torch.cat(log_sums), torch.cat(squares), counts[0])
