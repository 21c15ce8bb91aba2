r"""Networks that start as probabilistic principal component analysis and learn what is not linear."""

from __future__ import annotations

__all__ = ["PPCA", "PPCADecoder", "PPCAEncoder"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import as_tensor
from ..errors import ConfigError
from .nn import MLP, MaskedEncoder, TakesMask

_MIN_SCALE = 1e-3


@dataclass(frozen=True)
class PPCA:
    r"""Probabilistic PCA: :math:`x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)`, the linear VAE.

    Attributes:
        mean: ``data_shape``.
        spread: The standard deviation of each entry of x, ``data_shape``.
        loadings: W, ``[*data_shape, latent_dim]``.
        scale: :math:`\sigma`.
    """

    mean: Tensor
    spread: Tensor
    loadings: Tensor
    scale: float

    @staticmethod
    def most_likely(
        data_shape: Sequence[int],
        latent_dim: int,
        *,
        mean: Any = None,
        covariance: Any = None,
        scale: float | None = None,
    ) -> PPCA:
        r"""Where the likelihood is greatest for data with this mean and covariance.

        .. math:: W = V_K (\Lambda_K - \sigma^2 I)^{1/2}

        with the K leading eigenvalues and -vectors of the covariance, and for :math:`\sigma^2` the mean of the others
        unless the scale is given. Where an eigenvalue is below it, or none is left, the loadings are zero.

        Arguments:
            data_shape: The shape of one datapoint, of d entries.
            latent_dim: K, the number of columns of W.
            mean: ``data_shape``; zero by default.
            covariance: ``[d, d]``; the identity by default. That of incomplete data may have negative eigenvalues,
                which count as zero.
            scale: :math:`\sigma`, if it is known.

        Errors:
            ConfigError: for a covariance of another shape, or one that is not finite.

        References:
            | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
            | https://doi.org/10.1111/1467-9868.00196

        Example:
            >>> found = PPCA.most_likely((3,), 1, covariance=torch.diag(torch.tensor([5.0, 1.0, 1.0])))
            >>> found.loadings.abs().T, found.scale
            (tensor([[2., 0., 0.]]), 1.0)
        """
        size = math.prod(data_shape)
        covariance = torch.eye(size) if covariance is None else as_tensor(covariance)
        if covariance.shape != (size, size) or not covariance.isfinite().all():
            raise ConfigError(f"data_covariance: found {tuple(covariance.shape)}, expected {(size, size)} and finite")
        values, vectors = torch.linalg.eigh(covariance.double())
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        if scale is None:
            left = values[latent_dim:]
            scale = max(_MIN_SCALE, left.mean().sqrt().item()) if len(left) else _MIN_SCALE
        kept = (values[:latent_dim] - scale**2).clamp(min=0).sqrt()
        loadings = nn.functional.pad(vectors[:, : len(kept)] * kept, (0, latent_dim - len(kept))).float()
        return PPCA(
            mean=torch.zeros(*data_shape) if mean is None else as_tensor(mean).float().reshape(*data_shape),
            spread=covariance.diagonal().float().clamp(min=scale**2).sqrt().reshape(*data_shape),
            loadings=loadings.reshape(*data_shape, latent_dim),
            scale=scale,
        )


class PPCADecoder(nn.Module):
    r"""A linear map beside which a perceptron starts at zero: :math:`\mu + s \, (W z + f(z))`.

    A scale mixture is :math:`\mu + s \, (W (z \odot e^{g(z)}) + f(z))`, its factors from the same perceptron.

    Arguments:
        hidden: The widths of the perceptron's hidden layers.
        start: Where W starts, and the location :math:`\mu` and scale s of the data, which stay as they are.
        scale_mixture: For data of which some are smoother, or less spread, than others.

    Example:
        >>> start = PPCA(mean=torch.zeros(3), spread=torch.ones(3), loadings=torch.eye(3)[:, :2], scale=0.1)
        >>> PPCADecoder((16,), start)(torch.tensor([[1.0, 2.0]])).detach()
        tensor([[1., 2., 0.]])
    """

    mean: Tensor
    spread: Tensor
    loadings: nn.Parameter

    def __init__(self, hidden: Sequence[int], start: PPCA, *, scale_mixture: bool = False) -> None:
        super().__init__()
        _take_units(self, start)
        latent_dim = start.loadings.shape[-1]
        self.num_factors = latent_dim if scale_mixture else 0
        self.net = _from_zero(MLP(latent_dim, hidden, self.num_factors + start.mean.numel()))

    def forward(self, z: Tensor) -> Tensor:
        log_factors, more = self.net(z).tensor_split([self.num_factors], -1)
        scaled = z * log_factors.exp() if self.num_factors else z
        u = scaled @ self.loadings.flatten(0, -2).T + more
        return self.mean + self.spread * u.reshape(*z.shape[:-1], *self.mean.shape)


class PPCAEncoder(TakesMask):
    r"""The posterior of probabilistic PCA given what is observed, beside which a perceptron starts at zero.

    .. math:: P = I + W_m^\top \Psi_m^{-1} W_m, \quad
        \mu(x) = P^{-1} W_m^\top \Psi_m^{-1} \tfrac{(x - \mu)_m}{s} + f_1(x, m), \quad
        \log \sigma_k(x) = -\tfrac12 \log P_{kk} + f_2(x, m)

    where m is what is observed. It is the best diagonal Gaussian for the linear model, missing entries or none; with
    none it is the posterior itself. W and :math:`\Psi` are the encoder's own, and are trained.

    Arguments:
        hidden: The widths of the perceptron's hidden layers; it is told the mask too.
        start: As of :class:`PPCADecoder`.

    References:
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469

    Example:
        >>> start = PPCA(mean=torch.zeros(2), spread=torch.ones(2), loadings=torch.tensor([[2.0], [0.0]]), scale=1.0)
        >>> PPCAEncoder((16,), start)(torch.tensor([[5.0, 3.0]])).squeeze().detach()  # 2 * 5 / 5, log(1 / sqrt(5))
        tensor([ 2.0000, -0.8047])
    """

    mean: Tensor
    spread: Tensor
    loadings: nn.Parameter

    def __init__(self, hidden: Sequence[int], start: PPCA) -> None:
        super().__init__()
        _take_units(self, start)
        self.log_noise = nn.Parameter(math.log(start.scale) - start.spread.log())
        net = MLP((2, *start.mean.shape), hidden, (2, start.loadings.shape[-1]))
        self.net = MaskedEncoder(_from_zero(net))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        u = (x - self.mean) / self.spread
        weight = (-2 * self.log_noise).exp()
        if mask is not None:
            seen = mask.expand(u.shape).to(u)
            u, weight = u * seen, weight * seen
        loadings = self.loadings.flatten(0, -2)
        weighted = weight.reshape(-1, len(loadings), 1) * loadings  # one for all datapoints, if all is observed
        precision = torch.eye(loadings.shape[1]).to(u) + loadings.T @ weighted
        evidence = weighted.mT @ u.reshape(len(u), -1, 1)
        loc = torch.cholesky_solve(evidence, torch.linalg.cholesky(precision)).squeeze(-1)
        log_scale = -precision.diagonal(dim1=-2, dim2=-1).log() / 2
        return torch.stack([loc, log_scale.expand_as(loc)], -2) + self.net(u, mask)


def _take_units(net: nn.Module, start: PPCA) -> None:
    net.register_buffer("mean", start.mean.clone())
    net.register_buffer("spread", start.spread.clone())
    net.loadings = nn.Parameter(start.loadings / start.spread[..., None])


@torch.no_grad()
def _from_zero(net: MLP) -> MLP:
    last = net.layers[-1]
    assert isinstance(last, nn.Linear)
    last.weight.zero_()
    return net
