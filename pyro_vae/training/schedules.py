"""Schedules of the learning rate, and warm-ups of the weight of a KL term."""

from __future__ import annotations

__all__ = ["SCHEDULES", "CyclicalWarmup", "LinearWarmup"]

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError, require_count, require_number

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "burda": lambda progress: 10 ** (-_burda_stage(progress) / 7),
}
"""The factor of the learning rate, as a function of the share of training done, in [0, 1).

``burda`` is the schedule of the IWAE paper: eight stages i = 0..7 of :math:`3^i` shares each at :math:`10^{-i/7}`; with
3,280 epochs these are the paper's passes, with fewer the stages shrink in proportion.

| Importance Weighted Autoencoders (Burda et al., 2016), section 5  https://arxiv.org/abs/1509.00519
"""


def _burda_stage(progress: float) -> int:
    """Return the stage i for which ``progress`` is between (3^i - 1) / 6560 and (3^(i+1) - 1) / 6560."""
    return next(i for i in range(8) if i == 7 or progress * 6560 < 3 ** (i + 1) - 1)


@dataclass(frozen=True)
class LinearWarmup:
    """A weight that rises from 0 to ``end`` in ``num_steps`` steps and stays there.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)  https://arxiv.org/abs/1511.06349

    Errors:
        ConfigError: unless ``num_steps`` is at least 1.

    Example:
        >>> warmup = LinearWarmup(num_steps=10)
        >>> warmup(0), warmup(5), warmup(20)
        (0.0, 0.5, 1.0)
    """

    num_steps: int
    end: float = 1.0

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps)
        require_number("end", self.end, least=0)

    def __call__(self, step: int) -> float:
        return self.end * min(1.0, step / self.num_steps)


@dataclass(frozen=True)
class CyclicalWarmup:
    """A weight that rises from 0 to ``end`` in the first part of every period, and starts again with the next.

    ``ramp`` is the share of a period in which it rises. After ``num_cycles`` periods it stays at ``end``.

    References:
        | Cyclical Annealing Schedule (Fu et al., 2019)  https://arxiv.org/abs/1903.10145

    Errors:
        ConfigError: for a period or a number of cycles below 1, or a ramp outside of (0, 1].

    Example:
        >>> warmup = CyclicalWarmup(period=10, num_cycles=2)
        >>> [warmup(step) for step in (0, 4, 5, 10, 19, 20)]
        [0.0, 0.8, 1.0, 0.0, 1.0, 1.0]
    """

    period: int
    num_cycles: int = 4
    ramp: float = 0.5
    end: float = 1.0

    def __post_init__(self) -> None:
        require_count("period", self.period)
        require_count("num_cycles", self.num_cycles)
        require_number("end", self.end, least=0)
        if not 0 < require_number("ramp", self.ramp) <= 1:
            raise ConfigError(f"ramp={self.ramp}: expected a share in (0, 1]")

    def __call__(self, step: int) -> float:
        if step >= self.num_cycles * self.period:
            return self.end
        return self.end * min(1.0, step % self.period / (self.ramp * self.period))
