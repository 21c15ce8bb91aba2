"""The parts of a preset by name, and a decoder that starts at the mean of the data."""

from __future__ import annotations

__all__ = ["likelihood_named", "posterior_named", "prior_named", "started_at_mean"]

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.arrays import as_tensor
from ..errors import require_one_of
from .likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, Likelihood
from .nn import MLP, ConvDecoder
from .posteriors import DiagonalNormal, FullNormal, Posterior
from .priors import GaussianMixture, Prior, StandardNormal, VampPrior

Net = TypeVar("Net", MLP, ConvDecoder)


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
