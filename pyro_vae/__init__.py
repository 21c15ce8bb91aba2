"""Variational autoencoders as Pyro programs, and numbers for log p(x) that can be trusted.

Names are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VAE": "vae",
    "draw_particles": "particles",
    "Particles": "particles",
    "fit": "training",
    "History": "training_state",
    "evaluate": "evaluation",
    "Evaluation": "evaluation",
    "save": "checkpoint",
    "load": "checkpoint",
}
_MODULES = (
    "data",
    "diagnostics",
    "errors",
    "evidence",
    "likelihoods",
    "nn",
    "objectives",
    "plot",
    "posteriors",
    "presets",
    "priors",
    "problems",
    "weights",
)

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from . import (
        data,
        diagnostics,
        errors,
        evidence,
        likelihoods,
        nn,
        objectives,
        plot,
        posteriors,
        presets,
        priors,
        problems,
        weights,
    )
    from .checkpoint import load, save
    from .evaluation import Evaluation, evaluate
    from .particles import Particles, draw_particles
    from .training import fit
    from .training_state import History
    from .vae import VAE


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
