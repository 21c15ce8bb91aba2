r"""Families of distributions with parameters for each datapoint, which q(z | x) is compared with.

Each maps standard normal noise to the unconstrained latent coordinates, and starts as a given Gaussian. Its parameters
are in units of that start, so that one learning rate suits every scale.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "CouplingFlow", "Diagonal", "Family", "Full"]

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError

Parameters = list[Tensor]
Mapped = tuple[Float[Tensor, "particles batch latent"], Float[Tensor, "particles batch"]]
"""The mapped points, and the log-determinant of the map from noise to latents there."""


class Family:
    """A map from noise to latents for each datapoint, with ``parameters`` of shape ``[batch, ...]``."""

    def __init__(self, loc: Float[Tensor, "batch latent"], scale_tril: Float[Tensor, "batch latent latent"]) -> None:
        self.loc, self.scale_tril = loc, scale_tril
        self.parameters: Parameters = []

    def forward(self, noise: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        raise NotImplementedError

    def inverse(self, u: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        raise NotImplementedError

    def draw(self, noise: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        """Return points and their log-density."""
        u, log_det = self.forward(noise, parameters)
        return u, _log_normal(noise) - log_det

    def log_density(
        self, u: Float[Tensor, "particles batch latent"], parameters: Parameters
    ) -> Float[Tensor, "particles batch"]:
        """Return the log-density at any points, with a gradient by the points alone."""
        noise, log_det = self.inverse(u, [parameter.detach() for parameter in parameters])
        return _log_normal(noise) - log_det


class Diagonal(Family):
    r"""A Gaussian with independent dimensions."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril)
        self.scale = scale_tril.square().sum(-1).sqrt()
        self.parameters = [torch.zeros_like(loc), torch.zeros_like(loc)]

    def forward(self, noise: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        shift, log_scale = parameters
        u = self.loc + self.scale * (shift + log_scale.exp() * noise)
        return u, (log_scale + self.scale.log()).sum(-1).expand(len(u), -1)

    def inverse(self, u: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        shift, log_scale = parameters
        noise = ((u - self.loc) / self.scale - shift) * (-log_scale).exp()
        return noise, (log_scale + self.scale.log()).sum(-1).expand(len(u), -1)


class Full(Family):
    r"""A Gaussian with any covariance, through its Cholesky factor."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril)
        self.parameters = [torch.zeros_like(loc), torch.zeros_like(scale_tril)]

    def forward(self, noise: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        factor, log_det = self._factor(parameters[1])
        u = self.loc + _times(self.scale_tril, parameters[0] + _times(factor, noise))
        return u, log_det.expand(len(u), -1)

    def inverse(self, u: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        factor, log_det = self._factor(parameters[1])
        noise = _solve(factor, _solve(self.scale_tril, u - self.loc) - parameters[0])
        return noise, log_det.expand(len(u), -1)

    def at(self, parameters: Parameters) -> Full:
        """Return the same family, starting at these parameters."""
        factor, _ = self._factor(parameters[1])
        loc = self.loc + (self.scale_tril @ parameters[0][..., None])[..., 0]
        return type(self)(loc, self.scale_tril @ factor)

    def _factor(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor relative to the start, and the log-determinant of both."""
        log_diagonal = raw.diagonal(dim1=-2, dim2=-1)
        factor = raw.tril(-1) + torch.diag_embed(log_diagonal.exp())
        return factor, (log_diagonal + self.scale_tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)


class CouplingFlow(Full):
    r"""Affine coupling layers under a full Gaussian: noise, bent by the layers, then mapped as by :class:`Full`.

    References:
        | Density Estimation Using Real NVP (Dinh et al., 2017)  https://arxiv.org/abs/1605.08803
    """

    num_layers: ClassVar[int] = 4
    hidden: ClassVar[int] = 16

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril)
        batch, dim = loc.shape
        if dim < 2:
            raise ConfigError("family='flow': a coupling layer needs two latent dimensions, found 1: use 'full'")
        self.half = dim // 2
        for layer in range(self.num_layers):
            given = self.half if layer % 2 == 0 else dim - self.half
            self.parameters += [
                torch.randn(batch, self.hidden, given).to(loc) / math.sqrt(given),
                torch.zeros_like(loc[:, :1]).repeat(1, self.hidden),
                loc.new_zeros(batch, 2 * (dim - given), self.hidden),  # zero: the layer starts as the identity
                loc.new_zeros(batch, 2 * (dim - given)),
            ]

    def forward(self, noise: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        log_det = torch.zeros_like(noise[..., 0])
        for layer in range(self.num_layers):
            given, moved, log_scale, shift = self._layer(layer, noise, parameters)
            noise = self._joined(layer, given, moved * log_scale.exp() + shift)
            log_det = log_det + log_scale.sum(-1)
        u, gaussian = super().forward(noise, parameters)
        return u, log_det + gaussian

    def inverse(self, u: Float[Tensor, "particles batch latent"], parameters: Parameters) -> Mapped:
        noise, log_det = super().inverse(u, parameters)
        for layer in reversed(range(self.num_layers)):
            given, moved, log_scale, shift = self._layer(layer, noise, parameters)
            noise = self._joined(layer, given, (moved - shift) * (-log_scale).exp())
            log_det = log_det + log_scale.sum(-1)
        return noise, log_det

    def _layer(self, layer: int, noise: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the half that stays, the half that moves, and the log-scale and shift of the latter."""
        one, other = noise[..., : self.half], noise[..., self.half :]
        given, moved = (one, other) if layer % 2 == 0 else (other, one)
        w1, b1, w2, b2 = parameters[2 + 4 * layer : 6 + 4 * layer]
        log_scale, shift = (_times(w2, torch.tanh(_times(w1, given) + b1)) + b2).chunk(2, -1)
        return given, moved, 2 * torch.tanh(log_scale / 2), shift  # bounded, so that no draw can run away

    def _joined(self, layer: int, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([given, moved] if layer % 2 == 0 else [moved, given], -1)


FAMILIES: dict[str, type[Family]] = {"diagonal": Diagonal, "full": Full, "flow": CouplingFlow}


def _times(matrix: Float[Tensor, "batch out into"], points: Tensor) -> Tensor:
    """Return each datapoint's matrix times its points ``[particles, batch, into]``."""
    return torch.einsum("boi,kbi->kbo", matrix, points)


def _solve(factor: Float[Tensor, "batch latent latent"], points: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, points.permute(1, 2, 0), upper=False).permute(2, 0, 1)


def _log_normal(noise: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch"]:
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
