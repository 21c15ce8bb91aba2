"""Evaluation of a trained pair in one call: bounds, log p(x), their error bars, and the activity of the latents."""

from __future__ import annotations

__all__ = ["Evaluation", "evaluate"]

import math
from typing import Any, NamedTuple

from ..diagnostics import LatentSummary, latent_summary
from ..errors import require_count
from ..evidence import LogEvidence, Proposal, elbo, estimate, importance, recommend
from ..models.base import BaseVAE
from ..pairs.pair import Pair, programs_of
from .tables import number, plain


class Evaluation(NamedTuple):
    """The ELBO, the importance-weighted bound and the estimate of log p(x) on the same data; ``str`` is a table.

    The table has a row per estimate: draws per datapoint, the mean in nats per datapoint with its Monte-Carlo and its
    test-set error, bits per dimension, and the median effective sample size of the weights. Below it stands how many
    datapoints have a log p(x) that is doubtful or unreliable, and why.
    """

    elbo: LogEvidence
    iwae: LogEvidence
    log_evidence: LogEvidence
    latents: dict[str, LatentSummary]
    num_dimensions: int
    """The number of numbers in one datapoint, for bits per dimension."""
    estimator: str
    """The estimator of log p(x): ``"is"``, ``"psis"``, ``"ais"``, ``"smc"`` or ``"grid"``."""
    clamped_scales: dict[str, int]
    """The number of scales of a VAE that are held by their bounds, see :meth:`~pyro_vae.VAE.clamped_scales`."""

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per estimate, in nats per datapoint unless named otherwise."""
        return [
            {
                "estimate": name,
                "num_particles": found.num_particles.double().mean().item(),
                "num_evaluations": found.num_evaluations.double().mean().item(),
                "side": found.side,
                "nats": found.mean,
                "monte_carlo_error": found.monte_carlo_error,
                "test_set_error": found.test_set_error,
                "bits_per_dimension": -found.mean / (self.num_dimensions * math.log(2)),
                "median_ess": found.ess.median().item(),
                "ok": found.share("ok"),
                "doubtful": found.share("doubtful"),
                "unreliable": found.share("unreliable"),
            }
            for name, found in (("ELBO", self.elbo), ("IWAE", self.iwae), ("log p(x)", self.log_evidence))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the values per datapoint, ready for JSON."""
        return {
            "num_datapoints": len(self.elbo.value),
            "num_dimensions": self.num_dimensions,
            "estimator": self.estimator,
            "estimates": [{key: plain(value) for key, value in row.items()} for row in self.rows()],
            "clamped_scales": self.clamped_scales,
            "latents": {
                name: {
                    "num_active": summary.num_active,
                    "mean_variance": [plain(value) for value in summary.mean_variance.tolist()],
                    "kl": [plain(value) for value in summary.kl.tolist()],
                }
                for name, summary in self.latents.items()
            },
        }

    def _doubts(self) -> list[str]:
        """Return lines that count the datapoints with a doubtful or unreliable log p(x), with the first reason."""
        found, lines = self.log_evidence, []
        for verdict in ("unreliable", "doubtful"):
            if count := int((found.verdict == verdict).sum()):
                first = found.reason[found.verdict == verdict][0]
                lines.append(f"log p(x) is {verdict} for {count} of {len(found.value)} datapoints; the first: {first}")
        return lines

    def __str__(self) -> str:
        lines = [f"{'':10}{'draws':>7}{'nats':>10}{'Monte-Carlo':>13}{'test set':>10}{'bits/dim':>10}{'ESS':>8}"]
        for row in self.rows():
            lines.append(
                f"{row['estimate']:10}{row['num_particles']:>7.0f}{number(row['nats'], 3):>10}"
                f"{'± ' + number(row['monte_carlo_error'], 3):>13}{'± ' + number(row['test_set_error'], 2):>10}"
                f"{number(row['bits_per_dimension'], 3):>10}{number(row['median_ess'], 1):>8}"
            )
        lines += self._doubts()
        for name, summary in self.latents.items():
            num_active = summary.num_active
            note = " (posterior collapse: the decoder ignores the latents)" if num_active == 0 else ""
            active = f"{'?' if num_active is None else num_active} of {len(summary.kl)}"
            total = summary.kl.sum().item()
            kl = "KL has no closed form per dimension" if math.isnan(total) else f"KL {total:.2f} nats"
            lines.append(f"active units of {name}: {active}, {kl}{note}")
        for name, count in self.clamped_scales.items():
            if count:
                lines.append(f"scales of {name} held by their bounds: {count} in {len(self.elbo.value)} datapoints")
        return "\n".join(lines)


def evaluate(
    pair: Any,
    x: Any,
    *,
    estimator: str = "auto",
    num_particles: int | None = None,
    target_stderr: float | None = None,
    proposal: Proposal | None = None,
    iwae_particles: int = 50,
    elbo_particles: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    r"""Estimate the ELBO, the IWAE bound and :math:`\log p(x)` of a pair on held-out data; nothing is trained.

    The first two are lower bounds in expectation, ELBO :math:`\le \mathcal L_K \le \log p(x)`; ``side`` says what the
    third is. Each comes with a Monte-Carlo error (from the draws) and a test-set error (from which datapoints there
    are), and :math:`\log p(x)` with a verdict per datapoint.

    Arguments:
        pair: A VAE, anything with ``.model`` and ``.guide``, or a tuple ``(model, guide)``.
        x: Held-out data ``[n, ...]``, binarised once and for all if the likelihood is a Bernoulli.
        estimator: Of :math:`\log p(x)`: ``"is"``, ``"psis"``, ``"ais"``, ``"smc"``, ``"grid"``, or ``"auto"`` for what
            :func:`pyro_vae.evidence.recommend` says.
        num_particles: Draws per datapoint for :math:`\log p(x)`, instead of the estimator's default.
        proposal: What importance sampling draws from: ``"guide"``, ``"defensive"`` or ``"refined"``.
        target_stderr: Draw until the standard error of each datapoint is as small as this, in nats.
        iwae_particles: K of the reported importance-weighted bound.
        elbo_particles: Draws per datapoint for the ELBO.
        seed: Of all draws; torch's own generator is left as it is.
        progress: Show a progress bar on a terminal.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> found = evaluate((problem.model, problem.guide()), problem.sample(50, seed=0))
        >>> found.latents["z"].num_active
        1
    """
    for name, value in (("iwae_particles", iwae_particles), ("elbo_particles", elbo_particles)):
        require_count(name, value, least=2, why=", since one draw has no error bar")
    model, guide = programs_of(pair)
    data = Pair.of(model, guide, x)  # what is found out about the pair holds for all estimates
    chosen = recommend(model, guide, data, seed=seed) if estimator == "auto" else estimator
    log_evidence = estimate(  # first, since its options are the ones that may be wrong
        model,
        guide,
        data,
        estimator=chosen,
        num_particles=num_particles,
        target_stderr=target_stderr,
        proposal=proposal,
        seed=seed,
        progress=progress,
    )
    few = iwae_particles if num_particles is None else min(iwae_particles, num_particles)
    return Evaluation(
        elbo=elbo(model, guide, data, num_particles=elbo_particles, seed=seed, progress=progress),
        iwae=importance(model, guide, data, num_particles=few, seed=seed, progress=progress),
        log_evidence=log_evidence,
        latents=latent_summary(model, guide, data, seed=seed),
        num_dimensions=data.x[0].numel(),
        estimator=chosen if isinstance(chosen, str) else chosen.estimator,
        clamped_scales=pair.clamped_scales(data.x) if isinstance(pair, BaseVAE) else {},
    )
