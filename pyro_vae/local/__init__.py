"""Distributions with parameters of their own for each datapoint, and the best of them for it."""

__all__ = ["FAMILIES", "Family", "Full", "Plan", "Start", "best_member", "compared", "fitted", "start_of"]

from .families import FAMILIES, Family, Full
from .gaussians import Start, fitted, start_of
from .optimum import Plan, best_member, compared
