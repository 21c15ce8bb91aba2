"""Functions that assemble a VAE from public parts, as a user could."""

from __future__ import annotations

__all__ = ["PRESETS", "burda_two_layer_vae", "burda_vae", "conv_vae", "mlp_vae", "ppca_vae", "table_vae"]

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..data.arrays import as_tensor
from ..errors import ConfigError, require_one_of
from ..ops.choices import LikelihoodName, PosteriorName, PriorName
from .base import BaseVAE
from .hierarchical import HierarchicalVAE
from .likelihoods import (
    Bernoulli,
    Columns,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    Likelihood,
)
from .nn import MLP, ConvDecoder, ConvEncoder
from .posteriors import DiagonalNormal, FullNormal, Posterior
from .ppca import PPCA, PPCADecoder, PPCAEncoder
from .priors import GaussianMixture, Prior, StandardNormal, VampPrior
from .tabular import ColumnsEncoder, Kind
from .vae import VAE

P = ParamSpec("P")
Built = TypeVar("Built", bound=BaseVAE)
Net = TypeVar("Net", MLP, ConvDecoder)
_START = ("data_mean", "data_covariance")  # they set initial values only, which a checkpoint overwrites

PRESETS: dict[str, Callable[..., BaseVAE]] = {}
"""All presets by name, from which a checkpoint rebuilds its model."""


