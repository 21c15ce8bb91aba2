r"""The waist: any Pyro pair on one side, log-weights per datapoint on the other.

Nothing above this file looks at a Pyro trace, and nothing below it knows what a bound is.
"""

from __future__ import annotations

__all__ = ["Particles", "draw_particles", "particle_chunks"]

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from .handlers import unregistered
from .memory import room
from .sites import Vectorized, draw_sites, redraw, total, weigh
from .traces import Program, guide_sites, require_densities, require_rows, trace
from .vectorization import vectorizes

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
        x, args, kwargs: What both are called with.
        num_particles: The number of particles K.

    Errors:
        PairError: for sites outside the data plate, further plates, or latent sites that only one of the two has.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    Example:
        >>> import pyro_vae as pv
        >>> problem = pv.problems.linear_gaussian(W=[[1.0]], scale=1.0)
        >>> draw_particles(problem.model, problem.guide(), torch.zeros(4, 1), num_particles=3).log_w.shape
        torch.Size([3, 4])
    """
    with unregistered(agreeing=True):
        together = vectorizes(model, guide, (x, *args), kwargs)
        sites = draw_sites(model, guide, (x, *args), kwargs, num_particles=num_particles, vectorized=together)
    return Particles(sites.log_w, sites.log_p, total(sites.log_q), sites.z)


def particle_chunks(
    model: Program, guide: Program, x: Tensor, *, num_particles: int, max_bytes: int
) -> Iterator[tuple[slice, Float[Tensor, "particles batch"]]]:
    """Log-weights of ``num_particles`` draws per datapoint, in blocks ``(rows of x, log_w)`` that fit ``max_bytes``.

    A guide of one latent site runs once per datapoint: every block draws from the distribution that it declared. A
    guide of several sites has to run again for each block, which therefore gets as many particles as will fit. A pair
    that does not take its datapoints one by one, such as one with a parameter for each, gets all of them every time.

    Errors:
        PairError: for a guide that draws from a point mass, whose weights would be of no use.
    """
    fits, apart = room(model, guide, x, max_bytes)
    rows = min(_MAX_ROWS, fits) if apart else len(x)
    known: dict[int, Vectorized] = {}
    start = 0
    while start < len(x):
        span = slice(start, min(start + rows, len(x)))
        batch = x[span]
        guide_trace = trace(guide, (batch,), {})
        latent = guide_sites(guide_trace)
        require_rows(latent, len(batch))
        require_densities(latent)
        if apart and len(latent) > 1 and rows > (fewer := max(1, fits // num_particles)):
            rows = fewer  # all particles at once for fewer datapoints, so that the encoder is not run again and again
            continue
        if len(batch) not in known:
            known[len(batch)] = vectorizes(model, guide, (batch,), {}, drawn=guide_trace)
        vectorized = known[len(batch)]
        most = max(1, fits // len(batch))
        for done in range(0, num_particles, most):
            block = min(most, num_particles - done)
            if len(latent) == 1:
                sites = weigh(model, [redraw(guide_trace, block)], (batch,), {}, block, vectorized)
            else:
                sites = draw_sites(model, guide, (batch,), {}, num_particles=block, vectorized=vectorized)
            yield span, sites.log_w
        start = span.stop
