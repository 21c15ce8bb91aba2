r"""Gaussian processes in a few coefficients: training data for a PriorVAE, and the exact posterior as a reference."""

from __future__ import annotations

__all__ = ["GaussianFields"]

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from ..data.arrays import as_batch, as_tensor
from ..errors import ConfigError, require_count, require_number


class GaussianFields:
    r"""Gaussian random functions at n places, :math:`f \mid \ell \sim \mathcal N(0, C_\ell)`, with random :math:`\ell`.

    The settings :math:`\ell` are equally probable. The n values are reduced to their K leading principal components,

    .. math:: f \approx U c, \qquad \tfrac1n \bar C U = U \Lambda, \qquad \tfrac1n U^\top U = I, \qquad
        c \mid \ell \sim \mathcal N(0, \tfrac1{n^2} U^\top C_\ell U)

    where :math:`\bar C` is the average covariance; they lack the share :attr:`left_out` of the variance. As a data set
    for :func:`~pyro_vae.fit`, this has ``num_draws`` rows of c plus noise, drawn afresh from torch's generator at every
    access, so that a model cannot overfit them. A VAE then decodes c without the noise, and ``basis @ c`` is the
    function.

    Arguments:
        covariance: A function from an entry of ``parameters`` to :math:`C_\ell`, ``[n, n]``, in float64.
        parameters: The equally probable settings, for instance a grid of lengthscales.
        num_coefficients: The number of coefficients K.
        noise: The standard deviation of the noise on each coefficient, above zero: that of the VAE's likelihood.
        num_draws: The length of the data set, and so the number of rows in an epoch.

    Attributes:
        basis: U, ``[n, K]``; a function at all n places is ``basis @ c``.
        variances: The diagonal of :math:`\Lambda`, ``[K]``: the variance of each coefficient.
        left_out: The share of the variance of f that the K coefficients lack.

    Errors:
        ConfigError: unless the covariances are finite, symmetric and positive semi-definite matrices of one size n that
            is at least K; and for noise that is not above zero.

    References:
        | PriorVAE: Encoding Spatial Priors with Variational Autoencoders (Semenova et al., 2022)
        | https://arxiv.org/abs/2110.10422

    Example:
        >>> places = torch.linspace(0, 1, 50, dtype=torch.float64)
        >>> def covariance(length):
        ...     return torch.exp(-0.5 * ((places[:, None] - places) / length) ** 2)
        >>> fields = GaussianFields(covariance, [0.2, 0.3, 0.4], num_coefficients=8)
        >>> fields.basis.shape, fields[:5].shape, fields.left_out < 1e-4
        (torch.Size([50, 8]), torch.Size([5, 8]), True)
        >>> fields.given(torch.tensor([10, 40]), torch.tensor([1.0, -1.0]), scale=0.1).mean.shape
        torch.Size([50])
    """

    def __init__(
        self,
        covariance: Callable[[Any], Tensor],
        parameters: Sequence[Any],
        *,
        num_coefficients: int,
        noise: float = 0.02,
        num_draws: int = 10_000,
    ) -> None:
        self.noise, self.num_draws = noise, require_count("num_draws", num_draws)
        self._covariance, self._parameters = covariance, list(parameters)
        if not noise > 0:
            raise ConfigError(f"noise={noise}: expected more than zero, or the VAE's density is unbounded")
        if not self._parameters:
            raise ConfigError("parameters: found none, expected at least one setting of the covariance")
        # One matrix at a time, since n may be thousands.
        average = reduce(_sum, map(self._matrix, self._parameters)) / len(self._parameters)
        if require_count("num_coefficients", num_coefficients) > len(average):
            raise ConfigError(
                f"num_coefficients={num_coefficients}: expected at most {len(average)}, the number of places"
            )
        values, vectors = torch.linalg.eigh(average / len(average))
        if values[0] < -1e-6 * values[-1].abs():
            raise ConfigError("covariance: found negative eigenvalues of the average, expected none")
        self.variances = values.flip(0)[:num_coefficients]
        self.left_out = 1 - (self.variances.sum() / values.sum()).item()
        self.basis = (vectors.flip(1)[:, :num_coefficients] * len(average) ** 0.5).float()
        self._factors = torch.stack([self._factor(parameter) for parameter in self._parameters])

    @property
    def data_covariance(self) -> Tensor:
        """The covariance of the rows of the data set, ``[K, K]``: that of the coefficients plus that of the noise."""
        return torch.diag(self.variances.float() + self.noise**2)

    def __len__(self) -> int:
        return self.num_draws

    def __getitem__(self, rows: Any) -> Tensor:
        index = torch.arange(self.num_draws)[rows]
        return self._draw(len(index)) if index.ndim else self._draw(1)[0]

    def _draw(self, num: int) -> Tensor:
        factors = self._factors[torch.randint(len(self._factors), (num,))]
        return (factors @ torch.randn(num, factors.shape[-1], 1).double()).squeeze(-1).float()

    def log_prob(self, coefficients: Tensor) -> Tensor:
        r"""The exact log-density of rows ``[m, K]`` of the data set, a mixture over :math:`\ell`, in nats: ``[m]``."""
        weights = Categorical(logits=torch.zeros(len(self._factors)).double())
        components = MultivariateNormal(torch.zeros_like(self.variances), scale_tril=self._factors)
        return MixtureSameFamily(weights, components).log_prob(coefficients.double())

    def given(self, places: Any, y: Any, *, scale: float) -> MixtureSameFamily:
        r"""The exact posterior of f at each place, given noisy values at some of them: Gaussian process regression.

        .. math:: p(f_i \mid y) = \sum_\ell p(\ell \mid y)\, \mathcal N(f_i \mid m_{\ell i}, v_{\ell i}),
            \qquad y \mid f \sim \mathcal N(f_{\mathrm{places}}, \mathtt{scale}^2 I)

        Arguments:
            places: Indices of the places with a value, ``[m]``.
            y: The values, ``[m]``.
            scale: The standard deviation of their noise, above zero.

        Errors:
            ConfigError: for places outside 0 to n - 1, another number of values than places, and a scale that is not
                above zero.
            DataError: for values that are not finite.

        References:
            | Gaussian Processes for Machine Learning, chapter 2 (Rasmussen & Williams, 2006)
            | https://gaussianprocess.org/gpml/
        """
        places, y = as_tensor(places, name="places"), as_batch(y, name="y").double()
        num = len(self.basis)
        if places.is_floating_point() or places.ndim != 1 or not bool(((places >= 0) & (places < num)).all()):
            raise ConfigError(f"places: found {places.tolist()}, expected whole numbers from 0 to {num - 1}")
        if y.shape != places.shape:
            raise ConfigError(f"y: found {tuple(y.shape)}, expected a value for each of {len(places)} places")
        if not require_number("scale", scale) > 0:
            raise ConfigError(f"scale={scale}: expected more than zero")
        log_evidence, means, scales = [], [], []
        for parameter in self._parameters:
            covariance = self._matrix(parameter)
            factor = torch.linalg.cholesky(covariance[places][:, places] + scale**2 * torch.eye(len(y)).double())
            half = torch.linalg.solve_triangular(factor, covariance[places], upper=False)
            white = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
            log_evidence.append(-white.square().sum() / 2 - factor.diagonal().log().sum())
            means.append((half.T @ white).squeeze(-1))
            scales.append((covariance.diagonal() - half.square().sum(0)).clamp(min=1e-12).sqrt())
        weights = Categorical(logits=torch.stack(log_evidence).expand(len(means[0]), -1))
        return MixtureSameFamily(weights, Normal(torch.stack(means, -1), torch.stack(scales, -1)))

    def _matrix(self, parameter: Any) -> Tensor:
        matrix = torch.as_tensor(self._covariance(parameter)).double()
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if not square or not matrix.isfinite().all() or not torch.allclose(matrix, matrix.T):
            raise ConfigError(
                f"covariance({parameter!r}): found {tuple(matrix.shape)}, expected a finite, symmetric square matrix"
            )
        return matrix

    def _factor(self, parameter: Any) -> Tensor:
        """The Cholesky factor of the covariance of the data set's rows at one setting."""
        basis = self.basis.double() / len(self.basis)
        covariance = basis.T @ self._matrix(parameter) @ basis
        factor, failed = torch.linalg.cholesky_ex(covariance + self.noise**2 * torch.eye(len(covariance)).double())
        if failed:
            raise ConfigError(f"covariance({parameter!r}): found negative eigenvalues, expected none")
        return factor


def _sum(one: Tensor, other: Tensor) -> Tensor:
    if one.shape != other.shape:
        raise ConfigError(
            f"covariance: found {tuple(one.shape)} and {tuple(other.shape)}, expected the same number of places"
        )
    return one + other
