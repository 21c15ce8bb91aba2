"""The configuration of a training run: one frozen dataclass for Python, the command line and ``config.json``."""

from __future__ import annotations

__all__ = ["TrainConfig", "alternatives", "unknown"]

import dataclasses
import difflib
import math
from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError, require_count, require_one_of
from ..ops import choices


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: data, model, objective, budget and seeds. The text under each option is its help.

    Example:
        >>> TrainConfig.from_dict({"dataset": "digits", "latent_dims": 3})
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: unknown option 'latent_dims': did you mean 'latent_dim'?
    """

    dataset: choices.DatasetName = "digits"
    """The data set. `digits` is part of scikit-learn; the others come through torchvision."""
    preset: choices.PresetName = "mlp"
    """The networks: perceptrons, convolutions, or those of the IWAE paper (tanh, 200-200) with 1 or 2 latent layers."""
    latent_dim: int | None = None
    """The number of latent dimensions; with two layers, of the upper one. (default: 2; burda: 50)"""
    hidden: tuple[int, ...] = (200, 200)
    """The widths of the encoder's hidden layers; the decoder mirrors them."""
    channels: tuple[int, ...] = (32, 64)
    """The channels of the convolutional encoder's stages; the decoder mirrors them."""
    likelihood: choices.LikelihoodName = "bernoulli"
    """The family of p(x | z)."""
    likelihood_scale: float | Literal["learned", "decoder"] = "decoder"
    """The scale of a Gaussian or discretised logistic: made by the decoder, learned per pixel, or a number."""
    prior: choices.PriorName = "standard"
    """The prior p(z): N(0, 1), a learned mixture of Gaussians, or a mixture of posteriors at learned pseudo-inputs."""
    num_components: int = 10
    """The number of components of a mixture or vamp prior."""
    posterior: choices.PosteriorName = "diagonal"
    """The covariance of q(z | x)."""
    relaxed: bool = False
    """Accept grey values under a Bernoulli: a cross-entropy, not a log-density."""
    binarise: choices.Binarisation | None = None
    """The presentation of training images: binarised once, binarised anew each time (test images once), cut at 1/2, or
    grey. (default: dynamic under a Bernoulli of binary pixels, else none)"""
    binarise_seed: int = 0
    """The seed of everything that is binarised once. It is independent of --seed, so that runs share a test set."""
    objective: choices.ObjectiveName = "elbo"
    """The objective to maximise; the history has the plain ELBO beside it."""
    gradient: choices.GradientName | None = None
    """The estimator of the gradient. (default: total; wake_sleep: score)"""
    alpha: float = 0.5
    """The order of the Renyi bound."""
    beta: float = 4.0
    """The weight of the beta-VAE's KL term."""
    warmup_steps: int | None = None
    """The number of steps over which the beta-VAE's weight rises from 0. (default: off)"""
    num_particles: int = 1
    """The number of draws of z per datapoint and step."""
    analytic_kl: bool = False
    """Use the closed form of the KL term of the ELBO or the beta-VAE."""
    num_epochs: int | None = None
    """The number of passes over the training data. (default: 20; digits: 200)"""
    batch_size: int = 64
    """The number of images per step."""
    learning_rate: float = 3e-3
    """Adam's learning rate at the start of training."""
    schedule: choices.Schedule = "cosine"
    """The schedule by which the learning rate falls."""
    adam_eps: float = 1e-8
    """Adam's epsilon (1e-4 in the IWAE paper)."""
    max_grad_norm: float | None = None
    """Clip gradients to this norm. (default: off)"""
    validation: float = 0.1
    """The share of the training images that is held out for the validation bound; 0 for none."""
    patience: int | None = None
    """Stop after this number of epochs without a better validation bound, and keep the best weights. (default: off)"""
    eval_particles: int = 500
    """The number of draws per test image for log p(x)."""
    seed: int = 0
    """The seed of the starting weights, the order of the data, and all draws."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    data_dir: str | None = None
    """torchvision's data folder. (default: $PYRO_VAE_DATA or data)"""
    download: bool = False
    """Download the data if they are missing."""
    out: str | None = None
    """The run folder, new or empty. (default: the next free runs/DATASET-N)"""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            _require_type(name, getattr(self, name), hint)
        self._check_counts()
        self._check_ranges()
        self._check_owners()
        self._check_combinations()

    def _check_counts(self) -> None:
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None:
                require_count(name, value)
        require_count("eval_particles", self.eval_particles, least=2, why=", since one draw has no error bar")
        for name in ("hidden", "channels"):
            if any(width < 1 for width in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)}: expected widths of at least 1")

    def _check_ranges(self) -> None:
        for name in ("learning_rate", "max_grad_norm", "adam_eps", "likelihood_scale"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}: expected a positive finite number")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation={self.validation}: expected a share in [0, 1)")
        if self.out is not None and not self.out.strip():
            raise ConfigError(f"out={self.out!r}: expected the name of a folder")

    def _check_owners(self) -> None:
        """Refuse an option that is set although this run does not use it."""
        for name, owner, users in _OWNERS:
            value, found = getattr(self, name), getattr(self, owner)
            if value != getattr(type(self), name) and found not in users:
                raise ConfigError(
                    f"{name}={value!r} belongs to {owner}={' or '.join(map(repr, users))}, found {owner}={found!r}: "
                    f"leave it out, or choose another {owner}"
                )

    def _check_combinations(self) -> None:
        if self.patience is not None and self.validation == 0:
            raise ConfigError(f"patience={self.patience} needs held-out images: set validation above 0")
        if self.objective == "beta_vae" and self.gradient not in (None, "total"):
            raise ConfigError(f"gradient={self.gradient!r}: expected 'total' under objective='beta_vae'")
        if self.likelihood == "discretised_logistic" and self.binarise not in (None, "none"):
            raise ConfigError(f"binarise={self.binarise!r}: expected 'none' under likelihood='discretised_logistic'")

    def resolved(self) -> TrainConfig:
        """Return the same configuration with every default filled in that depends on another option."""
        return dataclasses.replace(
            self,
            latent_dim=self.latent_dim or (50 if self.preset.startswith("burda") else 2),
            num_epochs=self.num_epochs or (200 if self.dataset == "digits" else 20),
            binarise=self.binarise or ("dynamic" if self.likelihood == "bernoulli" and not self.relaxed else "none"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dictionary that can be written as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> TrainConfig:
        """Return the configuration that :meth:`to_dict` wrote; options that are missing have their defaults.

        Errors:
            ConfigError: for an unknown option, with the nearest spelling, and for a value that cannot be used.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise unknown("option", name, known, f"expected one of {', '.join(known)}")
        lists_as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        return cls(**lists_as_tuples)


_COUNTS = ("num_particles", "num_epochs", "batch_size", "latent_dim", "patience", "warmup_steps", "num_components")
"""The options that are whole numbers of at least 1, where they are given."""

_OWNERS = (
    ("hidden", "preset", ("mlp",)),
    ("channels", "preset", ("conv",)),
    ("likelihood", "preset", ("mlp", "conv")),
    ("relaxed", "preset", ("mlp", "conv")),
    ("prior", "preset", ("mlp", "conv")),
    ("posterior", "preset", ("mlp", "conv")),
    ("num_components", "prior", ("mixture", "vamp")),
    ("likelihood_scale", "likelihood", ("gaussian", "discretised_logistic")),
    ("relaxed", "likelihood", ("bernoulli",)),
    ("alpha", "objective", ("renyi",)),
    ("beta", "objective", ("beta_vae",)),
    ("warmup_steps", "objective", ("beta_vae",)),
    ("analytic_kl", "objective", ("elbo", "beta_vae")),
)
"""An option, the other option that it belongs to, and the values of that one under which it is used."""


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str) -> ConfigError:
    """Return the error for a name that is not known, with the nearest spelling or, if nothing is near, other advice."""
    near = difflib.get_close_matches(name, list(known), 1)
    return ConfigError(f"unknown {kind} {name!r}: {f'did you mean {near[0]!r}?' if near else otherwise}")


def alternatives(hint: Any) -> list[Any]:
    """Return the types and the names that a value may be: ``[float, "learned"]`` of ``float | Literal["learned"]``."""
    if get_origin(hint) in (tuple, None):
        return [hint]
    return [each for part in get_args(hint) for each in alternatives(part)]


def _require_type(name: str, value: Any, hint: Any) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` unless a value, from JSON for instance, is of an option's type."""
    kinds = alternatives(hint)
    if any(_fits(value, kind) for kind in kinds):
        return
    names = [kind for kind in kinds if isinstance(kind, str)]
    if names and float not in kinds:
        require_one_of(name, value, names)
    spelled = [_SPELLINGS.get(get_origin(kind) or kind, repr(kind)) for kind in kinds if kind is not NoneType]
    raise ConfigError(f"{name}={value!r}: expected {' or '.join(spelled)}")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of this type, or has this name."""
    if isinstance(kind, str):
        return value == kind
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    return kind is bool if isinstance(value, bool) else isinstance(value, (int, float) if kind is float else kind)


_SPELLINGS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    tuple: "a list of integers",
}
