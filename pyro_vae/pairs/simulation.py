r"""Data drawn from a pair's model, with the latent values that made them."""

from __future__ import annotations

__all__ = ["Simulated", "simulate"]

from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from ..errors import PairError
from .handlers import evaluation_mode
from .pair import data_for
from .running import Program, trace
from .traces import is_masked, observed_site, sample_sites


class Simulated(NamedTuple):
    r"""Draws :math:`(x, z) \sim p(x, z)`, one for each row; each z is an exact draw from the posterior of its x."""

    x: Tensor
    """``[batch, ...]``, in the shape of the given data."""
    z: dict[str, Tensor]
    """Site name -> ``[batch, *event]``."""


def simulate(model: Program, x: Any, *, seed: int = 0) -> Simulated:
    r"""Draw data from a Pyro model that was written to be given data.

    .. math:: z_b \sim p(z), \qquad x_b \sim p(x \mid z_b)

    The model runs on ``x``, but at its one observed site values are drawn instead. Networks run
    in evaluation mode; nothing is trained, and Pyro's store is not written to.

    Arguments:
        model: A Pyro function with one data plate, local latents, and one observed site that holds its first argument.
        x: Data ``[n, ...]`` that the model takes; only their number, shape and type matter.
        seed: The draws depend on it alone; torch's own generator is left as it is.

    Errors:
        DataError: for empty or non-finite data.
        PairError: for a model without such a site, or with factors or masked observations, which say nothing of how
            data arise.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> drawn = simulate(problem.model, torch.zeros(4, 2))
        >>> drawn.x.shape, drawn.z["z"].shape
        (torch.Size([4, 2]), torch.Size([4, 1]))
    """
    x = data_for(x, model)
    with evaluation_mode(model, seed=(seed, "simulate")):
        name = _observed(model, x)
        sites = sample_sites(trace(poutine.uncondition(model), (x,), {}))
    drawn = sites.pop(name)["value"].reshape(x.shape)
    z = {name: site["value"] for name, site in sites.items()}
    return Simulated(drawn.to(x.dtype) if x.is_floating_point() else drawn, z)


def _observed(model: Program, x: Tensor) -> str:
    """Return the name of the one observed site, which must hold all of ``x``."""
    sites = sample_sites(trace(model, (x,), {}))
    name = observed_site(sites, x)
    if is_masked(sites[name]):
        raise PairError(f"observed site {name!r} is masked, expected all of x to be modelled: drop the mask")
    return name
