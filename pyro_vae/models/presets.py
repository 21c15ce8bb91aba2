"""Functions that assemble a VAE from public parts; nothing here could not be written by a user."""

from __future__ import annotations

__all__ = ["PRESETS", "burda_two_layer_vae", "burda_vae", "conv_vae", "mlp_vae", "ppca_vae", "table_vae"]

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from ..errors import ConfigError
from ..ops.choices import LikelihoodName, PosteriorName, PriorName
from .base import BaseVAE
from .hierarchical import HierarchicalVAE
from .likelihoods import Bernoulli, Columns, Gaussian
from .nn import MLP, ConvDecoder, ConvEncoder
from .posteriors import DiagonalNormal
from .ppca import PPCA, PPCADecoder, PPCAEncoder
from .priors import StandardNormal
from .registry import (
    likelihood_named,
    posterior_named,
    prior_named,
    started_at_mean,
)
from .tabular import ColumnsEncoder, Kind
from .vae import VAE

P = ParamSpec("P")
Built = TypeVar("Built", bound=BaseVAE)
_START = ("data_mean", "data_covariance")  # where the parameters start is not needed to read others

PRESETS: dict[str, Callable[..., BaseVAE]] = {}
"""Every preset by name: what a checkpoint looks up to rebuild a model."""


