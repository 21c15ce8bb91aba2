r"""The inference gap of a guide: its approximation gap and its amortisation gap."""

from __future__ import annotations

__all__ = ["InferenceGaps", "inference_gaps"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.arrays import as_tensor, require_finite
from ..errors import DataError, require_count, require_number, require_one_of
from ..ops.means import Mean
from ..ops.streaming import Moments
from ..pairs.density import Density
from ..pairs.pair import Pair
from ..pairs.progress import progress_bar
from ..pairs.running import Program
from ..samplers.families import FAMILIES
from ..samplers.gaussian_fit import gaussian_of_guide
from ..samplers.local_svi import Plan, best_member, compared

_MAX_ROWS = 1024


class InferenceGaps(NamedTuple):
    r"""The gap between the ELBO and :math:`\log p(x)`, per datapoint in nats, float64; all ``[batch]``."""

    log_evidence: Float[Tensor, " batch"]
    elbo: Float[Tensor, " batch"]
    r"""The ELBO of the guide, :math:`\mathcal L(q_\phi)`."""
    local_elbo: Float[Tensor, " batch"]
    r"""The ELBO of the best member of the family that was found for this datapoint, :math:`\mathcal L(q^*)`."""
    approximation: Float[Tensor, " batch"]
    r"""The approximation gap, :math:`\log p(x) - \mathcal L(q^*)`: the loss due to the family."""
    amortisation: Float[Tensor, " batch"]
    r"""The amortisation gap, :math:`\mathcal L(q^*) - \mathcal L(q_\phi)`: the loss due to the encoder."""
    log_evidence_stderr: Float[Tensor, " batch"]
    """The standard errors of ``log_evidence``, in nats, as given; zero for a plain tensor."""
    elbo_stderr: Float[Tensor, " batch"]
    """The Monte-Carlo standard errors of ``elbo``, in nats; the other fields in ``_stderr`` are named alike."""
    local_elbo_stderr: Float[Tensor, " batch"]
    approximation_stderr: Float[Tensor, " batch"]
    amortisation_stderr: Float[Tensor, " batch"]
    """The standard errors of differences draw by draw if the guide is a Gaussian: far less than the two combined."""
    family: str

    @property
    def total(self) -> Float[Tensor, " batch"]:
        r"""The whole gap, :math:`\log p(x) - \mathcal L(q_\phi) = \mathrm{KL}(q_\phi \,\|\, p(z \mid x))`."""
        return self.log_evidence - self.elbo

    @property
    def mean_total(self) -> Mean:
        """The mean of the whole gap over datapoints, in nats per datapoint, with both error bars."""
        return Mean.of(self.total, torch.hypot(self.log_evidence_stderr, self.elbo_stderr))

    @property
    def mean_approximation(self) -> Mean:
        return Mean.of(self.approximation, self.approximation_stderr)

    @property
    def mean_amortisation(self) -> Mean:
        return Mean.of(self.amortisation, self.amortisation_stderr)


def inference_gaps(
    model: Program,
    guide: Program,
    x: Any,
    *,
    log_evidence: Any,
    family: str = "diagonal",
    num_steps: int = 500,
    num_particles: int = 1000,
    learning_rate: float = 0.05,
    step_particles: int = 10,
    seed: int = 0,
    max_bytes: int = 2**26,
    progress: bool = False,
) -> InferenceGaps:
    r"""Split :math:`\log p(x) - \mathcal L(q_\phi)` into the approximation gap and the amortisation gap.

    .. math::
        \log p(x) - \mathcal L(q_\phi) = \underbrace{\log p(x) - \mathcal L(q^*)}_{\text{approximation}}
        + \underbrace{\mathcal L(q^*) - \mathcal L(q_\phi)}_{\text{amortisation}}, \qquad
        q^* = \arg\max_{q \in \mathcal Q} \mathcal L(q)

    with :math:`q^*` optimised for each datapoint alone, from the guide's Gaussian, by the path derivative of the ELBO
    and Adam with a cosine learning rate; the model is left as it is. The family lives in unconstrained coordinates and
    may be richer than the guide's: then ``approximation`` is the gap that such a guide could reach. If it is poorer (a
    guide that is a flow, or a Gaussian with correlations against ``"diagonal"``), ``amortisation`` may be negative.

    The reported ELBOs are estimated on draws that were used neither in the optimisation nor in the choice between its
    start and its end, so they are unbiased. An optimum that was not quite reached makes ``approximation`` too large and
    ``amortisation`` too small by the same amount. A ``log_evidence`` that is only a lower bound makes ``approximation``
    too small, so give one that is tight, or exact.

    Arguments:
        model, guide: Any Pyro pair with one data plate and continuous local latents.
        x: Data ``[n, ...]``, any array type.
        log_evidence: :math:`\log p(x)` per datapoint: ``[n]``, or an estimate with ``.value`` and ``.stderr``.
        family: ``"diagonal"`` or ``"full"`` Gaussians, or a ``"flow"``: affine couplings under a full Gaussian.
        num_steps: Steps of Adam; with 0 the family's member nearest to the guide is taken.
        num_particles: Draws per datapoint behind the reported ELBOs.
        learning_rate: Adam's learning rate, in standard deviations of the guide; it decays to zero.
        step_particles: Draws per datapoint and step, in antithetic pairs.
        seed: The seed of all draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block of datapoints may take.
        progress: Show a progress bar on a terminal.

    Errors:
        ConfigError: for an unknown family, or a flow in one dimension.
        DataError: for empty or non-finite data, or a ``log_evidence`` that is not one number per datapoint.
        PairError: for discrete latents, point masses and auxiliary sites.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)  https://arxiv.org/abs/1801.03558
        | Sticking the Landing (Roeder et al., 2017)  https://arxiv.org/abs/1703.09194

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> x = problem.sample(3, seed=0)
        >>> guide = problem.guide(scale=[0.4])  # too wide
        >>> gaps = inference_gaps(problem.model, guide, x, log_evidence=problem.log_evidence(x), num_steps=200)
        >>> bool((gaps.approximation.abs() < 0.01).all()), bool((gaps.amortisation > 0.2).all())
        (True, True)
    """
    require_one_of("family", family, FAMILIES)
    num_steps = require_count("num_steps", num_steps, least=0)
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no error bar")
    learning_rate = require_number("learning_rate", learning_rate, least=0)
    step_particles = require_count("step_particles", step_particles)
    max_bytes = require_count("max_bytes", max_bytes)
    pair = Pair.of(model, guide, x)
    evidence, evidence_stderr = _evidence(log_evidence, pair.x)
    parts: list[tuple[Moments, Moments, Tensor]] = []
    with pair.evaluation(seed, "gaps"):
        covariances = max(1, max_bytes // (8 * 8 * pair.footprint.latent_dim**2))  # rows with matrices that fit
        max_rows = min(_MAX_ROWS, covariances)
        blocks = list(pair.blocks(max_bytes, num_particles=step_particles, max_rows=max_rows))
        with progress_bar(len(blocks) * num_steps, progress, "step") as bar:
            for _, rows, max_particles in blocks:
                plan = Plan(num_steps, num_particles, learning_rate, step_particles, max_particles)
                density = Density(rows).require_guide()
                start = gaussian_of_guide(density, max_particles)
                member = FAMILIES[family](start.loc, start.scale_tril)
                best = best_member(density, member, plan, bar.update)
                parts.append(compared(density, start, member, best, plan))
    guides, locals_, differences = zip(*parts, strict=True)
    elbo, elbo_stderr = _joined(guides)
    local, local_stderr = _joined(locals_)
    return InferenceGaps(
        log_evidence=evidence,
        elbo=elbo,
        local_elbo=local,
        approximation=evidence - local,
        amortisation=local - elbo,
        log_evidence_stderr=evidence_stderr,
        elbo_stderr=elbo_stderr,
        local_elbo_stderr=local_stderr,
        approximation_stderr=torch.hypot(evidence_stderr, local_stderr),
        amortisation_stderr=torch.cat(differences),
        family=family,
    )


def _evidence(log_evidence: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and standard error ``[batch]``; the error of a plain array is zero."""
    value, stderr = (getattr(log_evidence, name, None) for name in ("value", "stderr"))
    if value is None:
        value = as_tensor(log_evidence, name="log_evidence")
    value = as_tensor(value).detach().to(x.device, torch.float64)
    stderr = torch.zeros_like(value) if stderr is None else as_tensor(stderr).detach().to(value)
    if value.shape != (len(x),) or stderr.shape != value.shape:
        raise DataError(
            f"log_evidence: found shape {tuple(value.shape)}, expected one number per datapoint, ({len(x)},)"
        )
    require_finite(value, name="log_evidence")
    return value, stderr


def _joined(blocks: tuple[Moments, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard error of all blocks of rows."""
    return torch.cat([block.mean for block in blocks]), torch.cat([block.stderr for block in blocks])
