r"""Pairs with exact log p(x), on which estimators are tested and compared."""

from __future__ import annotations

__all__ = ["BernoulliNetwork", "LinearGaussian", "bernoulli_network", "linear_gaussian"]

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..errors import ConfigError
from ..ops.seeds import seeded


class LinearGaussian:
    r"""Probabilistic PCA with known parameters; see :func:`linear_gaussian`."""

    def __init__(self, W: Tensor, scale: Tensor, loc: Tensor) -> None:
        self.W, self.scale, self.loc = W, scale, loc
        self.latent_dim = W.shape[1]
        identity = torch.eye(self.latent_dim, dtype=W.dtype)
        weighted = W / scale.square()[:, None]
        self.posterior_covariance = torch.linalg.inv(identity + W.T @ weighted)
        self._gain = self.posterior_covariance @ weighted.T

    def model(self, x: Tensor | None = None, num: int | None = None, mask: Tensor | None = None) -> Tensor:
        """The Pyro program of the entries of x where ``mask`` is true; ``x=None`` generates ``num`` datapoints."""
        size = len(x) if x is not None else (1 if num is None else num)
        zeros = self.W.new_zeros(self.latent_dim)
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            entries = dist.Normal(self.loc + z @ self.W.T, self.scale)
            return pyro.sample("x", (entries if mask is None else entries.mask(mask)).to_event(1), obs=x)

    def guide(
        self,
        *,
        shift: Any = 0.0,
        scale: Any = None,
        inflate: float = 1.0,
        mean_field: bool = False,
    ) -> Callable[..., Tensor]:
        r"""Return a guide: by default the exact posterior, or a Gaussian at a known distance from it.

        Arguments:
            shift: The difference of its mean from the posterior mean.
            scale: The standard deviations of a diagonal Gaussian, in place of the posterior covariance.
            inflate: A factor for the standard deviations.
            mean_field: Use the best diagonal Gaussian; its variances are one over the diagonal of the posterior
                precision.
        """
        shift = torch.as_tensor(shift, dtype=self.W.dtype)

        def guide(x: Tensor, mask: Tensor | None = None) -> Tensor:
            mean, covariance = self._given(x, mask)
            with pyro.plate("data", len(x)):
                if scale is None and not mean_field:
                    q = dist.MultivariateNormal(mean + shift, scale_tril=inflate * torch.linalg.cholesky(covariance))
                else:
                    precision = torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1)
                    widths = precision.rsqrt() if mean_field else torch.as_tensor(scale, dtype=self.W.dtype)
                    q = dist.Normal(mean + shift, inflate * widths).to_event(1)
                return pyro.sample("z", q)

        return guide

    def log_evidence(self, x: Float[Tensor, "batch data"], mask: Tensor | None = None) -> Float[Tensor, " batch"]:
        r""":math:`\log p(x) = \log \mathcal N(x; \mu, W W^\top + \mathrm{diag}\,\sigma^2)`, in nats per datapoint.

        With a mask it is that of the entries where the mask is true, by a marginal of this Gaussian.
        """
        covariance = self.W @ self.W.T + torch.diag(self.scale.square())
        if mask is None:
            return dist.MultivariateNormal(self.loc, covariance).log_prob(x)
        observed = mask.to(x)  # other entries become independent standard normal variables with the value zero
        covariance = covariance * observed[:, :, None] * observed[:, None, :] + torch.diag_embed(1 - observed)
        value = ((x - self.loc) * observed).nan_to_num()
        log_prob = dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(value)
        return log_prob + 0.5 * math.log(2 * math.pi) * (1 - observed).sum(-1)

    def posterior(self, x: Float[Tensor, "batch data"], mask: Tensor | None = None) -> Distribution:
        r"""The Gaussian :math:`p(z \mid x)`, given the entries of x where the mask is true."""
        return dist.MultivariateNormal(*self._given(x, mask))

    def sample(self, num: int, *, seed: int | None = None) -> Float[Tensor, "num data"]:
        """Draw ``num`` datapoints from the model; with a seed, torch's own generator keeps its state."""
        if seed is not None:
            with seeded(seed, "linear_gaussian"):
                return self.sample(num)
        z = torch.randn(num, self.latent_dim, dtype=self.W.dtype)
        return self.loc + z @ self.W.T + self.scale * torch.randn(num, len(self.loc), dtype=self.W.dtype)

    def _given(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean and covariance of p(z | x)."""
        if mask is None:
            return (x - self.loc) @ self._gain.T, self.posterior_covariance
        weights = mask.to(x) / self.scale.square()
        precision = torch.einsum("dk,nd,dl->nkl", self.W, weights, self.W) + torch.eye(self.latent_dim).to(x)
        covariance = torch.linalg.inv(precision)
        weighted = ((x - self.loc) * weights).nan_to_num() @ self.W
        return (covariance @ weighted[..., None])[..., 0], covariance


def linear_gaussian(*, W: Any, scale: Any = 1.0, loc: Any = 0.0) -> LinearGaussian:
    r"""The linear-Gaussian model, a VAE with closed forms for log p(x) and p(z | x).

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathcal N(W z + \mu, \mathrm{diag}\,\sigma^2), \quad
        x \sim \mathcal N(\mu, W W^\top + \mathrm{diag}\,\sigma^2)

    Arguments:
        W: The loadings ``[data, latent]``.
        scale: The standard deviation of the noise, one number or one for each dimension of x.
        loc: The mean of x.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> problem = linear_gaussian(W=[[1.0]], scale=0.5**0.5)  # x | z ~ N(z, 1/2)
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


class BernoulliNetwork:
    r"""A network with one hidden layer, with log p(x) by numerical integration; see :func:`bernoulli_network`."""

    def __init__(self, A: Tensor, B: Tensor, b: Tensor, c: Tensor) -> None:
        self.A, self.B, self.b, self.c = A, B, b, c
        self.latent_dim = B.shape[1]

    def logits(self, z: Float[Tensor, "*lead latent"]) -> Float[Tensor, "*lead data"]:
        r"""The logits of x, :math:`A \tanh(B z + b) + c`."""
        return torch.tanh(z @ self.B.T + self.b) @ self.A.T + self.c

    def model(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
        """The Pyro program; ``x=None`` generates ``num`` datapoints."""
        size = len(x) if x is not None else (1 if num is None else num)
        zeros = self.B.new_zeros(self.latent_dim)
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, *, loc: Any = 0.0, scale: Any = 1.0) -> Callable[[Tensor], Tensor]:
        """Return a guide that is the same diagonal Gaussian for every x, by default the prior."""
        loc, scale = (torch.as_tensor(part, dtype=self.B.dtype).expand(self.latent_dim) for part in (loc, scale))

        def guide(x: Tensor) -> Tensor:
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        return guide

    def log_evidence(self, x: Float[Tensor, "batch data"]) -> Float[Tensor, " batch"]:
        r""":math:`\log p(x)` in nats per datapoint, by integration over z in float64 on ever finer grids."""
        distinct, index = x.double().unique(dim=0, return_inverse=True)
        step, coarse = 0.2, self._integral(distinct, 0.4)
        while ((fine := self._integral(distinct, step)) - coarse).abs().max() > 1e-11:
            step, coarse = step / 2, fine
        return fine[index].to(x.dtype)

    def sample(self, num: int, *, seed: int | None = None) -> Float[Tensor, "num data"]:
        """Draw ``num`` datapoints from the model; with a seed, torch's own generator keeps its state."""
        if seed is not None:
            with seeded(seed, "bernoulli_network"):
                return self.sample(num)
        return torch.bernoulli(torch.sigmoid(self.logits(torch.randn(num, self.latent_dim, dtype=self.B.dtype))))

    def _integral(self, x: Tensor, step: float) -> Tensor:
        r"""Return :math:`\log \int p(x, z)\, dz` by the rectangle rule."""
        axis = torch.arange(-9, 9 + step / 2, step, dtype=torch.float64)
        z = torch.cartesian_prod(*[axis] * self.latent_dim).reshape(-1, self.latent_dim)
        logits = torch.tanh(z @ self.B.double().T + self.b.double()) @ self.A.double().T + self.c.double()
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) - softplus(logits).sum(-1)
        return torch.logsumexp(log_prior + x @ logits.T, 1) + self.latent_dim * math.log(step)


