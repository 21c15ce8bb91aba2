"""The pictures of a run: each view has a name, the models that it suits, and a function that draws it."""

from __future__ import annotations

__all__ = ["SAMPLES_TITLE", "VIEWS", "TrainedRun", "draw"]

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributions import MultivariateNormal

from .. import diagnostics, plot
from ..errors import ConfigError, require_one_of
from ..models.base import BaseVAE
from ..models.priors import StandardNormal
from ..ops.seeds import seeded
from ..training.state import Epoch
from .build import Split, display_name, objective_of
from .config import TrainConfig

SAMPLES_TITLE = "means E[x | z] for z drawn from the prior"
_MOST_ELLIPSES = 1000  # more cannot be told apart
_MOST_SAMPLES = 500
_MOST_TRAVERSED = 16  # dimensions, those of the largest KL divergence


class TrainedRun(NamedTuple):
    """A trained model, its configuration, the history of its training, and its images."""

    config: TrainConfig
    vae: BaseVAE
    epochs: list[Epoch]
    images: Split


class View(NamedTuple):
    """A picture: values of a run, drawn by a function of :mod:`pyro_vae.plot`."""

    draw: Callable[[TrainedRun], Any]
    standard: bool = True
    """Whether it is drawn at the end of training."""
    planar: bool = False
    """Whether it needs two latent dimensions with N(0, 1) as their prior."""


def draw(run: TrainedRun, folder: str | Path, views: Sequence[str] = ()) -> list[Path]:
    """Draw views, by default all standard ones that suit this model, into ``folder``; return the files.

    Errors:
        ConfigError: for an unknown view, or one that needs another latent space.
    """
    prior, num = type(run.vae.prior), sum(run.vae.latent_dims.values())
    planar = run.vae.latent_dims == {"z": 2} and prior is StandardNormal
    for name in views:
        require_one_of("view", name, VIEWS)
        if VIEWS[name].planar and not planar:
            raise ConfigError(f"view {name!r} needs two latent dimensions under N(0, 1), found {num}, {prior.__name__}")
    standard = [name for name, view in VIEWS.items() if view.standard and (planar or not view.planar)]
    paths = []
    for name in views or standard:
        with seeded(run.config.seed, "pictures", name), torch.no_grad():
            paths.append(Path(folder) / f"{name}.png")
            plot.save(VIEWS[name].draw(run), paths[-1])
    return paths


def _history(run: TrainedRun) -> Any:
    config = run.config
    objective = config.objective.upper().replace("_", " ") + (f" ({config.gradient})" if config.gradient else "")
    return plot.history(
        run.epochs,
        title=f"{config.dataset}, {display_name(config.likelihood)}: {objective}",
        label="bound" if objective_of(config).side == "lower" else "what is maximised",
    )


def _reconstructions(run: TrainedRun) -> Any:
    x = run.images.test[:12]
    return plot.reconstructions(x, run.vae.reconstruct(x), title="test images and E[x | z] at z = E[z | x]")


def _samples(run: TrainedRun) -> Any:
    return plot.images(run.vae.decode(run.vae.sample_latents(100)).mean, title=SAMPLES_TITLE)


def _manifold(run: TrainedRun) -> Any:
    z, grid = plot.latent_grid(20 if min(run.vae.data_shape) >= 16 else 12)
    return plot.manifold(run.vae.decode(grid).mean, z, title="means E[x | z] on a grid of quantiles of the prior")


def _latents(run: TrainedRun) -> Any:
    q, scale = run.vae.encode(run.images.test), None
    if len(run.images.test) <= _MOST_ELLIPSES:
        scale = q.scale_tril if isinstance(q, MultivariateNormal) else q.stddev
    title = f"{run.config.dataset} test set: posterior means by class"
    return plot.latents(q.mean, run.images.test_labels, scale=scale, title=title)


def _interpolations(run: TrainedRun) -> Any:
    start, end = run.images.test[:8], run.images.test[8:16]
    z = run.vae.encode(torch.stack([start, end])).mean
    paths = torch.lerp(z[0, :, None], z[1, :, None], torch.linspace(0, 1, 10)[:, None])
    title = "test images and E[x | z] on straight lines between their E[z | x]"
    return plot.interpolations(start, run.vae.decode(paths).mean, end, title=title)


def _neighbours(run: TrainedRun) -> Any:
    x_train, x_test = run.images.train[:], run.images.test[:_MOST_SAMPLES]
    x = run.vae.sample(len(x_test))
    found = diagnostics.nearest_neighbours(x, x_train)
    usual = diagnostics.nearest_neighbours(x_test, x_train).distance.mean()
    title = f"draws of x from the model: mean distance {found.distance.mean():.2f}; test images: {usual:.2f}"
    return plot.neighbours(x[:12], x_train[found.place[:12]], found.distance[:12], title=title)


def _traversals(run: TrainedRun) -> Any:
    vae, x = run.vae, run.images.test
    loc = vae.encode(x).mean
    kl = diagnostics.latent_summary(vae.model, vae.guide, x)[next(iter(vae.latent_dims))].kl  # the decoder reads these
    largest = kl.argsort(descending=True, stable=True)[:_MOST_TRAVERSED]
    nats = ["" if value.isnan() else f": {value:.2f} nats" for value in kl[largest]]  # nan: no closed form
    levels, z = plot.traversal_grid(loc, loc[0])
    return plot.traversals(
        vae.decode(z[largest]).mean,
        names=[f"$z_{{{dim + 1}}}${text}" for dim, text in zip(largest.tolist(), nats, strict=True)],
        levels=levels,
        title="means E[x | z] from a test image's z, one dimension at a time",
    )


VIEWS: dict[str, View] = {
    "history": View(_history),
    "reconstructions": View(_reconstructions),
    "samples": View(_samples),
    "manifold": View(_manifold, planar=True),
    "latents": View(_latents, planar=True),
    "interpolations": View(_interpolations, standard=False),
    "neighbours": View(_neighbours, standard=False),
    "traversals": View(_traversals, standard=False),
}
