r"""Gradient paths from the guide's parameters to a log-weight: through its draws, through its density, or both.

With :math:`z = T(\epsilon, \phi)` the derivative of :math:`\log w = \log p(x, z) - \log q_\phi(z \mid x)` by
:math:`\phi` has a *path* part, through z, and a *score* part, :math:`-\nabla_\phi \log q_\phi(z \mid x)` at fixed z,
which is zero in expectation and noise in every sample.

| Sticking the Landing (Roeder, Wu & Duvenaud, 2017)  https://arxiv.org/abs/1703.09194
"""

from __future__ import annotations

__all__ = ["Detached", "GradientPath", "log_density"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import PairError
from .traces import site_log_prob

GradientPath = Literal["total", "path", "score"]
"""``"total"``: path and score, by the reparameterisation trick; ``"path"``: the path alone; ``"score"``: no path."""


class Detached(Messenger):
    """The draws made inside are constants: their gradient is that of their density alone, as if they could not be
    reparameterised."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = msg["value"].detach()


def log_density(q: dict[str, Any], num_particles: int, path: GradientPath) -> dict[str, Tensor]:
    """Log-densities ``[particles, batch]`` of a guide's draws, by site, with the gradient of ``path``.

    With ``"path"`` the values are right site by site, the gradients in their sum over sites.
    """
    if path != "path" or not torch.is_grad_enabled() or not all(site["fn"].has_rsample for site in q.values()):
        return {name: _at(site, site["value"], num_particles) for name, site in q.items()}
    values = [site["value"] for site in q.values()]
    fixed = [value.detach().requires_grad_() for value in values]
    densities = [_at(site, value, num_particles) for site, value in zip(q.values(), fixed, strict=True)]
    slopes = _slopes(sum(densities, torch.zeros(())), fixed)
    found = {}
    for index, name in enumerate(q):
        value, slope = values[index], slopes[index]
        if value.requires_grad:  # else no parameter is behind it
            slope = slope + _slope_through(values, densities, index)
            through = (slope * (value - value.detach())).reshape(*densities[index].shape, -1).sum(-1)
            found[name] = densities[index].detach() + through
        else:
            found[name] = densities[index].detach()
    return found


def _at(site: Any, value: Tensor, num_particles: int) -> Tensor:
    try:
        return site_log_prob({**site, "value": value}, num_particles)
    except (NotImplementedError, KeyError) as error:
        raise PairError(
            f"site {site['name']!r}: {type(site['fn']).__name__} gives the density of its own draws only, expected one "
            "that can be inverted: use gradient='total'"
        ) from error


def _slopes(density: Tensor, by: list[Tensor]) -> list[Tensor]:
    """Derivatives of a sum of densities, zero where it does not depend on a value."""
    if not density.requires_grad:
        return [torch.zeros_like(value) for value in by]
    found = torch.autograd.grad(density.sum(), by, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(value) if slope is None else slope for value, slope in zip(by, found, strict=True)]


def _slope_through(values: list[Tensor], densities: list[Tensor], index: int) -> Tensor:
    """Return the derivative of later sites' densities by a value, through their distributions, at fixed values.

    Read off the graph that drew the values, so that the guide need not run a second time, in which dropout or a batch
    normalisation would have given it other densities.
    """
    if index + 1 == len(values):
        return torch.zeros_like(values[index])
    with _held(values[index + 1 :]):
        return _slopes(sum(densities[index + 1 :], torch.zeros(())), [values[index]])[0]


@contextmanager
def _held(values: list[Tensor]) -> Iterator[None]:
    """No gradient passes these values."""
    hooks = [value.register_hook(torch.zeros_like) for value in values if value.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
