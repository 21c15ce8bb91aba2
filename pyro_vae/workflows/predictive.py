r"""Predictions of a pair: draws from the prior and posterior predictive, and posterior expectations per datapoint."""

from __future__ import annotations

__all__ = ["Prediction", "posterior_predictive", "predict", "prior_predictive"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, PairError, PyroVaeError, require_count
from ..ops import verdicts
from ..ops.pareto import pareto_k
from ..ops.verdicts import Judgement
from ..ops.weights import ess, weights_of
from ..pairs.handlers import evaluation_mode
from ..pairs.pair import Pair
from ..pairs.running import Program, trace
from ..pairs.traces import sample_sites
from .weighted import replicates, require_from_prior, weighted_blocks


class Prediction(NamedTuple):
    r"""Expectations under :math:`p(z \mid x)`, per datapoint, with standard errors and the quality of the weights."""

    mean: Tensor
    """``[batch, ...]``."""
    stderr: Tensor
    """``[batch, ...]``, of the Monte-Carlo error alone."""
    ess: Float[Tensor, " batch"]
    pareto_k: Float[Tensor, " batch"]
    judgement: Judgement

    verdict, reason = verdicts.verdict, verdicts.reason


def prior_predictive(model: Program, num: int, *, seed: int = 0) -> dict[str, Tensor]:
    r"""Draw :math:`z \sim p(z), x \sim p(x \mid z)` at all sites of a model that generates, ``model(None, num)``.

    Arguments:
        model: A Pyro function of x and the number of datapoints to generate if x is none.
        num: How many.
        seed: The draws depend on it alone; torch's own generator is left as it is.

    Returns:
        Site name -> ``[num, *event]``.

    Errors:
        PairError: for a model that cannot be called like that.

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
        >>> {name: tuple(value.shape) for name, value in pv.prior_predictive(vae.model, 5).items()}
        {'z': (5, 2), 'x': (5, 6)}
    """
    num = require_count("num", num)
    with evaluation_mode(model, seed=(seed, "prior_predictive")):
        try:
            drawn = {name: site["value"] for name, site in sample_sites(trace(model, (None, num), {})).items()}
        except PyroVaeError:
            raise
        except Exception as error:  # whatever a model that was not written for it does with None
            raise _cannot_generate(num, str(error).partition("\n")[0]) from error
    for name, value in drawn.items():
        if len(value) != num:
            raise _cannot_generate(num, f"site {name!r} has {len(value)} datapoints")
    return drawn


def _cannot_generate(num: int, why: str) -> PairError:
    return PairError(
        f"the model cannot generate by model(None, {num}) ({why}): give it x=None and num=None, and sample num "
        "datapoints if x is none; or use pyro_vae.simulation.simulate"
    )


def posterior_predictive(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_draws: int = 100,
    corrected: bool = True,
    num_particles: int = 1000,
    from_prior: int = 0,
    seed: int = 0,
    max_bytes: int = 2**26,
) -> dict[str, Tensor]:
    r"""Draw replicates of each datapoint, :math:`z \sim p(z \mid x), x^{\mathrm{rep}} \sim p(x \mid z)`.

    The draws of z come from the guide and are resampled by their importance weights; without that correction they would
    be from :math:`q(z \mid x)`, whose replicates vary too little where the guide is too narrow. Stock
    ``Predictive(model, guide=guide)(x)`` hands x itself back, since the model observes it.

    Arguments:
        model, guide, x: As for :func:`pyro_vae.draw_particles`.
        num_draws: The number of replicates.
        corrected: Resample by the weights.
        num_particles: The draws that are resampled, at least ``num_draws``.
        from_prior: How many of them are from the prior and not from the guide, see :func:`predict`.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: About how much memory a block of datapoints may take; other blocks are other draws.

    Returns:
        Site name -> ``[draws, batch, *event]``, of the latent sites and, anew, of the observed ones.

    Errors:
        ConfigError, DataError, PairError: As for :func:`pyro_vae.evidence.importance`.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> found = posterior_predictive(problem.model, problem.guide(), torch.zeros(3, 2), num_draws=10)
        >>> found["z"].shape, found["x"].shape
        (torch.Size([10, 3, 1]), torch.Size([10, 3, 2]))
    """
    num_draws = require_count("num_draws", num_draws)
    few = require_count("num_particles", num_particles, least=num_draws) if corrected else num_draws
    from_prior = require_from_prior(few, from_prior)
    if from_prior and not corrected:
        raise ConfigError(f"from_prior={from_prior}: expected 0 with corrected=False, which has no weights")
    pair, parts = Pair.of(model, guide, x), []
    with pair.evaluation(seed, "posterior_predictive"):
        for block in weighted_blocks(pair, num_particles=few, max_bytes=max_bytes, from_prior=from_prior):
            z = block.resampled(num_draws) if corrected else block.z
            again = replicates(block.pair, z)
            parts.append({**z, **{name: value for name, (value, _) in again.items()}})
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def predict(
    model: Program,
    guide: Program,
    x: Any,
    function: Callable[[dict[str, Tensor]], Tensor],
    *,
    num_particles: int = 1000,
    from_prior: int = 0,
    seed: int = 0,
    max_bytes: int = 2**26,
) -> Prediction:
    r"""Estimate the posterior expectation of a function of z, per datapoint, by self-normalised importance sampling.

    .. math:: \mathbb E[f(z) \mid x] \approx \sum_k \tilde w_k f(z_k), \qquad
        \mathrm{stderr}^2 = \sum_k \tilde w_k^2 \big(f(z_k) - \textstyle\sum_j \tilde w_j f(z_j)\big)^2

    It has a bias of order 1 / K; the verdict is that on the weights, since the function may want a tail that they miss.
    A mode of :math:`p(z \mid x)` that no draw has reached is in neither the error bar nor the verdict. With few latent
    dimensions draws from the prior reach it: ``from_prior=num_particles // 2``.

    Arguments:
        model, guide, x: As for :func:`pyro_vae.draw_particles`.
        function: Of ``{site: [particles, batch, *event]}``, to ``[particles, batch, ...]``, such as
            ``lambda z: vae.decode(z["z"]).mean``; of truth values, for probabilities, such as ``lambda z: z["z"] > 0``.
        num_particles: The number of draws K.
        from_prior: How many of them are from the prior and not from the guide; their weights are those of the mixture.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: About how much memory a block of datapoints may take; other blocks are other draws.

    Errors:
        PairError: if the function's result has another shape.
        ConfigError, DataError: As for :func:`pyro_vae.evidence.importance`.

    References:
        | Monte Carlo theory, methods and examples, chapter 9 (Owen, 2013)  https://artowen.su.domains/mc/

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> found = predict(problem.model, problem.guide(inflate=1.5), x, lambda z: z["z"])
        >>> bool(((found.mean - problem.posterior(x).mean).abs() < 4 * found.stderr).all()), str(found.verdict[0])
        (True, 'ok')
    """
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    from_prior = require_from_prior(num_particles, from_prior)
    pair, parts = Pair.of(model, guide, x), []
    with pair.evaluation(seed, "predict"):
        for block in weighted_blocks(pair, num_particles=num_particles, max_bytes=max_bytes, from_prior=from_prior):
            values = function(block.z)
            if not isinstance(values, Tensor) or values.shape[:2] != block.log_w.shape:
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise PairError(f"function: expected {tuple(block.log_w.shape)} and further dimensions, got {found}")
            values = values if values.is_floating_point() else values.to(block.log_w)  # of events, their probabilities
            weights = weights_of(values, block.log_w)
            mean = (weights * values).sum(0)
            stderr = (weights * (values - mean)).square().sum(0).sqrt()
            parts.append((mean, stderr, ess(block.log_w), pareto_k(block.log_w), block.judgement))
    mean, stderr, effective, k, judged = zip(*parts, strict=True)
    return Prediction(*map(torch.cat, (mean, stderr, effective, k)), judgement=Judgement.joined(judged))
