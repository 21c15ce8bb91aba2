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

# The public names of each file, and the public files of each room.
_NAMES = {
    "models.decoder_prior": "decoder_prior",
    "models.gaussian_fields": "GaussianFields",
    "models.hierarchical": "HierarchicalVAE",
    "models.incomplete": "Incomplete",
    "models.vae": "VAE",
    "pairs.embed": "embed",
    "pairs.particles": "Particles draw_particles",
    "training.checkpoint": "load save",
    "training.fit": "fit",
    "training.state": "History",
    "workflows.comparison": "Comparison compare",
    "workflows.evaluation": "Evaluation evaluate",
    "workflows.export": "to_arviz to_datatree",
    "workflows.imputation": "Imputation impute",
    "workflows.predictive": "Prediction posterior_predictive predict prior_predictive",
    "workflows.refinement": "Refinement refine",
}
_FILES = {
    "models": "likelihoods nn posteriors presets priors problems",
    "ops": "weights",
    "pairs": "simulation",
    "training": "schedules",
}
_HOMES = {name: file for file, names in _NAMES.items() for name in names.split()}
_PATHS = {name: f"{room}.{name}" for room, names in _FILES.items() for name in names.split()}

if TYPE_CHECKING:
    from . import data, diagnostics, errors, evidence, objectives, plot
    from .models import likelihoods, nn, posteriors, presets, priors, problems
    from .models.decoder_prior import decoder_prior
    from .models.gaussian_fields import GaussianFields
    from .models.hierarchical import HierarchicalVAE
    from .models.incomplete import Incomplete
    from .models.vae import VAE
    from .ops import weights
    from .pairs import simulation
    from .pairs.embed import embed
    from .pairs.particles import Particles, draw_particles
    from .training import schedules
    from .training.checkpoint import load, save
    from .training.fit import fit
    from .training.state import History
    from .workflows.comparison import Comparison, compare
    from .workflows.evaluation import Evaluation, evaluate
    from .workflows.export import to_arviz, to_datatree
    from .workflows.imputation import Imputation, impute
    from .workflows.predictive import Prediction, posterior_predictive, predict, prior_predictive
    from .workflows.refinement import Refinement, refine


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return import_module(f".{_PATHS.get(name, name)}", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)
