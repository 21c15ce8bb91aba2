"""What a trained pair can be asked about: its latent dimensions, the parts of its bound, and how good its guide is."""

__all__ = [
    "DCI",
    "AggregatePosterior",
    "Calibration",
    "ELBOParts",
    "FactorGaps",
    "InferenceGaps",
    "LatentSummary",
    "Mean",
    "aggregate_posterior",
    "calibration",
    "dci",
    "elbo_parts",
    "inference_gaps",
    "latent_summary",
    "mig",
    "sap",
]

from .aggregate import AggregatePosterior, aggregate_posterior
from .base import Mean
from .calibration import Calibration, calibration
from .disentanglement import DCI, FactorGaps, dci, mig, sap
from .gaps import InferenceGaps, inference_gaps
from .latents import LatentSummary, latent_summary
from .parts import ELBOParts, elbo_parts
