r"""The waist: any Pyro pair on one side, log-weights per datapoint on the other."""

from __future__ import annotations

__all__ = ["Particles", "draw_particles", "particle_blocks"]

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from .handlers import unregistered
from .pair import Pair
from .running import Program, redraw
from .sites import draw_sites, weigh
from .traces import guide_sites, require_densities, require_rows, total

_MAX_ROWS = 256


class Particles(NamedTuple):
    r"""Draws from the guide and their log-weights, ``log_w = log_p - log_q``, in nats per datapoint, unscaled."""

    log_w: Float[Tensor, "particles batch"]
    log_p: Float[Tensor, "particles batch"]
    log_q: Float[Tensor, "particles batch"]
    z: dict[str, Tensor]


def draw_particles(
    model: Program, guide: Program, x: Any, *args: Any, num_particles: int = 1, **kwargs: Any
) -> Particles:
    r"""Draw :math:`z_{kb} \sim q(\cdot \mid x_b)` and weigh it, for any Pyro pair.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b)

    The encoder runs once per datapoint, whatever the number of particles is. A model whose networks cannot take a
    leading particle dimension (a convolution after ``view(z.shape[0], ...)``) is run particle by particle instead,
    with the same numbers. Plate scales and ``poutine.scale`` do not enter.

    Arguments:
        model, guide: Pyro functions with one data plate at dim -1 and all latent sites inside it.
        x, args, kwargs: The arguments of both.
        num_particles: The number of particles K.

    Errors:
        PairError: for sites outside the data plate, further plates, or latent sites that only one of the two has.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0]], scale=1.0)
        >>> draw_particles(problem.model, problem.guide(), torch.zeros(4, 1), num_particles=3).log_w.shape
        torch.Size([3, 4])
    """
    pair = x if isinstance(x, Pair) else Pair(model, guide, (x, *args), kwargs)
    with unregistered(agreeing=True):
        sites = draw_sites(pair, num_particles=num_particles)
    return Particles(sites.log_w, sites.log_p, total(sites.log_q), sites.z)


def particle_blocks(
    pair: Pair, *, num_particles: int, max_bytes: int
) -> Iterator[tuple[slice, Float[Tensor, "particles batch"]]]:
    """Yield log-weights of ``num_particles`` draws per datapoint, in blocks ``(rows, log_w)`` that fit ``max_bytes``.

    A guide of one latent site runs once per datapoint: every block draws from the distribution that it declared. A
    guide of several sites has to run again for each block, which therefore has as many particles as fit. Rows that
    depend on each other, such as those of a guide with parameters for each, come all together.

    Errors:
        PairError: for a guide that draws from a point mass, whose weights would be of no use.
    """
    one_site = pair.footprint.num_sites == 1
    together = 1 if one_site else num_particles
    for span, rows, max_particles in pair.blocks(max_bytes, num_particles=together, max_rows=_MAX_ROWS):
        guide_trace = rows.run_guide()
        latent = guide_sites(guide_trace)
        require_rows(latent, len(rows))
        require_densities(latent)
        vectorized = rows.vectorized(guide_trace)
        for done in range(0, num_particles, max_particles):
            size = min(max_particles, num_particles - done)
            if one_site:
                sites = weigh(rows, [redraw(guide_trace, size)], size, vectorized)
            else:
                sites = draw_sites(rows, num_particles=size, vectorized=vectorized)
            yield span, sites.log_w
