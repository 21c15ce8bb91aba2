r"""The waist: any Pyro pair on one side, log-weights per datapoint on the other.

Nothing above this file looks at a Pyro trace, and nothing below it knows what a bound is.
"""

from __future__ import annotations

__all__ = ["Particles", "draw_particles", "particle_chunks"]

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .modules import modules_behind, unregistered
from .sites import Vectorized, draw_sites, redraw, total, vectorizes, weigh
from .traces import Program, guide_sites, trace

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

    Example:
        >>> from pyro_vae.problems import linear_gaussian
        >>> problem = linear_gaussian(W=[[1.0]], scale=1.0)
        >>> draw_particles(problem.model, problem.guide(), torch.zeros(4, 1), num_particles=3).log_w.shape
        torch.Size([3, 4])
    """
    with unregistered():
        together = vectorizes(model, guide, (x, *args), kwargs)
        sites = draw_sites(model, guide, (x, *args), kwargs, num_particles=num_particles, vectorized=together)
    return Particles(sites.log_w, sites.log_p, total(sites.log_q), sites.z)


def particle_chunks(
    model: Program, guide: Program, x: Tensor, *, num_particles: int, max_bytes: int
) -> Iterator[tuple[slice, Float[Tensor, "particles batch"]]]:
    """Log-weights of ``num_particles`` draws per datapoint, in blocks ``(rows of x, log_w)`` that fit ``max_bytes``.

    A guide of one latent site runs once per datapoint: every block draws from the distribution that it declared. A
    guide of several sites has to run again for each block, which therefore gets as many particles as will fit.
    """
    fits = max(1, max_bytes // _row_bytes(x, model, guide))
    rows = min(_MAX_ROWS, fits)
    known: dict[int, Vectorized] = {}
    start = 0
    while start < len(x):
        span = slice(start, min(start + rows, len(x)))
        batch = x[span]
        guide_trace = trace(guide, (batch,), {})
        latent = guide_sites(guide_trace)
        if (drawn := next(iter(latent.values()))["value"].shape[0]) != len(batch):
            raise ShapeError(
                f"the guide drew {drawn} latent values for {len(batch)} datapoints: evaluation needs one for each, so "
                "call a pair whose data plate does not subsample"
            )
        if len(latent) > 1 and rows > (fewer := max(1, fits // num_particles)):
            rows = fewer  # all particles at once for fewer datapoints, so that the encoder is not run again and again
            continue
        if len(batch) not in known:
            known[len(batch)] = vectorizes(model, guide, (batch,), {}, drawn=guide_trace)
        vectorized = known[len(batch)]
        most = max(1, fits // len(batch))
        for done in range(0, num_particles, most):
            block = min(most, num_particles - done)
            if len(latent) == 1:
                sites = weigh(model, redraw(guide_trace, block), (batch,), {}, block, vectorized, False)
            else:
                sites = draw_sites(model, guide, (batch,), {}, num_particles=block, vectorized=vectorized)
            yield span, sites.log_w
        start = span.stop


def _row_bytes(x: Tensor, model: Program, guide: Program) -> int:
    """What one particle of one datapoint takes while it is weighed: a few copies of its widest layer or of itself."""
    copies = 8  # activations and temporaries
    parameters = [parameter for part in modules_behind(model, guide) for parameter in part.parameters()]
    widest = max((parameter.shape[0] for parameter in parameters if parameter.ndim), default=1)
    return copies * max(widest, x[0].numel()) * torch.get_default_dtype().itemsize
