"""Variational autoencoders as Pyro programs, and numbers for log p(x) that can be trusted.

Names are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Comparison",
    "Evaluation",
    "GaussianFields",
    "HierarchicalVAE",
    "History",
    "Imputation",
    "Incomplete",
    "Particles",
    "Prediction",
    "Refinement",
    "__version__",
    "compare",
    "data",
    "decoder_prior",
    "diagnostics",
    "draw_particles",
    "embed",
    "errors",
    "evaluate",
    "evidence",
    "fit",
    "impute",
    "likelihoods",
    "load",
    "nn",
    "objectives",
    "plot",
    "posterior_predictive",
    "posteriors",
    "predict",
    "presets",
    "prior_predictive",
    "priors",
    "problems",
    "refine",
    "save",
    "schedules",
    "simulation",
    "to_arviz",
    "to_datatree",
    "weights",
]

# Where a name lives that is not a module itself.
_HOMES = {
    "VAE": "vae",
    "Comparison": "comparison",
    "Evaluation": "evaluation",
    "GaussianFields": "gaussian_fields",
    "HierarchicalVAE": "hierarchical",
    "History": "training_state",
    "Imputation": "imputation",
    "Incomplete": "missing",
    "Particles": "particles",
    "Prediction": "predictive",
    "Refinement": "refining",
    "compare": "comparison",
    "decoder_prior": "field_prior",
    "draw_particles": "particles",
    "embed": "embedding",
    "evaluate": "evaluation",
    "fit": "training",
    "impute": "imputation",
    "load": "checkpoint",
    "posterior_predictive": "predictive",
    "predict": "predictive",
    "prior_predictive": "predictive",
    "refine": "refining",
    "save": "checkpoint",
    "to_arviz": "export",
    "to_datatree": "export",
}

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
        schedules,
        simulation,
        weights,
    )
    from .checkpoint import load, save
    from .comparison import Comparison, compare
    from .embedding import embed
    from .evaluation import Evaluation, evaluate
    from .export import to_arviz, to_datatree
    from .field_prior import decoder_prior
    from .gaussian_fields import GaussianFields
    from .hierarchical import HierarchicalVAE
    from .imputation import Imputation, impute
    from .missing import Incomplete
    from .particles import Particles, draw_particles
    from .predictive import Prediction, posterior_predictive, predict, prior_predictive
    from .refining import Refinement, refine
    from .training import fit
    from .training_state import History
    from .vae import VAE


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)
