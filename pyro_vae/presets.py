"""Functions that assemble a VAE from public parts; nothing here could not be written by a user."""

from __future__ import annotations

__all__ = ["PRESETS", "burda_vae", "mlp_vae"]

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec

import torch

from .arrays import as_tensor
from .errors import ConfigError
from .likelihoods import Bernoulli, Gaussian, Likelihood
from .nn import MLP
from .posteriors import DiagonalNormal
from .priors import StandardNormal
from .vae import VAE

P = ParamSpec("P")

PRESETS: dict[str, Callable[..., VAE]] = {}
"""Every preset by name: what a checkpoint looks up to rebuild a model."""


def _preset(build: Callable[P, VAE]) -> Callable[P, VAE]:
    """Note in the VAE which preset made it and with which arguments, so that a checkpoint can rebuild it."""
    signature = inspect.signature(build)

    @wraps(build)
    def remember(*args: P.args, **kwargs: P.kwargs) -> VAE:
        vae = build(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: value for key, value in bound.arguments.items() if key != "data_mean"}
        vae.recipe = {"preset": build.__name__, **arguments}
        return vae

    PRESETS[build.__name__] = remember
    return remember


@_preset
def mlp_vae(
    *,
    data_shape: Sequence[int],
    latent_dim: int = 8,
    hidden: Sequence[int] = (200, 200),
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    likelihood_scale: float | Literal["learned", "decoder"] = "decoder",
    relaxed: bool = False,
    data_mean: Any = None,
    name: str = "vae",
) -> VAE:
    r"""A VAE with perceptrons on both sides: tanh units, N(0, I) prior, diagonal Gaussian posterior.

    Arguments:
        data_shape: The shape of one datapoint; images keep theirs, e.g. ``(28, 28)``.
        latent_dim: The number of latent dimensions.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: ``"bernoulli"`` for binary data, ``"gaussian"`` for real data.
        likelihood_scale: Where a Gaussian's :math:`\sigma_x` comes from, see :class:`~pyro_vae.likelihoods.Gaussian`.
        relaxed: Accept grey values under a Bernoulli, see :class:`~pyro_vae.likelihoods.Bernoulli`.
        data_mean: The mean of the training data; the decoder's output bias then starts where it predicts that mean.
        name: The prefix of the parameter names in Pyro's store.

    Example:
        >>> vae = mlp_vae(data_shape=(64,), latent_dim=2, hidden=(32,))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    observe = _likelihood(likelihood, data_shape, likelihood_scale, relaxed)
    posterior = DiagonalNormal(latent_dim)
    decoder = MLP(latent_dim, tuple(hidden)[::-1], observe.param_shape)
    if data_mean is not None:
        _start_at(decoder, observe, data_mean)
    return VAE(
        encoder=MLP(data_shape, hidden, posterior.param_shape),
        decoder=decoder,
        prior=StandardNormal(latent_dim),
        likelihood=observe,
        posterior=posterior,
        name=name,
    )


@_preset
def burda_vae(
    *, data_shape: Sequence[int] = (28, 28), latent_dim: int = 50, data_mean: Any = None, name: str = "vae"
) -> VAE:
    r"""The one-layer network of the IWAE paper: 784-200-200-(50)-200-200-784, tanh, Bernoulli, Glorot start.

    ``data_mean`` is the mean training image; its logit is where the decoder's output bias starts, as in the paper.

    References:
        | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)  https://arxiv.org/abs/1509.00519

    Example:
        >>> sum(p.numel() for p in burda_vae().parameters())
        425284
    """
    return mlp_vae(data_shape=data_shape, latent_dim=latent_dim, hidden=(200, 200), data_mean=data_mean, name=name)


def _likelihood(name: str, data_shape: Sequence[int], scale: Any, relaxed: bool) -> Likelihood:
    if name == "bernoulli":
        return Bernoulli(data_shape, relaxed=relaxed)
    if name == "gaussian":
        return Gaussian(data_shape, scale=scale)
    raise ConfigError(f"likelihood={name!r}: expected 'bernoulli' or 'gaussian'")


@torch.no_grad()
def _start_at(decoder: MLP, likelihood: Likelihood, data_mean: Any) -> None:
    mean = as_tensor(data_mean).to(decoder.output_bias).reshape(likelihood.data_shape)
    decoder.output_bias.copy_(likelihood.output_bias(mean))
