r"""Refinement by any method."""

from __future__ import annotations

__all__ = ["METHODS", "refine"]

from typing import Any

import numpy as np

from ...errors import ConfigError, require_count, require_one_of
from ...evidence.prior_check import prior_check
from ...ops.verdicts import Judgement
from ...pairs.pair import Pair
from ...pairs.running import Program
from ...samplers.chunks import blockwise
from ...samplers.families import FAMILIES
from .base import Method, Plan, Refinement
from .convergence import FEWEST
from .hmc import hmc
from .nuts import nuts
from .sir import sir
from .svi import svi

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
    r"""Draw from a distribution that is closer to :math:`p(z \mid x)` than the guide is, and estimate the gain.

    - ``"sir"``: sampling importance resampling, ``num_draws`` of ``num_particles`` draws of the guide by their weights.
      Cheap, and as good as the guide's tails; ``verdict`` follows k-hat.
    - ``"svi"``: the best member :math:`q^*` of a ``family`` for each datapoint, by ``num_steps`` of Adam on the ELBO
      from the guide's answer; draws from it, and their log-weights.
    - ``"hmc"``: Hamiltonian Monte Carlo, ``num_chains`` for each datapoint, all datapoints together. Draws of the
      posterior itself, if the chains have met: R-hat.
    - ``"nuts"``: Pyro's NUTS for one datapoint, started from the guide and in coordinates in which it is standard.

    The gain, in nats per datapoint, is over the guide's ELBO :math:`\mathcal L(q)`:

    .. math::
        \text{svi:}\quad \mathcal L(q^*) - \mathcal L(q)
        = \mathrm{KL}(q \,\|\, p(z \mid x)) - \mathrm{KL}(q^* \,\|\, p(z \mid x)), \qquad
        \text{others:}\quad \log \hat p(x) - \mathcal L(q) \to \mathrm{KL}(q \,\|\, p(z \mid x)),

    for svi on draws that had no part in the optimisation, both ELBOs from the same noise where the guide is Gaussian.
    :math:`\log \hat p(x)` is the evidence that the refinement implies: for sir the log of the particles' mean weight,
    on the particles that also give the ELBO; for the others importance sampling with ``num_particles`` fresh draws, a
    tenth from the guide and the rest from the Gaussian of the refined draws' mean and covariance, made wider. Both are
    lower bounds in expectation, so the gain errs low. ``gain_stderr`` is the Monte-Carlo error of all of it.

    ``verdict`` judges the draws, ``evidence.verdict`` the evidence. Chains are ``ok`` with R-hat up to 1.01 and 100
    effective draws in every latent dimension; independent draws are judged by their weights, as elsewhere. Up to ten
    latent dimensions draws from the prior check both: a mode that the draws have not met makes them ``unreliable``.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents.
        x: Data ``[n, ...]``, any array type.
        method: ``"sir"``, ``"svi"``, ``"hmc"`` or ``"nuts"``.
        num_draws: Draws per datapoint; of chains all together, rounded up to full chains. By default 1000, of hmc 4000:
            R-hat of fewer is above 1.01 by chance.
        num_particles: For sir, what there is to choose from; for the others, the draws behind evidence and ELBO.
        num_chains: Per datapoint, by default 16 for hmc and 4 for nuts.
        num_warmup: Transitions of each chain that find step size and coordinates and are thrown away; by default 150.
        num_steps: Of svi, by default 200.
        family: Of svi: ``"full"`` Gaussians by default, ``"diagonal"`` ones, or a ``"flow"``.
        seed: Of all draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block of datapoints and particles may take; other blocks are other draws.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for an unknown method, an option that the method does not have, numbers out of range, or several
            datapoints for nuts.
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair, discrete latents, or a guide that draws from a point
            mass.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | Semi-Amortized Variational Autoencoders (Kim et al., 2018)  https://arxiv.org/abs/1802.02550
        | MCMC Using Hamiltonian Dynamics (Neal, 2011)  https://arxiv.org/abs/1206.1901

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> refined = refine(problem.model, problem.guide(shift=0.3), x, method="svi", num_steps=50)
        >>> print(refined)  # doctest: +ELLIPSIS
        Refinement by svi: gained 0.89 ± ... nats per datapoint ...; z [1000, 3, 1]; ESS at least ...; 100% ok
    """
    options = {
        "num_draws": num_draws,
        "num_chains": num_chains,
        "num_warmup": num_warmup,
        "num_steps": num_steps,
        "family": family,
    }
    plan = _plan(method, num_particles, {name: value for name, value in options.items() if value is not None})
    pair = Pair.of(model, guide, x)
    if method == "nuts" and len(pair) > 1:
        raise ConfigError(
            f"method='nuts': found {len(pair)} datapoints, expected one, since its chains run one after the other: "
            "refine x[:1], or use method='hmc', which moves those of all datapoints together"
        )
    parts = blockwise(
        lambda path, span, most: METHODS[method](path, most, plan),
        pair,
        start="guide",
        num_chains=max(plan.num_chains, -(-plan.num_particles // _AT_ONCE)),
        evaluations=lambda most: _evaluations(plan),
        seed=(seed, "refine"),
        max_bytes=max_bytes,
        progress=progress,
    )
    return _with_prior_check(Refinement.joined(parts), pair, seed=seed, max_bytes=max_bytes)


def _plan(method: str, num_particles: int, given: dict[str, Any]) -> Plan:
    require_one_of("method", method, METHODS)
    for name in given.keys() - _OPTIONS[method].keys():
        raise ConfigError(f"{name}={given[name]!r}: method={method!r} has no such option; leave it out")
    plan = Plan(num_particles=num_particles, **_NONE | _OPTIONS[method] | given)
    require_one_of("family", plan.family, FAMILIES)
    least = FEWEST * require_count("num_chains", plan.num_chains) if "num_chains" in _OPTIONS[method] else 1
    return plan._replace(
        num_draws=require_count("num_draws", plan.num_draws, least=least, why=_FEW if least > 1 else ""),
        num_particles=require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar"),
        num_warmup=require_count("num_warmup", plan.num_warmup, least=0),
        num_steps=require_count("num_steps", plan.num_steps, least=0),
    )


def _evaluations(plan: Plan) -> int:
    """Return about how many evaluations of each datapoint a refinement takes."""
    return 3 * plan.num_particles + 10 * plan.num_steps + 2 * plan.num_chains * plan.num_warmup + 2 * plan.num_draws


def _with_prior_check(found: Refinement, pair: Pair, *, seed: int, max_bytes: int) -> Refinement:
    """Return the refinement with the verdict ``unreliable`` where draws from the prior find what it has missed."""
    evidence = prior_check(found.evidence, pair, seed=seed, max_bytes=max_bytes)
    missed = evidence.reason != found.evidence.reason
    texts = zip(found.judgement, evidence.judgement, strict=True)
    judgement = Judgement(*(np.where(missed, after, before) for before, after in texts))
    return found._replace(evidence=evidence, judgement=judgement)
