r"""Pairs whose log p(x) is known exactly: what estimators are tested and compared on."""

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
        """The Pyro program, of the entries of x where ``mask`` is true; ``x=None`` generates ``num`` datapoints."""
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
        r"""A guide at a known distance from the exact posterior, which it is by default.

        Arguments:
            shift: Added to the posterior mean.
            scale: The standard deviations of a diagonal Gaussian, in place of the posterior's covariance.
            inflate: Multiplies the standard deviations, whichever they are.
            mean_field: The best diagonal Gaussian, with variances one over the diagonal of the posterior's precision.
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

        With a mask it is that of the entries where the mask is true, a marginal of this Gaussian.
        """
        covariance = self.W @ self.W.T + torch.diag(self.scale.square())
        if mask is None:
            return dist.MultivariateNormal(self.loc, covariance).log_prob(x)
        seen = mask.to(x)  # entries that are not observed become standard normals of their own, at zero
        covariance = covariance * seen[:, :, None] * seen[:, None, :] + torch.diag_embed(1 - seen)
        whole = dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(((x - self.loc) * seen).nan_to_num())
        return whole + 0.5 * math.log(2 * math.pi) * (1 - seen).sum(-1)

    def posterior(self, x: Float[Tensor, "batch data"], mask: Tensor | None = None) -> Distribution:
        r""":math:`p(z \mid x)`, a Gaussian, of the entries where the mask is true; with no mask of one covariance."""
        return dist.MultivariateNormal(*self._given(x, mask))

    def sample(self, num: int, *, seed: int | None = None) -> Float[Tensor, "num data"]:
        """``num`` draws of x from the model; with a seed, torch's own generator is left as it is."""
        if seed is not None:
            with seeded(seed, "linear_gaussian"):
                return self.sample(num)
        z = torch.randn(num, self.latent_dim, dtype=self.W.dtype)
        return self.loc + z @ self.W.T + self.scale * torch.randn(num, len(self.loc), dtype=self.W.dtype)

    def _given(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of p(z | x)."""
        if mask is None:
            return (x - self.loc) @ self._gain.T, self.posterior_covariance
        weights = mask.to(x) / self.scale.square()
        precision = torch.einsum("dk,nd,dl->nkl", self.W, weights, self.W) + torch.eye(self.latent_dim).to(x)
        covariance = torch.linalg.inv(precision)
        weighted = ((x - self.loc) * weights).nan_to_num() @ self.W
        return (covariance @ weighted[..., None])[..., 0], covariance


def linear_gaussian(*, W: Any, scale: Any = 1.0, loc: Any = 0.0) -> LinearGaussian:
    r"""The linear-Gaussian model, a VAE whose every quantity has a closed form.

    The conjugate problem in one dimension, :math:`x \mid z \sim \mathcal N(z, \tfrac12)`, is that of the example.

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


class BernoulliNetwork:
    r"""A network of one hidden layer whose log p(x) is known by summation; see :func:`bernoulli_network`."""

    def __init__(self, A: Tensor, B: Tensor, b: Tensor, c: Tensor) -> None:
        self.A, self.B, self.b, self.c = A, B, b, c
        self.latent_dim = B.shape[1]

    def logits(self, z: Float[Tensor, "*lead latent"]) -> Float[Tensor, "*lead data"]:
        r""":math:`A \tanh(B z + b) + c`."""
        return torch.tanh(z @ self.B.T + self.b) @ self.A.T + self.c

    def model(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
        """The Pyro program; with ``x=None`` it generates ``num`` datapoints."""
        size = len(x) if x is not None else (1 if num is None else num)
        zeros = self.B.new_zeros(self.latent_dim)
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, *, loc: Any = 0.0, scale: Any = 1.0) -> Callable[[Tensor], Tensor]:
        """One diagonal Gaussian for every x, by default the prior."""
        loc, scale = (torch.as_tensor(part, dtype=self.B.dtype).expand(self.latent_dim) for part in (loc, scale))

        def guide(x: Tensor) -> Tensor:
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        return guide

    def log_evidence(self, x: Float[Tensor, "batch data"]) -> Float[Tensor, " batch"]:
        r""":math:`\log p(x)` in nats per datapoint, summed in float64 over a grid whose halving changes nothing."""
        every, place = x.double().unique(dim=0, return_inverse=True)
        step, before = 0.2, self._summed(every, 0.4)
        while ((found := self._summed(every, step)) - before).abs().max() > 1e-11:
            step, before = step / 2, found
        return found[place].to(x.dtype)

    def sample(self, num: int, *, seed: int | None = None) -> Float[Tensor, "num data"]:
        """``num`` draws of x from the model; with a seed, torch's own generator is left as it is."""
        if seed is not None:
            with seeded(seed, "bernoulli_network"):
                return self.sample(num)
        return torch.bernoulli(torch.sigmoid(self.logits(torch.randn(num, self.latent_dim, dtype=self.B.dtype))))

    def _summed(self, x: Tensor, step: float) -> Tensor:
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
    r"""A VAE that is not linear, with binary data so few that log p(x) can be known for all of them.

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(A \tanh(B z + b) + c)), \quad
        \sum_x p(x) = 1

    Arguments:
        A: Outer weights ``[data, hidden]``.
        B: Inner weights ``[hidden, latent]``, of one or two latent dimensions.
        b, c: Biases ``[hidden]`` and ``[data]``.

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
