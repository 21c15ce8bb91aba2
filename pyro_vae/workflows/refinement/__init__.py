"""Refinement: from the encoder's answer for given data to draws that are closer to the posterior."""

__all__ = ["METHODS", "Refinement", "refine"]

from .base import Refinement
from .refine import METHODS, refine