def _preset(build: Callable[P, Built]) -> Callable[P, Built]:
    """Make a preset record its name and arguments in the VAE, so that a checkpoint can rebuild it."""
    signature = inspect.signature(build)

    @wraps(build)
    def record(*args: P.args, **kwargs: P.kwargs) -> Built:
        vae = build(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: value for key, value in bound.arguments.items() if key not in _START}
        vae.recipe = {"preset": build.__name__, **arguments}
        return vae

    PRESETS[build.__name__] = record
    return record


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
    r"""A VAE with tanh perceptrons as encoder and decoder; by default with an N(0, I) prior and a diagonal posterior.

    Arguments:
        data_shape: The shape of one datapoint; images keep theirs, e.g. ``(28, 28)``.
        latent_dim: The number of latent dimensions.
        hidden: The widths of the encoder's hidden layers; the decoder has them in reverse order.
        likelihood: ``"bernoulli"`` for binary data, ``"gaussian"`` for real data, ``"continuous_bernoulli"`` for
            continuous grey levels in [0, 1], ``"discretised_logistic"`` for ``num_levels`` discrete ones.
        likelihood_scale: The source of the scale of a Gaussian or discretised logistic, see
            :class:`~pyro_vae.likelihoods.Gaussian`.
        relaxed: Accept grey values under a Bernoulli, see :class:`~pyro_vae.likelihoods.Bernoulli`.
        num_levels: The number of grey levels of a discretised logistic.
        prior: ``"standard"``, ``"mixture"`` for a :class:`~pyro_vae.priors.GaussianMixture`, or ``"vamp"`` for a
            :class:`~pyro_vae.priors.VampPrior` with pseudo-inputs that start around ``data_mean``.
        num_components: The number of components of a mixture or VampPrior.
        posterior: ``"diagonal"``, or ``"full"`` for a Gaussian with full covariance.
        data_mean: The mean of the training data; the decoder's initial output bias predicts it.
        name: The prefix of the parameter names in Pyro's store.

    Example:
        >>> vae = mlp_vae(data_shape=(64,), latent_dim=2, hidden=(32,))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    observe = likelihood_named(likelihood, data_shape, likelihood_scale, relaxed, num_levels)
    family = posterior_named(posterior, latent_dim)
    decoder = started_at_mean(MLP(latent_dim, tuple(hidden)[::-1], observe.param_shape), observe, data_mean)
    encoder = MLP(data_shape, hidden, family.param_shape)  # after the decoder, so that a seed keeps its initial weights
    p = prior_named(prior, num_components, encoder, family, observe, data_mean)
    return VAE(encoder=encoder, decoder=decoder, prior=p, likelihood=observe, posterior=family, name=name)


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
    r"""A VAE for tables with columns of different kinds, in which entries may be missing.

    Arguments:
        kinds: For each column ``"normal"``, ``"count"`` or ``("categorical", number of categories)``, see
            :class:`~pyro_vae.likelihoods.Columns`; standardise normal columns.
        latent_dim, hidden, prior, num_components, posterior, data_mean, name: As for :func:`mlp_vae`, except that
            there is no VampPrior.

    Example:
        >>> vae = table_vae(kinds=["normal", "count", ("categorical", 3)], latent_dim=2, hidden=(16,))
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """
    if prior == "vamp":
        raise ConfigError("prior='vamp': expected 'standard' or 'mixture', since pseudo-inputs cannot be categories")
    observe, family = Columns(kinds), posterior_named(posterior, latent_dim)
    decoder = started_at_mean(MLP(latent_dim, tuple(hidden)[::-1], observe.param_shape), observe, data_mean)
    encoder = ColumnsEncoder(kinds, lambda size: MLP(size, hidden, family.param_shape))
    p = prior_named(prior, num_components, encoder, family, observe, data_mean)
    return VAE(encoder=encoder, decoder=decoder, prior=p, likelihood=observe, posterior=family, name=name)


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
    r"""A VAE of real-valued data that starts as probabilistic PCA; its perceptrons learn the non-linear remainder.

    At the start its model is the maximum-likelihood linear model, and its guide is the best diagonal Gaussian for that
    model, whichever entries are missing; see :class:`~pyro_vae.models.ppca.PPCA`.

    Arguments:
        data_shape, latent_dim, hidden, name: As for :func:`mlp_vae`.
        likelihood_scale: The scale of the Gaussian likelihood: a number, or ``"learned"`` for one per entry of x.
        scale_mixture: Let the decoder scale each latent dimension, for data that differ in smoothness or spread.
        data_mean: The mean of the training data, ``data_shape``; zero by default.
        data_covariance: The covariance of the training data, ``[d, d]`` for d entries; for incomplete data for instance
            ``pandas.DataFrame(x).cov()``. The default is the identity, which has no leading axes: the linear part then
            starts at zero if the scale is learned.

    Errors:
        ConfigError: for a covariance that does not fit data of this shape.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> vae = ppca_vae(data_shape=(3,), latent_dim=1, data_covariance=torch.diag(torch.tensor([5.0, 1.0, 1.0])))
        >>> vae.decode(torch.ones(1, 1)).mean.detach().abs()
        tensor([[2., 0., 0.]])
    """
    scale = None if likelihood_scale == "learned" else likelihood_scale
    start = PPCA.maximum_likelihood(data_shape, latent_dim, mean=data_mean, covariance=data_covariance, scale=scale)
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
    r"""A VAE with residual convolutions, for images ``(height, width)`` or ``(channels, height, width)``.

    Arguments:
        channels: The number of channels of each stage of the encoder, which halves the resolution; the decoder has
            them in reverse order.
        num_blocks: The number of residual blocks per stage.
        data_shape, latent_dim, likelihood, likelihood_scale, relaxed, num_levels: As for :func:`mlp_vae`.
        prior, num_components, posterior, data_mean, name: As for :func:`mlp_vae`.

    Errors:
        ConfigError: for data that are not images, or are too small for the number of stages.

    Example:
        >>> vae = conv_vae(data_shape=(3, 32, 32), latent_dim=2, channels=(8, 16), likelihood="discretised_logistic")
        >>> vae.sample(3).shape
        torch.Size([3, 3, 32, 32])
    """
    observe = likelihood_named(likelihood, data_shape, likelihood_scale, relaxed, num_levels)
    family = posterior_named(posterior, latent_dim)
    decoder = ConvDecoder(latent_dim, tuple(channels)[::-1], observe.param_shape, num_blocks=num_blocks)
    encoder = ConvEncoder(data_shape, channels, family.param_shape, num_blocks=num_blocks)
    decoder = started_at_mean(decoder, observe, data_mean)
    p = prior_named(prior, num_components, encoder, family, observe, data_mean)
    return VAE(encoder=encoder, decoder=decoder, prior=p, likelihood=observe, posterior=family, name=name)


@_preset
def burda_vae(
    *, data_shape: Sequence[int] = (28, 28), latent_dim: int = 50, data_mean: Any = None, name: str = "vae"
) -> VAE:
    r"""The one-layer network of the IWAE paper: 784-200-200-(50)-200-200-784, tanh, Bernoulli, Glorot initialisation.

    ``data_mean`` is the mean training image; the decoder's output bias starts at its logit, as in the paper.

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
    r"""The two-layer network of the IWAE paper: 784-200-200-(100)-100-100-(50) and its mirror, tanh, Bernoulli.

    Arguments:
        data_shape: The shape of one datapoint.
        latent_dims: The number of dimensions of z1 and of z2.
        data_mean: The mean training image; the decoder's output bias starts at its logit, as in the paper.
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


def likelihood_named(name: str, data_shape: Sequence[int], scale: Any, relaxed: bool, num_levels: int) -> Likelihood:
    constructors: dict[str, Callable[[], Likelihood]] = {
        "bernoulli": lambda: Bernoulli(data_shape, relaxed=relaxed),
        "gaussian": lambda: Gaussian(data_shape, scale=scale),
        "continuous_bernoulli": lambda: ContinuousBernoulli(data_shape),
        "discretised_logistic": lambda: DiscretisedLogistic(data_shape, num_levels=num_levels, scale=scale),
    }
    require_one_of("likelihood", name, constructors)
    return constructors[name]()


def posterior_named(name: str, latent_dim: int) -> Posterior:
    constructors: dict[str, Callable[[], Posterior]] = {
        "diagonal": lambda: DiagonalNormal(latent_dim),
        "full": lambda: FullNormal(latent_dim),
    }
    require_one_of("posterior", name, constructors)
    return constructors[name]()


def prior_named(
    name: str, num: int, encoder: nn.Module, posterior: Posterior, observe: Likelihood, data_mean: Any
) -> Prior:
    latent_dim = posterior.latent_dim
    constructors: dict[str, Callable[[], Prior]] = {
        "standard": lambda: StandardNormal(latent_dim),
        "mixture": lambda: GaussianMixture(latent_dim, num_components=num),
        "vamp": lambda: VampPrior(_around(data_mean, num, observe), encoder, posterior, latent_dim=latent_dim),
    }
    require_one_of("prior", name, constructors)
    return constructors[name]()


def _around(data_mean: Any, num: int, observe: Likelihood) -> Tensor:
    """Return the initial pseudo-inputs: the mean of the data plus a little noise."""
    mean = torch.zeros(observe.data_shape) if data_mean is None else as_tensor(data_mean).float()
    return mean + 0.1 * torch.randn(num, *observe.data_shape)


@torch.no_grad()
def started_at_mean(decoder: Net, likelihood: Likelihood, data_mean: Any) -> Net:
    """Return the decoder with an output bias that predicts the mean of the data."""
    if data_mean is not None:
        mean = as_tensor(data_mean).to(decoder.output_bias).reshape(likelihood.data_shape)
        decoder.output_bias.copy_(likelihood.output_bias(mean))
    return decoder
