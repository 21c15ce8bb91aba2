"""Diagnostics of a trained pair: its latent dimensions, the parts of its bound, the quality of its guide,
and how its samples compare with the data.
"""

__all__ = [
    "DCI",
    "AggregatePosterior",
    "Calibration",
    "ELBOParts",
    "FactorGaps",
    "InferenceGaps",
    "LatentSummary",
    "Mean",
    "Neighbours",
    "Spectrum",
    "aggregate_posterior",
    "calibration",
    "dci",
    "elbo_parts",
    "energy_distance",
    "inference_gaps",
    "latent_summary",
    "mig",
    "nearest_neighbours",
    "power_spectrum",
    "sap",
]

from ..ops.means import Mean
from .aggregate import AggregatePosterior, aggregate_posterior
from .calibration import Calibration, calibration
from .disentanglement import DCI, FactorGaps, dci, mig, sap
from .elbo_parts import ELBOParts, elbo_parts
from .inference_gaps import InferenceGaps, inference_gaps
from .latents import LatentSummary, latent_summary
from .samples import Neighbours, energy_distance, nearest_neighbours
from .spectra import Spectrum, power_spectrum
