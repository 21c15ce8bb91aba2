r"""One way to ask for a refinement, whatever the method."""

from __future__ import annotations

__all__ = ["METHODS", "refine"]

from typing import Any

import numpy as np
import torch

from ..arrays import as_batch
from ..errors import ConfigError, require_count
from ..evidence.annealing import Path
from ..evidence.blocks import blockwise
from ..evidence.second_opinion import second_opinion
from ..local import FAMILIES
from ..modules import suited
from ..reliability import Judgement
from ..traces import Program
from .base import Method, Plan, Refinement
from .sir import sir
from .variational import svi

METHODS: dict[str, Method] = {"sir": sir, "svi": svi}
_DEFAULTS = Plan(num_draws=2000, num_particles=5000, family="full", num_steps=200, num_chains=1, num_warmup=0)
_OPTIONS: dict[str, dict[str, Any]] = {"sir": {}, "svi": {"family": "full", "num_steps": 200}}
_AT_ONCE = 32  # the share of particles that are in memory at once, or one over it


def refine(
    model: Program,
    guide: Program,
    x: Any,
    *,
    method: str = "sir",
    num_draws: int = 2000,
    num_particles: int = 5000,
    family: str | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> Refinement:
    r"""Draw from the posterior of the given data, or closer to it than the guide does.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents.
    """
    plan = _plan(method, num_draws, num_particles, {"family": family, "num_steps": num_steps})
    x = suited(as_batch(x), model, guide)

    def work(path: Path, span: slice, most: int) -> Refinement:
        return METHODS[method](path, most, plan)

    parts = blockwise(
        work,
        model,
        guide,
        x,
        start="guide",
        num_chains=max(plan.num_chains, -(-plan.num_particles // _AT_ONCE)),
        evaluations=lambda most: _evaluations(method, plan),
        seed=(seed, "refine"),
        max_bytes=max_bytes,
        progress=progress,
    )
    return _with_second_opinion(Refinement.joined(parts), model, guide, x, seed=seed, max_bytes=max_bytes)


def _plan(method: str, num_draws: int, num_particles: int, options: dict[str, Any]) -> Plan:
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - _OPTIONS[method].keys():
        raise ConfigError(f"{name}={given[name]!r}: method={method!r} has no such option; leave it out")
    plan = _DEFAULTS._replace(num_draws=num_draws, num_particles=num_particles, **_OPTIONS[method] | given)
    if plan.family not in FAMILIES:
        raise ConfigError(f"family={plan.family!r}: expected one of {', '.join(FAMILIES)}")
    return plan._replace(
        num_draws=require_count("num_draws", num_draws),
        num_particles=require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar"),
        num_steps=require_count("num_steps", plan.num_steps, least=0),
    )


def _evaluations(method: str, plan: Plan) -> int:
    return plan.num_particles


def _with_second_opinion(
    found: Refinement, model: Program, guide: Program, x: torch.Tensor, *, seed: int, max_bytes: int
) -> Refinement:
    """Where draws from the prior say that a part of the posterior was overlooked, the draws overlook it, too."""
    evidence = second_opinion(found.evidence, model, guide, x, seed=seed, max_bytes=max_bytes)
    overlooked = evidence.reason != found.evidence.reason
    texts = zip(found.judgement, evidence.judgement, strict=True)
    judgement = Judgement(*(np.where(overlooked, after, before) for before, after in texts))
    return found._replace(evidence=evidence, judgement=judgement)
