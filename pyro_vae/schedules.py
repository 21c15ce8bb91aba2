"""How the learning rate falls as training goes on."""

from __future__ import annotations

__all__ = ["SCHEDULES", "Schedule"]

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["constant", "cosine", "burda"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "burda": lambda progress: 10 ** (-_burda_stage(progress) / 7),
}
"""What the learning rate is multiplied by, from the share of training done, in [0, 1).

``burda`` is the schedule of the IWAE paper: eight stages i = 0..7 of :math:`3^i` shares each at :math:`10^{-i/7}`; with
3,280 epochs these are the paper's passes, with fewer the stages shrink in proportion.

| Importance Weighted Autoencoders (Burda et al., 2016), section 5  https://arxiv.org/abs/1509.00519
"""


def _burda_stage(progress: float) -> int:
    """The stage i whose share of training, from (3^i - 1) / 6560 to (3^(i+1) - 1) / 6560, holds ``progress``."""
    return next(i for i in range(8) if i == 7 or progress * 6560 < 3 ** (i + 1) - 1)
