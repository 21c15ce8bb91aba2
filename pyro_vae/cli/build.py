"""What a configuration means: data as they are presented, a model, an objective, and what the numbers refer to."""

from __future__ import annotations

__all__ = ["Split", "build", "objective_of", "plain_name", "protocol", "split"]

from typing import Any

import torch
from torch import Tensor

from .. import data
from ..errors import ConfigError
from ..models.base import BaseVAE
from ..models.presets import burda_two_layer_vae, burda_vae, conv_vae, mlp_vae
from ..models.priors import VampPrior
from ..objectives import ELBO, IWAE, BetaVAE, Objective, Renyi, ReweightedWakeSleep
from ..ops.seeds import seeded
from ..training.schedules import LinearWarmup
from .config import TrainConfig

Split = tuple[data.Pixels, data.Pixels | None, Tensor, Tensor]


def split(config: TrainConfig, source: data.Dataset) -> Split:
    """Training and validation images as they are presented; test images and labels, fixed once and for all."""
    assert config.binarise is not None
    num_held_out = round(config.validation * len(source.x_train))
    cut = len(source.x_train) - num_held_out
    if not cut:
        raise ConfigError(f"validation={config.validation} leaves none of the {num_held_out} images to train on")
    once = "static" if config.binarise == "dynamic" else config.binarise

    def presented(x: Tensor, binarise: data.Binarisation, stream: int) -> data.Pixels:
        # The test set has the seed that the record names; the other images must not share its draws.
        return data.Pixels(x, binarise, max_value=source.max_value, seed=config.binarise_seed + 1_000_000 * stream)

    with seeded(config.binarise_seed, "held out"):  # files may be sorted, so not just their end
        order = torch.randperm(len(source.x_train)) if num_held_out else torch.arange(cut)
    train = presented(source.x_train[order[:cut]], config.binarise, 1)
    held_out = presented(source.x_train[order[cut:]], once, 2) if num_held_out else None
    return train, held_out, presented(source.x_test, once, 0)[:], source.y_test


def build(config: TrainConfig, x_train: data.Pixels) -> BaseVAE:
    """The untrained model; its decoder starts at the mean of the training images."""
    assert config.latent_dim is not None
    shape, mean, latent_dim = x_train.shape, x_train.mean, config.latent_dim
    if config.preset == "burda":
        return burda_vae(data_shape=shape, latent_dim=latent_dim, data_mean=mean)
    if config.preset == "burda_two_layer":
        return burda_two_layer_vae(data_shape=shape, latent_dims=(2 * latent_dim, latent_dim), data_mean=mean)
    networks: Any = {"channels": config.channels} if config.preset == "conv" else {"hidden": config.hidden}
    vae = (conv_vae if config.preset == "conv" else mlp_vae)(
        data_shape=shape,
        latent_dim=latent_dim,
        likelihood=config.likelihood,
        likelihood_scale=config.likelihood_scale,
        relaxed=config.relaxed,
        num_levels=x_train.num_levels,
        prior=config.prior,
        num_components=config.num_components,
        posterior=config.posterior,
        data_mean=mean,
        **networks,
    )
    if isinstance(vae.prior, VampPrior):
        with torch.no_grad():
            chosen = torch.randperm(len(x_train))[: config.num_components]
            vae.prior.pseudo_inputs[: len(chosen)] = x_train[chosen]
    return vae


def objective_of(config: TrainConfig) -> Objective:
    """What is maximised, with its particles and its gradient."""
    particles, gradient = config.num_particles, config.gradient or "total"
    if config.objective == "beta_vae":
        beta = LinearWarmup(config.warmup_steps, end=config.beta) if config.warmup_steps else config.beta
        return BetaVAE(beta=beta, num_particles=particles, analytic_kl=config.analytic_kl)
    if config.objective == "wake_sleep":
        return ReweightedWakeSleep(num_particles=particles, gradient=config.gradient or "score")
    if config.objective == "renyi":
        return Renyi(alpha=config.alpha, num_particles=particles, gradient=gradient)
    if config.objective == "iwae":
        return IWAE(num_particles=particles, gradient=gradient)
    return ELBO(num_particles=particles, gradient=gradient, analytic_kl=config.analytic_kl)


def plain_name(option: str) -> str:
    """An option's value as a text has it: ``"Continuous Bernoulli"``."""
    return option.capitalize().replace("_b", " B").replace("_", " ")


def protocol(config: TrainConfig, x_test: Tensor) -> str:
    """What the numbers refer to, in one line."""
    shape = " x ".join(map(str, x_test.shape[1:]))
    if config.binarise in ("static", "dynamic"):
        how = f"binarised once (seed {config.binarise_seed}; training: {config.binarise})"
    else:
        how = {"threshold": "binarised at 1/2", "none": "grey levels in [0, 1]"}[str(config.binarise)]
    grey = config.relaxed and config.binarise == "none"
    what = "relaxed Bernoulli (cross-entropy, not a log-density)" if grey else plain_name(config.likelihood)
    if config.likelihood == "discretised_logistic":
        what += f" ({config.likelihood_scale} scale; a probability of stored levels)"
    elif config.likelihood != "bernoulli":
        scale = f"{config.likelihood_scale} scale; " if config.likelihood == "gaussian" else ""
        what += f" ({scale}a density, which may exceed 1)"
    return f"{config.dataset} test set: {len(x_test)} images of {shape}, {how}; likelihood: {what}"
