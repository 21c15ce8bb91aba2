"""Refinement: draws that are closer to the posterior than those of the guide."""

__all__ = ["METHODS", "Refinement", "refine"]

from .base import Refinement
from .refine import METHODS, refine
