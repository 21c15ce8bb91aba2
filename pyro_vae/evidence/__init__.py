"""Estimators of log p(x): per datapoint, with an error bar, a direction and a verdict."""

__all__ = [
    "ESTIMATORS",
    "LogEvidence",
    "Proposal",
    "Recommendation",
    "Sandwich",
    "ais",
    "elbo",
    "estimate",
    "importance",
    "jackknife",
    "psis",
    "quadrature",
    "recommend",
    "sandwich",
    "smc",
]

from ..ops.choices import Proposal
from .ais import ais
from .auto import ESTIMATORS, Recommendation, estimate, recommend
from .base import LogEvidence
from .elbo import elbo
from .importance import importance
from .jackknife import jackknife
from .psis import psis
from .quadrature import quadrature
from .sandwich import Sandwich, sandwich
from .smc import smc
