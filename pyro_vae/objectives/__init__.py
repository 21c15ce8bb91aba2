"""What is maximised: bounds on log p(x) as drop-in ``pyro.infer.ELBO`` classes, one per file."""

__all__ = ["ELBO", "IWAE", "Objective"]

from .base import Objective
from .elbo import ELBO
from .iwae import IWAE
