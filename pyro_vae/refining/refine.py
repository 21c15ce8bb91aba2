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
from .chains import hmc
from .mixing import FEWEST
from .nuts import nuts
from .sir import sir
from .variational import svi

METHODS: dict[str, Method] = {"hmc": hmc, "nuts": nuts, "sir": sir, "svi": svi}
_OPTIONS: dict[str, dict[str, Any]] = {
    "hmc": {"num_draws": 4000, "num_chains": 16, "num_warmup": 150},
    "nuts": {"num_draws": 1000, "num_chains": 4, "num_warmup": 150},
    "sir": {"num_draws": 1000},
    "svi": {"num_draws": 1000, "num_steps": 200, "family": "full"},
}
_NONE = {"num_chains": 1, "num_warmup": 0, "num_steps": 0, "family": "full"}  # for methods that have no use for them
_FEW = f", {FEWEST} of each chain"
_AT_ONCE = 32  # blocks that a datapoint's particles may come in


def refine(
    model: Program,
    guide: Program,
    x: Any,
    *,
    method: str = "sir",
    num_draws: int | None = None,
    num_particles: int = 5000,
    num_chains: int | None = None,
    num_warmup: int | None = None,
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
    options = {
        "num_draws": num_draws,
        "num_chains": num_chains,
        "num_warmup": num_warmup,
        "num_steps": num_steps,
        "family": family,
    }
    plan = _plan(method, num_particles, {name: value for name, value in options.items() if value is not None})
    x = suited(as_batch(x), model, guide)
    if method == "nuts" and len(x) > 1:
        raise ConfigError(
            f"method='nuts': found {len(x)} datapoints, expected one, since its chains run one after the other: refine "
            "x[:1], or use method='hmc', which moves those of all datapoints together"
        )

    def work(path: Path, span: slice, most: int) -> Refinement:
        return METHODS[method](path, most, plan)

    parts = blockwise(
        work,
        model,
        guide,
        x,
        start="guide",
        num_chains=max(plan.num_chains, -(-plan.num_particles // _AT_ONCE)),
        evaluations=lambda most: _evaluations(plan),
        seed=(seed, "refine"),
        max_bytes=max_bytes,
        progress=progress,
    )
    return _with_second_opinion(Refinement.joined(parts), model, guide, x, seed=seed, max_bytes=max_bytes)


def _plan(method: str, num_particles: int, given: dict[str, Any]) -> Plan:
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    for name in given.keys() - _OPTIONS[method].keys():
        raise ConfigError(f"{name}={given[name]!r}: method={method!r} has no such option; leave it out")
    plan = Plan(num_particles=num_particles, **_NONE | _OPTIONS[method] | given)
    if plan.family not in FAMILIES:
        raise ConfigError(f"family={plan.family!r}: expected one of {', '.join(FAMILIES)}")
    least = FEWEST * require_count("num_chains", plan.num_chains) if "num_chains" in _OPTIONS[method] else 1
    return Plan(
        num_draws=require_count("num_draws", plan.num_draws, least=least, why=_FEW if least > 1 else ""),
        num_particles=require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar"),
        num_chains=plan.num_chains,
        num_warmup=require_count("num_warmup", plan.num_warmup, least=0),
        num_steps=require_count("num_steps", plan.num_steps, least=0),
        family=plan.family,
    )


def _evaluations(plan: Plan) -> int:
    """About how many of each datapoint there will be."""
    return 3 * plan.num_particles + 10 * plan.num_steps + 2 * plan.num_chains * plan.num_warmup + 2 * plan.num_draws


def _with_second_opinion(
    found: Refinement, model: Program, guide: Program, x: torch.Tensor, *, seed: int, max_bytes: int
) -> Refinement:
    """Where draws from the prior say that a part of the posterior was overlooked, the draws overlook it, too."""
    evidence = second_opinion(found.evidence, model, guide, x, seed=seed, max_bytes=max_bytes)
    overlooked = evidence.reason != found.evidence.reason
    texts = zip(found.judgement, evidence.judgement, strict=True)
    judgement = Judgement(*(np.where(overlooked, after, before) for before, after in texts))
    return found._replace(evidence=evidence, judgement=judgement)
