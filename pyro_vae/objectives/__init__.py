"""Objectives: bounds on log p(x) as drop-in ``pyro.infer.ELBO`` classes, one per file."""

__all__ = [
    "CIWAE",
    "CUBO",
    "ELBO",
    "IWAE",
    "JVI",
    "MIWAE",
    "PIWAE",
    "TVO",
    "BetaTCVAE",
    "BetaVAE",
    "FreeBits",
    "InfoVAE",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
]

from .base import Objective
from .beta_tcvae import BetaTCVAE
from .beta_vae import BetaVAE
from .ciwae import CIWAE
from .cubo import CUBO
from .elbo import ELBO
from .free_bits import FreeBits
from .info_vae import InfoVAE
from .iwae import IWAE
from .jvi import JVI
from .miwae import MIWAE
from .piwae import PIWAE
from .renyi import Renyi
from .tvo import TVO
from .wake_sleep import ReweightedWakeSleep
