r"""Importance sampling."""

from __future__ import annotations

__all__ = ["importance", "of_weights"]

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..ops.choices import Proposal
from ..ops.streaming import TailMoments
from ..pairs.pair import Pair
from ..pairs.running import Program
from .base import LogEvidence
from .from_weights import Estimate, from_draws, from_weights


def importance(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int | None = None,
    proposal: Proposal = "guide",
    target_stderr: float | None = None,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> LogEvidence:
    r"""Estimate :math:`\log p(x)` per datapoint by importance sampling.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{r(z_k \mid x)}, \qquad z_k \sim r(z \mid x)

    Its expectation is the importance-weighted bound :math:`\mathcal L_K \le \log p(x)`, so ``side`` is ``"lower"``; it
    grows to :math:`\log p(x)` with K. ``stderr`` is the delta-method standard error, which understates the error when
    few weights dominate: ``verdict`` says for each datapoint whether to believe it, and ``reason`` why not.

    The proposal r need not be the guide: the guide that is best for the ELBO is narrower than the posterior, and the
    weights of a narrow proposal can have an infinite variance.

    - ``"guide"``: the guide as it is.
    - ``"defensive"``: a tenth of the draws from the prior, the others from the guide, weighed as draws of the mixture;
      no weight exceeds about ten times the likelihood.
    - ``"refined"``: a tenth of the draws from the guide, the others from a Gaussian with full covariance, weighed as
      draws of the mixture. For each datapoint the Gaussian maximises the ELBO, in 200 steps of 10 draws from the
      guide's answer, and is then widened until half of the effective draws would be lost if the posterior were that
      Gaussian. In many dimensions this brings k-hat down.

    With ``target_stderr``, draws go to where the error is large: each datapoint gets about a thousand, and further ones
    until its standard error is reached or ``num_particles`` are spent. A rule that stops by the draws themselves leaves
    a bias, of the order of the squared error for weights of finite variance. For other weights it may be several errors
    large, as the rule stops before a large weight has come up; and ``ok`` is then more frequent than without it.

    The encoder runs once per datapoint. Particles and datapoints are processed in blocks of about ``max_bytes`` with
    streaming sums in float64, so peak memory does not grow with K.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type.
        num_particles: The number of particles K per datapoint, 5000 by default; with ``target_stderr`` the largest
            number, 100,000 by default.
        proposal: The distribution to draw from: ``"guide"``, ``"defensive"`` or ``"refined"``.
        target_stderr: The standard error to reach, in nats for each datapoint.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: The approximate memory of a block, in bytes; other blocks give other draws.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for an argument out of its range.
        DataError: for empty or non-finite data.
        PairError: for a model and guide that are not such a pair, or a guide that draws from a point mass; for
            ``"defensive"`` and ``"refined"`` also for discrete latents.
        StaleParamStoreError: if Pyro's store holds other values for the pair's parameters than its modules do.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)  https://arxiv.org/abs/1509.00519
        | Safe and Effective Importance Sampling (Owen & Zhou, 2000)  https://doi.org/10.1080/01621459.2000.10473909

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> evidence = importance(problem.model, problem.guide(inflate=1.2), x, target_stderr=0.01)
        >>> bool(((evidence.value - problem.log_evidence(x)).abs() < 0.05).all()), evidence.verdict.tolist()
        (True, ['ok', 'ok', 'ok'])
    """
    return from_weights(
        _mean,
        "lower",
        Pair.of(model, guide, x),
        num_particles=num_particles,
        proposal=proposal,
        target_stderr=target_stderr,
        seed=seed,
        max_bytes=max_bytes,
        progress=progress,
    )


def of_weights(log_w: Float[Tensor, "particles batch"], *, pilot: int = 0) -> LogEvidence:
    r"""Return the estimate from given log-weights, without a prior check.

    Arguments:
        log_w: :math:`\log p(x, z) - \log r(z \mid x)` at draws from r.
        pilot: Evaluations of each datapoint before these draws.

    Example:
        >>> of_weights(torch.zeros(100, 2)).value
        tensor([0., 0.], dtype=torch.float64)
    """
    return from_draws(_mean, "lower", log_w, pilot=pilot)


def _mean(weights: TailMoments, smoothed: Float[Tensor, "tail batch"]) -> Estimate:
    moments = weights.log_moments
    return Estimate(moments.log_mean, moments.stderr)
