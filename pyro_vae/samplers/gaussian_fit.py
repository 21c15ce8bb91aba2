r"""The Gaussian that a guide is, or the one nearest to it."""

from __future__ import annotations

__all__ = ["GuideGaussian", "fitted", "gaussian_of_guide"]

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..pairs.density import Density

_FEW, _MANY, _SHRINK = 32, 512, 0.1


class GuideGaussian(NamedTuple):
    """A Gaussian per datapoint in unconstrained coordinates, and whether the guide is exactly this one."""

    loc: Float[Tensor, "batch latent"]
    scale_tril: Float[Tensor, "batch latent latent"]
    exact: bool

    def noise(self, u: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch latent"]:
        """Return the standard normal noise of points: that behind the guide's draws, if it is exactly this Gaussian."""
        away = (u - self.loc).permute(1, 2, 0)
        return torch.linalg.solve_triangular(self.scale_tril, away, upper=False).permute(2, 0, 1)


def gaussian_of_guide(density: Density, most: int) -> GuideGaussian:
    """Return the guide's own Gaussian if it is one, however it is built; else that of its draws' moments.

    Arguments:
        most: The number of particles that fit into memory at once.
    """
    with torch.no_grad():
        few = torch.cat([density.draw(min(most, _FEW - done)) for done in range(0, _FEW, most)])
    found = _by_slopes(density, few)
    return found if found is not None and _same(density, few[:most], found) else _by_draws(density, few.mean(0), most)


@torch.no_grad()
def _by_draws(density: Density, near: Float[Tensor, "batch latent"], most: int) -> GuideGaussian:
    """Return the Gaussian of draws' mean and covariance, summed block by block about a point near their mean."""
    total, squares = torch.zeros_like(near), torch.zeros_like(near[..., None] * near[..., None, :])
    for done in range(0, _MANY, most):
        away = density.draw(min(most, _MANY - done)) - near
        total += away.sum(0)
        squares += torch.einsum("kbi,kbj->bij", away, away)
    mean = total / _MANY
    return GuideGaussian(near + mean, _factor(squares / _MANY - mean[..., None] * mean[..., None, :]), False)


@torch.no_grad()
def fitted(u: Float[Tensor, "particles batch latent"], start: GuideGaussian) -> GuideGaussian:
    """Return the Gaussian of draws' mean and covariance, both found in the coordinates in which ``start`` is standard.

    There the covariance is shrunk towards its diagonal, so that few draws are enough, and a ``start`` that already has
    the correlations keeps them.
    """
    noise = start.noise(u)
    mean = noise.mean(0)
    factor = _factor(torch.einsum("kbi,kbj->bij", noise - mean, noise - mean) / len(noise))
    return GuideGaussian(start.loc + (start.scale_tril @ mean[..., None])[..., 0], start.scale_tril @ factor, False)


def _factor(covariance: Float[Tensor, "batch latent latent"]) -> Float[Tensor, "batch latent latent"]:
    """Return the Cholesky factor of a covariance, slightly shrunk towards its diagonal; nan where there is none."""
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    factor, failed = torch.linalg.cholesky_ex((1 - _SHRINK) * covariance + _SHRINK * diagonal)  # in many dimensions too
    return factor.masked_fill((failed != 0)[:, None, None], torch.nan)


def _by_slopes(density: Density, u: Float[Tensor, "particles batch latent"]) -> GuideGaussian | None:
    """Return the Gaussian whose log-density has the guide's slopes, None if there is none.

    The slopes of a Gaussian log-density are linear, so differences over one standard deviation are its curvature.
    """
    centre, sd = u.mean(0), u.std(0)
    at_centre = _slope(density, centre)
    columns = []
    for j in range(density.dim):
        step = torch.zeros_like(centre)
        step[:, j] = sd[:, j]
        columns.append((at_centre - _slope(density, centre + step)) / sd[:, j : j + 1])
    precision = torch.stack(columns, -1)
    precision = (precision + precision.transpose(-1, -2)) / 2
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed.any() or not factor.isfinite().all():
        return None
    covariance = torch.cholesky_inverse(factor)
    scale_tril, failed = torch.linalg.cholesky_ex(covariance)
    loc = centre + (covariance @ at_centre[..., None])[..., 0]
    return None if failed.any() else GuideGaussian(loc, scale_tril, True)


def _slope(density: Density, at: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
    with torch.enable_grad():
        u = at[None].requires_grad_()
        return torch.autograd.grad(density.log_q(u).sum(), u)[0][0]


@torch.no_grad()
def _same(density: Density, u: Float[Tensor, "particles batch latent"], start: GuideGaussian) -> bool:
    """Return whether the guide has the Gaussian's densities at its draws."""
    noise = start.noise(u)
    log_det = start.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    gaussian = -0.5 * (noise.square().sum(-1) + density.dim * math.log(2 * math.pi)) - log_det
    rounding = math.sqrt(torch.finfo(u.dtype).eps)
    return torch.allclose(density.log_q(u), gaussian, rounding, rounding)
