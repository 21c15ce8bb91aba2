r"""Pairs whose log p(x) is known exactly: what estimators are tested and compared on."""

from __future__ import annotations

__all__ = ["LinearGaussian", "linear_gaussian"]

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from .errors import ConfigError
from .randomness import seeded


class LinearGaussian:
    r"""Probabilistic PCA with known parameters; see :func:`linear_gaussian`."""

    def __init__(self, W: Tensor, scale: Tensor, loc: Tensor) -> None:
        self.W, self.scale, self.loc = W, scale, loc
        self.latent_dim = W.shape[1]
        identity = torch.eye(self.latent_dim, dtype=W.dtype)
        weighted = W / scale.square()[:, None]
        self.posterior_covariance = torch.linalg.inv(identity + W.T @ weighted)
        self._gain = self.posterior_covariance @ weighted.T

    def model(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
        """The Pyro program; with ``x=None`` it generates ``num`` datapoints."""
        size = len(x) if x is not None else (1 if num is None else num)
        zeros = self.W.new_zeros(self.latent_dim)
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            return pyro.sample("x", dist.Normal(self.loc + z @ self.W.T, self.scale).to_event(1), obs=x)

    def guide(
        self,
        *,
        shift: Any = 0.0,
        scale: Any = None,
        inflate: float = 1.0,
        mean_field: bool = False,
    ) -> Callable[[Tensor], Tensor]:
        r"""A guide at a known distance from the exact posterior, which it is by default.

        Arguments:
            shift: Added to the posterior mean.
            scale: The standard deviations of a diagonal Gaussian, in place of the posterior's covariance.
            inflate: Multiplies the standard deviations, whichever they are.
            mean_field: The best diagonal Gaussian, with variances one over the diagonal of the posterior's precision.
        """
        shift = torch.as_tensor(shift, dtype=self.W.dtype)
        if mean_field:
            scale = torch.linalg.inv(self.posterior_covariance).diagonal().rsqrt()
        factor = inflate * torch.linalg.cholesky(self.posterior_covariance)
        widths = None if scale is None else inflate * torch.as_tensor(scale, dtype=self.W.dtype)

        def guide(x: Tensor) -> Tensor:
            mean = self._posterior_mean(x) + shift
            with pyro.plate("data", len(x)):
                if widths is None:
                    q = dist.MultivariateNormal(mean, scale_tril=factor)
                else:
                    q = dist.Normal(mean, widths).to_event(1)
                return pyro.sample("z", q)

        return guide

    def log_evidence(self, x: Float[Tensor, "batch data"]) -> Float[Tensor, " batch"]:
        r""":math:`\log p(x) = \log \mathcal N(x; \mu, W W^\top + \mathrm{diag}\,\sigma^2)`, in nats per datapoint."""
        covariance = self.W @ self.W.T + torch.diag(self.scale.square())
        return dist.MultivariateNormal(self.loc, covariance).log_prob(x)

    def posterior(self, x: Float[Tensor, "batch data"]) -> Distribution:
        r""":math:`p(z \mid x)`, a Gaussian with one covariance for all x."""
        return dist.MultivariateNormal(self._posterior_mean(x), self.posterior_covariance)

    def sample(self, num: int, *, seed: int | None = None) -> Float[Tensor, "num data"]:
        """``num`` draws of x from the model; with a seed, torch's own generator is left as it is."""
        if seed is not None:
            with seeded(seed, "linear_gaussian"):
                return self.sample(num)
        z = torch.randn(num, self.latent_dim, dtype=self.W.dtype)
        return self.loc + z @ self.W.T + self.scale * torch.randn(num, len(self.loc), dtype=self.W.dtype)

    def _posterior_mean(self, x: Tensor) -> Tensor:
        return (x - self.loc) @ self._gain.T


def linear_gaussian(*, W: Any, scale: Any = 1.0, loc: Any = 0.0) -> LinearGaussian:
    r"""The linear-Gaussian model, a VAE whose every quantity has a closed form.

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathcal N(W z + \mu, \mathrm{diag}\,\sigma^2), \quad
        x \sim \mathcal N(\mu, W W^\top + \mathrm{diag}\,\sigma^2)

    Arguments:
        W: Loadings ``[data, latent]``.
        scale: Noise standard deviation, one number or one for each dimension of x.
        loc: The mean of x.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> problem = linear_gaussian(W=[[1.0]], scale=0.5**0.5)
        >>> problem.log_evidence(torch.tensor([[1.3]]))
        tensor([-1.6850])
    """
    W = torch.as_tensor(W)
    if W.ndim != 2 or not W.is_floating_point():
        raise ConfigError(f"W: expected a floating matrix [data, latent], got {W.dtype} of shape {tuple(W.shape)}")
    data = W.shape[0]
    return LinearGaussian(
        W, torch.as_tensor(scale, dtype=W.dtype).expand(data), torch.as_tensor(loc, dtype=W.dtype).expand(data)
    )