def _preset(build: Callable[P, Built]) -> Callable[P, Built]:
    """Note in the VAE which preset made it and with which arguments, so that a checkpoint can rebuild it."""
    signature = inspect.signature(build)

    @wraps(build)
    def remember(*args: P.args, **kwargs: P.kwargs) -> Built:
        vae = build(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: value for key, value in bound.arguments.items() if key not in _START}
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
    likelihood: LikelihoodName = "bernoulli",
    likelihood_scale: float | Literal["learned", "decoder"] = "decoder",
    relaxed: bool = False,
    num_levels: int = 256,
    prior: PriorName = "standard",
    num_components: int = 10,
    posterior: PosteriorName = "diagonal",
    data_mean: Any = None,
    name: str = "vae",
) -> VAE:
    r"""A VAE with perceptrons of tanh units on both sides; by default with an N(0, I) prior and a diagonal posterior.

    Arguments:
        data_shape: The shape of one datapoint; images keep theirs, e.g. ``(28, 28)``.
        latent_dim: The number of latent dimensions.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: ``"bernoulli"`` for binary data, ``"gaussian"`` for real data, ``"continuous_bernoulli"`` for grey
            levels in [0, 1] as numbers, ``"discretised_logistic"`` for so many of them.
        likelihood_scale: Where the scale of a Gaussian or discretised logistic comes from, see
            :class:`~pyro_vae.likelihoods.Gaussian`.
        relaxed: Accept grey values under a Bernoulli, see :class:`~pyro_vae.likelihoods.Bernoulli`.
        num_levels: Of a discretised logistic.
        prior: ``"standard"``, ``"mixture"`` for a :class:`~pyro_vae.priors.GaussianMixture`, ``"vamp"`` for a
            :class:`~pyro_vae.priors.VampPrior`, whose pseudo-inputs start around ``data_mean``.
        num_components: Of a mixture or a VampPrior.
        posterior: ``"diagonal"``, or ``"full"`` for a Gaussian with full covariance.
        data_mean: The mean of the training data; the decoder's output bias then starts where it predicts that mean.
        name: The prefix of the parameter names in Pyro's store.

    Example:
        >>> vae = mlp_vae(data_shape=(64,), latent_dim=2, hidden=(32,))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    observe = likelihood_named(likelihood, data_shape, likelihood_scale, relaxed, num_levels)
    family = posterior_named(posterior, latent_dim)
    decoder = started_at_mean(MLP(latent_dim, tuple(hidden)[::-1], observe.param_shape), observe, data_mean)
    encoder = MLP(data_shape, hidden, family.param_shape)  # second: the order of the draws is part of what a seed means
    return VAE(
        encoder=encoder,
        decoder=decoder,
        prior=prior_named(prior, num_components, encoder, family, observe, data_mean),
        likelihood=observe,
        posterior=family,
        name=name,
    )


@_preset
def table_vae(
    *,
    kinds: Sequence[Kind],
    latent_dim: int = 8,
    hidden: Sequence[int] = (128,),
    prior: PriorName = "standard",
    num_components: int = 10,
    posterior: PosteriorName = "diagonal",
    data_mean: Any = None,
    name: str = "vae",
) -> VAE:
    r"""A VAE for tables with columns of different kinds, some of whose entries may be missing.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number of categories)``, see
            :class:`~pyro_vae.likelihoods.Columns`; standardise normal ones.
        latent_dim, hidden, prior, num_components, posterior, data_mean, name: As for :func:`mlp_vae`, but no VampPrior.

    Example:
        >>> vae = table_vae(kinds=["normal", "count", ("categorical", 3)], latent_dim=2, hidden=(16,))
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """
    if prior == "vamp":
        raise ConfigError("prior='vamp': pseudo-inputs are no categories: expected 'standard' or 'mixture'")
    observe, family = Columns(kinds), posterior_named(posterior, latent_dim)
    decoder = started_at_mean(MLP(latent_dim, tuple(hidden)[::-1], observe.param_shape), observe, data_mean)
    encoder = ColumnsEncoder(kinds, lambda size: MLP(size, hidden, family.param_shape))
    return VAE(
        encoder=encoder,
        decoder=decoder,
        prior=prior_named(prior, num_components, encoder, family, observe, data_mean),
        likelihood=observe,
        posterior=family,
        name=name,
    )


@_preset
def ppca_vae(
    *,
    data_shape: Sequence[int],
    latent_dim: int = 8,
    hidden: Sequence[int] = (128,),
    likelihood_scale: float | Literal["learned"] = "learned",
    scale_mixture: bool = False,
    data_mean: Any = None,
    data_covariance: Any = None,
    name: str = "vae",
) -> VAE:
    r"""A VAE of real-valued data that starts as probabilistic PCA, and learns by perceptrons what is not linear.

    Before a step of training it is the linear model with the greatest likelihood, and its guide the best diagonal
    Gaussian for that, whichever entries are missing; see :class:`~pyro_vae.models.ppca.PPCA`.

    Arguments:
        data_shape, latent_dim, hidden, name: As for :func:`mlp_vae`.
        likelihood_scale: Of the Gaussian likelihood: a number, or ``"learned"`` for one per entry of x.
        scale_mixture: Let the decoder scale each latent dimension, for data of which some are smoother, or less spread,
            than others.
        data_mean: The mean of the training data, ``data_shape``; zero by default.
        data_covariance: Their covariance, ``[d, d]`` for data of d entries, such as ``pandas.DataFrame(x).cov()`` of
            incomplete ones; by default the identity, which has no leading axes: with a learned scale, what is
            linear then starts at zero.

    Errors:
        ConfigError: for a covariance that does not belong to data of this shape.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> vae = ppca_vae(data_shape=(3,), latent_dim=1, data_covariance=torch.diag(torch.tensor([5.0, 1.0, 1.0])))
        >>> vae.decode(torch.ones(1, 1)).mean.detach().abs()
        tensor([[2., 0., 0.]])
    """
    known = None if likelihood_scale == "learned" else likelihood_scale
    start = PPCA.most_likely(data_shape, latent_dim, mean=data_mean, covariance=data_covariance, scale=known)
    return VAE(
        encoder=PPCAEncoder(hidden, start),
        decoder=PPCADecoder(tuple(hidden)[::-1], start, scale_mixture=scale_mixture),
        prior=StandardNormal(latent_dim),
        likelihood=Gaussian(data_shape, scale=likelihood_scale, start_scale=start.scale),
        posterior=DiagonalNormal(latent_dim),
        name=name,
    )


@_preset
def conv_vae(
    *,
    data_shape: Sequence[int],
    latent_dim: int = 16,
    channels: Sequence[int] = (32, 64),
    num_blocks: int = 1,
    likelihood: LikelihoodName = "bernoulli",
    likelihood_scale: float | Literal["learned", "decoder"] = "decoder",
    relaxed: bool = False,
    num_levels: int = 256,
    prior: PriorName = "standard",
    num_components: int = 10,
    posterior: PosteriorName = "diagonal",
    data_mean: Any = None,
    name: str = "vae",
) -> VAE:
    r"""A VAE with residual convolutions on both sides, for images ``(height, width)`` or ``(channels, height, width)``.

    Arguments:
        channels: The channels of each stage of the encoder, which halves the resolution; the decoder has them in
            reverse.
        num_blocks: Residual blocks per stage.
        data_shape, latent_dim, likelihood, likelihood_scale, relaxed, num_levels: As of :func:`mlp_vae`.
        prior, num_components, posterior, data_mean, name: As of :func:`mlp_vae`.

    Errors:
        ConfigError: for data that are no images, or too small for so many stages.

    Example:
        >>> vae = conv_vae(data_shape=(3, 32, 32), latent_dim=2, channels=(8, 16), likelihood="discretised_logistic")
        >>> vae.sample(3).shape
        torch.Size([3, 3, 32, 32])
    """
    observe = likelihood_named(likelihood, data_shape, likelihood_scale, relaxed, num_levels)
    family = posterior_named(posterior, latent_dim)
    decoder = ConvDecoder(latent_dim, tuple(channels)[::-1], observe.param_shape, num_blocks=num_blocks)
    encoder = ConvEncoder(data_shape, channels, family.param_shape, num_blocks=num_blocks)
    return VAE(
        encoder=encoder,
        decoder=started_at_mean(decoder, observe, data_mean),
        prior=prior_named(prior, num_components, encoder, family, observe, data_mean),
        likelihood=observe,
        posterior=family,
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


@_preset
def burda_two_layer_vae(
    *,
    data_shape: Sequence[int] = (28, 28),
    latent_dims: Sequence[int] = (100, 50),
    data_mean: Any = None,
    name: str = "vae",
) -> HierarchicalVAE:
    r"""The two-layer network of the IWAE paper: 784-200-200-(100)-100-100-(50) and mirrored, tanh, Bernoulli.

    Arguments:
        data_shape: The shape of one datapoint.
        latent_dims: The number of dimensions of z1 and of z2.
        data_mean: The mean training image; its logit is where the decoder's output bias starts, as in the paper.
        name: The prefix of the parameter names in Pyro's store.

    References:
        | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)  https://arxiv.org/abs/1509.00519

    Example:
        >>> sum(p.numel() for p in burda_two_layer_vae().parameters())
        521084
    """
    observe = Bernoulli(data_shape)
    low, high = latent_dims
    posteriors = [DiagonalNormal(low), DiagonalNormal(high)]
    return HierarchicalVAE(
        encoders=[
            MLP(data_shape, (200, 200), posteriors[0].param_shape),
            MLP(low, (100, 100), posteriors[1].param_shape),
        ],
        posteriors=posteriors,
        decoders=[
            started_at_mean(MLP(low, (200, 200), observe.param_shape), observe, data_mean),
            MLP(high, (100, 100), posteriors[0].param_shape),
        ],
        prior=StandardNormal(high),
        likelihood=observe,
        name=name,
    )
