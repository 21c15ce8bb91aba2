r"""Networks that start as probabilistic principal component analysis and learn the non-linear remainder."""

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
    r"""The parameters of probabilistic PCA, the linear VAE: :math:`x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)`.

    Attributes:
        mean: The mean :math:`\mu`, ``data_shape``.
        spread: The standard deviation of each entry of x, ``data_shape``.
        loadings: The loadings W, ``[*data_shape, latent_dim]``.
        scale: The standard deviation :math:`\sigma` of the noise.
    """

    mean: Tensor
    spread: Tensor
    loadings: Tensor
    scale: float

    @staticmethod
    def maximum_likelihood(
        data_shape: Sequence[int],
        latent_dim: int,
        *,
        mean: Any = None,
        covariance: Any = None,
        scale: float | None = None,
    ) -> PPCA:
        r"""Return the maximum-likelihood parameters for data with this mean and covariance.

        .. math:: W = V_K (\Lambda_K - \sigma^2 I)^{1/2}

        :math:`\Lambda_K` and :math:`V_K` are the K leading eigenvalues and eigenvectors of the covariance, and
        :math:`\sigma^2` is the mean of the other eigenvalues unless the scale is given. Loadings are zero for an
        eigenvalue below :math:`\sigma^2`, and for latent dimensions in excess of d.

        Arguments:
            data_shape: The shape of one datapoint, of d entries.
            latent_dim: K, the number of columns of W.
            mean: ``data_shape``; zero by default.
            covariance: ``[d, d]``; the identity by default. Negative eigenvalues, which the covariance of incomplete
                data may have, count as zero.
            scale: :math:`\sigma`, if it is known.

        Errors:
            ConfigError: for a covariance of another shape, or one that is not finite.

        References:
            | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
            | https://doi.org/10.1111/1467-9868.00196

        Example:
            >>> start = PPCA.maximum_likelihood((3,), 1, covariance=torch.diag(torch.tensor([5.0, 1.0, 1.0])))
            >>> start.loadings.abs().T, start.scale
            (tensor([[2., 0., 0.]]), 1.0)
        """
        size = math.prod(data_shape)
        covariance = torch.eye(size) if covariance is None else as_tensor(covariance)
        if covariance.shape != (size, size) or not covariance.isfinite().all():
            raise ConfigError(f"data_covariance: found {tuple(covariance.shape)}, expected {(size, size)} and finite")
        values, vectors = torch.linalg.eigh(covariance.double())
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        if scale is None:
            others = values[latent_dim:]
            scale = max(_MIN_SCALE, others.mean().sqrt().item()) if len(others) else _MIN_SCALE
        lengths = (values[:latent_dim] - scale**2).clamp(min=0).sqrt()
        loadings = nn.functional.pad(vectors[:, : len(lengths)] * lengths, (0, latent_dim - len(lengths))).float()
        return PPCA(
            mean=torch.zeros(*data_shape) if mean is None else as_tensor(mean).float().reshape(*data_shape),
            spread=covariance.diagonal().float().clamp(min=scale**2).sqrt().reshape(*data_shape),
            loadings=loadings.reshape(*data_shape, latent_dim),
            scale=scale,
        )


class PPCADecoder(nn.Module):
    r"""A decoder that adds a perceptron, which starts at zero, to a linear map: :math:`\mu + s \, (W z + f(z))`.

    A scale mixture is :math:`\mu + s \, (W (z \odot e^{g(z)}) + f(z))`, where f and g are one perceptron.

    Arguments:
        hidden: The widths of the perceptron's hidden layers.
        start: The initial W, and the location :math:`\mu` and scale s of the data, which are not trained.
        scale_mixture: Use a scale mixture, for data that differ in smoothness or spread.

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
        _set_linear_part(self, start)
        latent_dim = start.loadings.shape[-1]
        self.num_factors = latent_dim if scale_mixture else 0
        self.net = _zeroed(MLP(latent_dim, hidden, self.num_factors + start.mean.numel()))

    def forward(self, z: Tensor) -> Tensor:
        log_factors, correction = self.net(z).tensor_split([self.num_factors], -1)
        scaled = z * log_factors.exp() if self.num_factors else z
        u = scaled @ self.loadings.flatten(0, -2).T + correction
        return self.mean + self.spread * u.reshape(*z.shape[:-1], *self.mean.shape)


class PPCAEncoder(TakesMask):
    r"""An encoder that adds a perceptron, which starts at zero, to the posterior of probabilistic PCA.

    .. math:: P = I + W_m^\top \Psi_m^{-1} W_m, \quad
        \mu(x) = P^{-1} W_m^\top \Psi_m^{-1} \tfrac{(x - \mu)_m}{s} + f_1(x, m), \quad
        \log \sigma_k(x) = -\tfrac12 \log P_{kk} + f_2(x, m)

    where m are the observed entries. At the start it is the best diagonal Gaussian for the linear model, whichever
    entries are missing, and the exact posterior if none is. The encoder has its own W and :math:`\Psi`, and they are
    trained.

    Arguments:
        hidden: The widths of the hidden layers of the perceptron, which also takes the mask.
        start: As for :class:`PPCADecoder`.

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
        _set_linear_part(self, start)
        self.log_noise = nn.Parameter(math.log(start.scale) - start.spread.log())
        net = MLP((2, *start.mean.shape), hidden, (2, start.loadings.shape[-1]))
        self.net = MaskedEncoder(_zeroed(net))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        u = (x - self.mean) / self.spread
        weight = (-2 * self.log_noise).exp()
        if mask is not None:
            observed = mask.expand(u.shape).to(u)
            u, weight = u * observed, weight * observed
        loadings = self.loadings.flatten(0, -2)
        weighted = weight.reshape(-1, len(loadings), 1) * loadings  # without a mask one matrix for all datapoints
        precision = torch.eye(loadings.shape[1]).to(u) + loadings.T @ weighted
        evidence = weighted.mT @ u.reshape(len(u), -1, 1)
        loc = torch.cholesky_solve(evidence, torch.linalg.cholesky(precision)).squeeze(-1)
        log_scale = -precision.diagonal(dim1=-2, dim2=-1).log() / 2
        return torch.stack([loc, log_scale.expand_as(loc)], -2) + self.net(u, mask)


def _set_linear_part(net: nn.Module, start: PPCA) -> None:
    """Give a network the mean and spread of the data as buffers, and loadings in units of the spread."""
    net.register_buffer("mean", start.mean.clone())
    net.register_buffer("spread", start.spread.clone())
    net.loadings = nn.Parameter(start.loadings / start.spread[..., None])


@torch.no_grad()
def _zeroed(net: MLP) -> MLP:
    """Return a perceptron with the output zero."""
    last = net.layers[-1]
    assert isinstance(last, nn.Linear)
    last.weight.zero_()
    return net
