"""Distributions with parameters of their own for each datapoint, and the best of them for it."""

__all__ = ["FAMILIES", "Family", "Full", "Plan", "Start", "best_member", "compared", "fitted", "start_of"]

from .families import FAMILIES, Family, Full
from .gaussian_fit import Start, fitted, start_of
from .local_svi import Plan, best_member, compared
