"""Estimators of log p(x): per datapoint, with an error bar and a direction."""

__all__ = ["LogEvidence", "elbo", "importance"]

from .base import LogEvidence
from .elbo import elbo
from .importance import importance
