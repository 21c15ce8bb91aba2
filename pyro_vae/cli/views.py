"""The pictures of a run: each view is a name, when it can be drawn, and how."""

from __future__ import annotations

__all__ = ["SAMPLES_TITLE", "VIEWS", "Scene", "draw"]

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from .. import data, diagnostics, plot
from ..errors import ConfigError
from ..models.base import BaseVAE
from ..models.priors import StandardNormal
from ..ops.seeds import seeded
from ..training.state import Epoch
from .build import objective_of, plain_name
from .config import TrainConfig

SAMPLES_TITLE = "means E[x | z] for z drawn from the prior"


class Scene(NamedTuple):
    """What there is to look at: a trained model, how it was trained, and the data."""

    config: TrainConfig
    vae: BaseVAE
    epochs: list[Epoch]
    x_train: data.Pixels
    x_test: Tensor
    y_test: Tensor


class View(NamedTuple):
    """A picture: values of a scene, drawn by a function of :mod:`pyro_vae.plot`."""

    draw: Callable[[Scene], Any]
    standard: bool = True
    """Whether it is drawn without being asked for."""
    planar: bool = False
    """Whether it needs two latent dimensions, and N(0, 1) as their prior, in which it is measured."""


def draw(scene: Scene, folder: str | Path, views: Sequence[str] | None = None) -> list[Path]:
    """Draw the named views, or all standard ones that this model has, into ``folder``.

    Errors:
        ConfigError: for a view that there is not, or that needs another latent space.
    """
    prior, num = type(scene.vae.prior), sum(scene.vae.latent_dims.values())
    planar = scene.vae.latent_dims == {"z": 2} and prior is StandardNormal
    chosen = [name for name, view in VIEWS.items() if view.standard and (planar or not view.planar)]
    for name in views or ():
        if name not in VIEWS:
            raise ConfigError(f"view {name!r}: expected one of {', '.join(VIEWS)}")
        if VIEWS[name].planar and not planar:
            raise ConfigError(f"view {name!r} needs two latent dimensions under N(0, 1), found {num}, {prior.__name__}")
    paths = []
    for name in views or chosen:
        with seeded(scene.config.seed, "pictures", name), torch.no_grad():
            paths.append(Path(folder) / f"{name}.png")
            plot.save(VIEWS[name].draw(scene), paths[-1])
    return paths


def _history(scene: Scene) -> Any:
    config = scene.config
    objective = config.objective.upper().replace("_", " ") + (f" ({config.gradient})" if config.gradient else "")
    return plot.history(
        scene.epochs,
        title=f"{config.dataset}, {plain_name(config.likelihood)}: {objective}",
        label="bound" if objective_of(config).side == "lower" else "what is maximised",
    )


def _reconstructions(scene: Scene) -> Any:
    x = scene.x_test[:12]
    return plot.reconstructions(x, scene.vae.reconstruct(x), title="test images and E[x | z] at z = E[z | x]")


def _samples(scene: Scene) -> Any:
    return plot.images(scene.vae.decode(scene.vae.sample_latents(100)).mean, title=SAMPLES_TITLE)


def _manifold(scene: Scene) -> Any:
    z, grid = plot.latent_grid(20 if min(scene.vae.data_shape) >= 16 else 12)
    return plot.manifold(scene.vae.decode(grid).mean, z, title="means E[x | z] on a grid of quantiles of the prior")


def _latents(scene: Scene) -> Any:
    q = scene.vae.encode(scene.x_test)
    scale = q.scale_tril if isinstance(q, MultivariateNormal) else q.stddev
    title = f"{scene.config.dataset} test set: posterior means by class"
    return plot.latents(q.mean, scene.y_test, scale=scale if len(scene.x_test) <= _MOST_ELLIPSES else None, title=title)


def _interpolations(scene: Scene) -> Any:
    start, end = scene.x_test[:8], scene.x_test[8:16]
    z = scene.vae.encode(torch.stack([start, end])).mean
    paths = torch.lerp(z[0, :, None], z[1, :, None], torch.linspace(0, 1, 10)[:, None])
    title = "test images and E[x | z] on straight lines between their E[z | x]"
    return plot.interpolations(start, scene.vae.decode(paths).mean, end, title=title)


def _neighbours(scene: Scene) -> Any:
    x_train, x = scene.x_train[:], scene.vae.sample(min(len(scene.x_test), _MOST_SAMPLES))
    found = diagnostics.nearest_neighbours(x, x_train)
    usual = diagnostics.nearest_neighbours(scene.x_test[: len(x)], x_train).distance.mean()
    title = f"draws of x from the model: mean distance {found.distance.mean():.2f}; test images: {usual:.2f}"
    return plot.neighbours(x[:12], x_train[found.place[:12]], found.distance[:12], title=title)


def _traversals(scene: Scene) -> Any:
    loc = scene.vae.encode(scene.x_test).mean
    summary = diagnostics.latent_summary(scene.vae.model, scene.vae.guide, scene.x_test)
    kl = summary[next(iter(scene.vae.latent_dims))].kl  # of the latents that the decoder reads
    most = kl.argsort(descending=True, stable=True)[:_MOST_TRAVERSED]
    told = {place: "" if kl[place].isnan() else f": {kl[place]:.2f} nats" for place in most.tolist()}  # no closed form
    levels, z = plot.traversal_grid(loc, loc[0])
    return plot.traversals(
        scene.vae.decode(z[most]).mean,
        names=[f"$z_{{{place + 1}}}${kl_of}" for place, kl_of in told.items()],
        levels=levels,
        title="means E[x | z] from a test image's z, one dimension at a time",
    )


_MOST_ELLIPSES = 1000  # more cannot be told apart
_MOST_SAMPLES = 500
_MOST_TRAVERSED = 16  # dimensions, those of the largest KL divergence

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
