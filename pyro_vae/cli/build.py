"""The parts of a training run, made from its configuration: images, the untrained model and the objective."""

from __future__ import annotations

__all__ = ["Split", "build", "describe_test_set", "display_name", "objective_of", "split"]

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import data
from ..errors import ConfigError
from ..models.base import BaseVAE
from ..models.presets import burda_two_layer_vae, burda_vae, conv_vae, mlp_vae
from ..models.priors import VampPrior
from ..objectives import ELBO, IWAE, BetaVAE, Objective, Renyi, ReweightedWakeSleep
from ..ops.choices import Binarisation
from ..ops.seeds import seeded
from ..training.schedules import LinearWarmup
from .config import TrainConfig


class Split(NamedTuple):
    """The images of a run as they are presented to the model."""

    train: data.Pixels
    validation: data.Pixels | None
    test: Tensor
    """Binarised once and for all, if at all."""
    test_labels: Tensor


def split(config: TrainConfig, source: data.Dataset) -> Split:
    """Return the images of a data set, presented as the configuration says; some are held out for validation."""
    assert config.binarise is not None
    num_held_out = round(config.validation * len(source.x_train))
    cut = len(source.x_train) - num_held_out
    if not cut:
        raise ConfigError(f"validation={config.validation} leaves none of the {num_held_out} images to train on")
    once = "static" if config.binarise == "dynamic" else config.binarise

    def presented(x: Tensor, binarise: Binarisation, stream: int) -> data.Pixels:
        # The test set has the seed that the record names; the other images must not share its draws.
        return data.Pixels(x, binarise, max_value=source.max_value, seed=config.binarise_seed + 1_000_000 * stream)

    with seeded(config.binarise_seed, "held out"):  # files may be sorted, so the last images are not typical
        order = torch.randperm(len(source.x_train)) if num_held_out else torch.arange(cut)
    return Split(
        train=presented(source.x_train[order[:cut]], config.binarise, 1),
        validation=presented(source.x_train[order[cut:]], once, 2) if num_held_out else None,
        test=presented(source.x_test, once, 0)[:],
        test_labels=source.y_test,
    )


def build(config: TrainConfig, x_train: data.Pixels) -> BaseVAE:
    """Return the untrained model, with weights from the run's seed; its decoder starts at the mean training image."""
    assert config.latent_dim is not None
    common: dict[str, Any] = {"data_shape": x_train.shape, "data_mean": x_train.mean}
    with seeded(config.seed, "start"):
        if config.preset == "burda":
            return burda_vae(latent_dim=config.latent_dim, **common)
        if config.preset == "burda_two_layer":
            return burda_two_layer_vae(latent_dims=(2 * config.latent_dim, config.latent_dim), **common)
        make, width = (conv_vae, "channels") if config.preset == "conv" else (mlp_vae, "hidden")
        common |= {option: getattr(config, option) for option in (width, *_PARTS)}
        vae = make(num_levels=x_train.num_levels, **common)
        if isinstance(vae.prior, VampPrior):  # its pseudo-inputs start at training images, as far as there are any
            chosen = torch.randperm(len(x_train))[: config.num_components]
            vae.prior.pseudo_inputs.data[: len(chosen)] = x_train[chosen]
        return vae


_PARTS = ("latent_dim", "likelihood", "likelihood_scale", "relaxed", "prior", "num_components", "posterior")
"""The options that perceptrons and convolutions share."""


def objective_of(config: TrainConfig) -> Objective:
    """Return the objective, with its particles and its gradient."""
    particles: Any = {"num_particles": config.num_particles}
    gradient: Any = {"gradient": config.gradient or "total"}
    if config.objective == "iwae":
        return IWAE(**particles, **gradient)
    if config.objective == "renyi":
        return Renyi(alpha=config.alpha, **particles, **gradient)
    if config.objective == "wake_sleep":
        return ReweightedWakeSleep(gradient=config.gradient or "score", **particles)
    if config.objective == "beta_vae":
        beta = LinearWarmup(config.warmup_steps, end=config.beta) if config.warmup_steps else config.beta
        return BetaVAE(beta=beta, analytic_kl=config.analytic_kl, **particles)
    return ELBO(analytic_kl=config.analytic_kl, **particles, **gradient)


def describe_test_set(config: TrainConfig, x_test: Tensor) -> str:
    """Return in one line which images and which likelihood a run's numbers refer to."""
    shape, seed = " x ".join(map(str, x_test.shape[1:])), config.binarise_seed
    once = f"binarised once (seed {seed}; training: {config.binarise})"
    how = {"threshold": "binarised at 1/2", "none": "grey levels in [0, 1]"}.get(str(config.binarise), once)
    likelihood = _describe_likelihood(config)
    return f"{config.dataset} test set: {len(x_test)} images of {shape}, {how}; likelihood: {likelihood}"


def _describe_likelihood(config: TrainConfig) -> str:
    if config.relaxed and config.binarise == "none":
        return "relaxed Bernoulli (cross-entropy, not a log-density)"
    kind = {
        "bernoulli": "",
        "gaussian": f" ({config.likelihood_scale} scale; a density, which may exceed 1)",
        "continuous_bernoulli": " (a density, which may exceed 1)",
        "discretised_logistic": f" ({config.likelihood_scale} scale; a probability of stored levels)",
    }
    return display_name(config.likelihood) + kind[config.likelihood]


def display_name(option: str) -> str:
    """Return the value of an option as a title has it, such as "Continuous Bernoulli"."""
    return option.capitalize().replace("_b", " B").replace("_", " ")