def bernoulli_network(
    *,
    A: Any = ((1.5, -1.0, 0.5), (-0.5, 2.0, 1.0), (1.0, 1.0, -1.5), (0.3, -0.6, 2.0)),
    B: Any = ((1.0, 0.5), (-0.7, 1.2), (0.3, -0.8)),
    b: Any = (0.1, -0.2, 0.0),
    c: Any = (0.2, -0.1, 0.0, 0.3),
) -> BernoulliNetwork:
    r"""A non-linear VAE of a few binary pixels, with log p(x) by integration over one or two latent dimensions.

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(A \tanh(B z + b) + c)), \quad
        \sum_x p(x) = 1

    Arguments:
        A: The outer weights ``[data, hidden]``.
        B: The inner weights ``[hidden, latent]``, for one or two latent dimensions.
        b, c: The biases ``[hidden]`` and ``[data]``.

    Example:
        >>> problem = bernoulli_network()
        >>> problem.log_evidence(torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
        tensor([-2.4807, -3.5085])
    """
    A, B = torch.as_tensor(A), torch.as_tensor(B)
    b, c = torch.as_tensor(b, dtype=A.dtype), torch.as_tensor(c, dtype=A.dtype)
    fits = A.ndim == B.ndim == 2 and A.shape == (*c.shape, *b.shape) and B.shape[0] == len(b)
    if not fits or B.shape[1] not in (1, 2):
        raise ConfigError(
            "expected A [data, hidden], B [hidden, 1 or 2], b [hidden] and c [data], got shapes "
            f"{', '.join(str(tuple(part.shape)) for part in (A, B, b, c))}"
        )
    return BernoulliNetwork(A, B.to(A.dtype), b, c)
