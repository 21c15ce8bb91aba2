"""What a trained pair can be asked about: its latent dimensions, the parts of its bound, and how good its guide is."""

__all__ = [
    "AggregatePosterior",
    "Calibration",
    "ELBOParts",
    "InferenceGaps",
    "LatentSummary",
    "Mean",
    "aggregate_posterior",
    "calibration",
    "elbo_parts",
    "inference_gaps",
    "latent_summary",
]

from .aggregate import AggregatePosterior, aggregate_posterior
from .base import Mean
from .calibration import Calibration, calibration
from .gaps import InferenceGaps, inference_gaps
from .latents import LatentSummary, latent_summary
from .parts import ELBOParts, elbo_parts
