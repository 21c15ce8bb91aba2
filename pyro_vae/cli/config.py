"""One frozen dataclass: the Python configuration, the command line, and the ``config.json`` of a run."""

from __future__ import annotations

__all__ = ["TrainConfig"]

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional, arg

from ..errors import ConfigError, require_count


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, whole: data, model, objective, budget and seeds.

    Example:
        >>> TrainConfig.from_dict({"dataset": "digits", "latent_dims": 3})
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ConfigError: unknown option 'latent_dims': did you mean 'latent_dim'?
    """

    dataset: Positional[Literal["digits", "mnist", "fashion_mnist", "kmnist", "omniglot"]] = "digits"
    """The data. `digits` are embedded; the others come through torchvision."""
    preset: Literal["mlp", "conv", "burda", "burda_two_layer"] = "mlp"
    """The networks: perceptrons, convolutions, or those of the IWAE paper (tanh, 200-200), with one or two layers of
    latent variables."""
    latent_dim: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 2; burda: 50)")] = None
    """The number of latent dimensions; of the upper layer, if there are two."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    channels: tuple[int, ...] = (32, 64)
    """Channels of the convolutional encoder's stages; the decoder mirrors them."""
    likelihood: Literal["bernoulli", "gaussian", "continuous_bernoulli", "discretised_logistic"] = "bernoulli"
    """What p(x | z) is."""
    likelihood_scale: float | Literal["learned", "decoder"] = "decoder"
    """The scale of a Gaussian or discretised logistic: made by the decoder, learned per pixel, or a number."""
    prior: Literal["standard", "mixture", "vamp"] = "standard"
    """What p(z) is: N(0, 1), a mixture of Gaussians that is learned, or one of posteriors at learned pseudo-inputs."""
    num_components: int = 10
    """Of a mixture or vamp prior."""
    posterior: Literal["diagonal", "full"] = "diagonal"
    """The covariance of q(z | x)."""
    relaxed: bool = False
    """Accept grey values under a Bernoulli: a cross-entropy, not a log-density."""
    binarise: Annotated[
        Literal["static", "dynamic", "threshold", "none"] | None,
        arg(
            metavar="{static,dynamic,threshold,none}",
            help_behavior_hint="(default: dynamic under a Bernoulli of binary pixels, else none)",
        ),
    ] = None
    """How training images are presented: binarised once, anew each time (test images once), cut at 1/2, or grey."""
    binarise_seed: int = 0
    """The stored seed of everything that is binarised once. Independent of --seed, so that runs share a test set."""
    objective: Literal["elbo", "iwae", "renyi", "wake_sleep", "beta_vae"] = "elbo"
    """What is maximised; the history has the plain ELBO beside it."""
    gradient: Annotated[
        Literal["total", "path", "dreg", "reinforce", "reinforce_baseline", "rloo", "vimco", "score"] | None,
        arg(
            metavar="{total,path,dreg,reinforce,reinforce_baseline,rloo,vimco,score}",
            help_behavior_hint="(default: total; wake_sleep: score)",
        ),
    ] = None
    """How the gradient is estimated."""
    alpha: float = 0.5
    """The order of the Renyi bound."""
    beta: float = 4.0
    """The weight of the beta-VAE's KL term."""
    warmup_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: do not)")] = None
    """Let the beta-VAE's weight rise from 0 over so many steps."""
    num_particles: int = 1
    """Draws of z per datapoint and step."""
    analytic_kl: bool = False
    """Use the closed form of the KL term of the ELBO or the beta-VAE."""
    num_epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20; digits: 200)")] = None
    """Passes over the training data."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 3e-3
    """Adam's learning rate, at its start."""
    schedule: Literal["constant", "cosine", "burda"] = "cosine"
    """How the learning rate falls."""
    adam_eps: float = 1e-8
    """Adam's epsilon (1e-4 in the IWAE paper)."""
    max_grad_norm: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: do not)")] = None
    """Clip gradients to this norm."""
    validation: float = 0.1
    """The share of the training images held out to watch the bound on; 0 for none."""
    patience: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: do not)")] = None
    """Stop after this many epochs without a better validation bound, and keep the best weights."""
    eval_particles: int = 500
    """Draws per test image for log p(x)."""
    seed: int = 0
    """Of the starting weights, the order of the data, and all draws."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: $PYRO_VAE_DATA or data)")] = None
    """torchvision's data folder."""
    download: bool = False
    """Fetch missing data from the network."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: the next free runs/DATASET-N)")] = None
    """The run folder, new or empty."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():  # JSON has no parser that would do it
            if not _suits(getattr(self, name), hint):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {_spelled(hint)}")
        for name in ("hidden", "channels"):
            if any(width < 1 for width in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)}: expected widths of at least 1")
        if not isinstance(self.likelihood_scale, str) and not 0 < self.likelihood_scale < math.inf:
            raise ConfigError(f"likelihood_scale={self.likelihood_scale}: expected a positive number")
        for name in (
            "num_particles",
            "num_epochs",
            "batch_size",
            "latent_dim",
            "patience",
            "warmup_steps",
            "num_components",
        ):
            if (value := getattr(self, name)) is not None:
                require_count(name, value)
        for name in ("learning_rate", "max_grad_norm", "adam_eps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: expected a positive number")
        require_count("eval_particles", self.eval_particles, least=2, why=", since one draw has no error bar")
        if self.out is not None and not self.out.strip():
            raise ConfigError(f"out={self.out!r}: expected the name of a folder")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation={self.validation}: expected a share in [0, 1)")
        if self.patience is not None and self.validation == 0:
            raise ConfigError("patience needs held-out images: set validation above 0")
        if self.analytic_kl and self.objective not in ("elbo", "beta_vae"):
            raise ConfigError(f"analytic_kl belongs to objective='elbo' or 'beta_vae', found {self.objective!r}")
        if self.objective == "beta_vae" and self.gradient not in (None, "total"):
            raise ConfigError(f"objective='beta_vae' has gradient='total', found {self.gradient!r}")
        for name, objective in {"alpha": "renyi", "beta": "beta_vae", "warmup_steps": "beta_vae"}.items():
            if getattr(self, name) != type(self).__dict__[name] and self.objective != objective:
                raise ConfigError(f"{name} belongs to objective={objective!r}, found objective={self.objective!r}")
        if self.likelihood not in ("gaussian", "discretised_logistic") and self.likelihood_scale != "decoder":
            raise ConfigError(
                f"likelihood_scale belongs to likelihood='gaussian' or 'discretised_logistic', found "
                f"{self.likelihood!r}"
            )
        if self.likelihood != "bernoulli" and self.relaxed:
            raise ConfigError(f"relaxed belongs to likelihood='bernoulli', found {self.likelihood!r}")
        self._require_own_options()

    def _require_own_options(self) -> None:
        """Raise :class:`~pyro_vae.errors.ConfigError` for an option that this preset or prior does not have."""
        fixed = {"hidden", "channels", "likelihood", "relaxed", "prior", "posterior"}
        foreign = {"mlp": {"channels"}, "conv": {"hidden"}}.get(self.preset, fixed)
        if self.prior == "standard":
            foreign = foreign | {"num_components"}
        for name in sorted(foreign):
            if (value := getattr(self, name)) != type(self).__dict__[name]:
                where = "prior='standard'" if name == "num_components" else f"preset={self.preset!r}"
                raise ConfigError(f"{name}={value!r}: {where} has no such option: leave it out, or choose another")
        if self.likelihood == "discretised_logistic" and self.binarise not in (None, "none"):
            raise ConfigError(
                f"likelihood='discretised_logistic' is of stored grey levels, found binarise={self.binarise!r}"
            )

    def resolved(self) -> TrainConfig:
        """The same with every default filled in that depends on another option."""
        return dataclasses.replace(
            self,
            latent_dim=self.latent_dim or (50 if self.preset.startswith("burda") else 2),
            num_epochs=self.num_epochs or (200 if self.dataset == "digits" else 20),
            binarise=self.binarise or ("dynamic" if self.likelihood == "bernoulli" and not self.relaxed else "none"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> TrainConfig:
        """From JSON; an unknown key is a :class:`~pyro_vae.errors.ConfigError` with the nearest spelling."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in options:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
                raise ConfigError(f"unknown option {key!r}: {hint}")
        plain: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in options.items()}
        return cls(**plain)


def _suits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that an option may have."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in choices
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_suits(part, choices[0]) for part in value)
    if choices:
        return any(_suits(value, choice) for choice in choices)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spelled(hint: Any) -> str:
    """The type of an option in words."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, choices))
    if get_origin(hint) is tuple:
        return "a list of whole numbers"
    if choices:
        return " or ".join(map(_spelled, choices))
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(hint, "null")


def run_folder(config: TrainConfig) -> Path:
    """The folder of a new run: the one asked for, or the next free one of this data set."""
    if config.out is not None:
        return Path(config.out)
    number = 1
    while (folder := Path("runs") / f"{config.dataset}-{number}").exists():
        number += 1
    return folder
