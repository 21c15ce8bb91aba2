r"""Imputation of missing values, with intervals."""

from __future__ import annotations

__all__ = ["Imputation", "impute"]

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.arrays import as_mask, as_tensor
from ..errors import ConfigError, require_count
from ..models.incomplete import Incomplete
from ..ops import verdicts
from ..ops.pareto import pareto_k
from ..ops.verdicts import Judgement
from ..ops.weights import ess, quantile, weights_of
from ..pairs.pair import Pair
from ..pairs.traces import observed_site
from .weighted import Weighted, replicates, require_from_prior, weighted_blocks


class Imputation(NamedTuple):
    r"""Missing values as means, as draws and as intervals; observed values are unchanged in each."""

    mean: Tensor
    r"""``[batch, *event]``: :math:`\mathbb E[x^{\mathrm{mis}} \mid x^{\mathrm{obs}}]`, the single imputation."""
    draws: Tensor
    r"""``[imputations, batch, *event]`` of :math:`p(x^{\mathrm{mis}} \mid x^{\mathrm{obs}})`, to run an analysis on."""
    lower: Tensor
    """``[batch, *event]``: where the central interval of each missing entry begins."""
    upper: Tensor
    """``[batch, *event]``: where it ends."""
    ess: Float[Tensor, " batch"]
    """The number of draws that the weighted ones are worth."""
    pareto_k: Float[Tensor, " batch"]
    judgement: Judgement

    @classmethod
    def joined(cls, parts: Sequence[Imputation]) -> Imputation:
        """Return the imputations of consecutive blocks of rows, joined."""
        found = {name: [getattr(part, name) for part in parts] for name in cls._fields}
        judgement = Judgement.joined(found.pop("judgement"))
        return cls(**{name: torch.cat(part, int(name == "draws")) for name, part in found.items()}, judgement=judgement)

    verdict, reason = verdicts.verdict, verdicts.reason

    @property
    def mode(self) -> Tensor:
        """``[batch, *event]``: the most frequent of the draws, for entries that are categories."""
        return self.draws.mode(0).values


def impute(
    pair: Any,
    x: Any,
    *,
    mask: Any = None,
    num_particles: int = 1000,
    num_imputations: int = 20,
    from_prior: int | None = None,
    level: float = 0.9,
    seed: int = 0,
    max_bytes: int = 2**27,
) -> Imputation:
    r"""Impute the missing entries of each datapoint from the observed ones, by self-normalised importance sampling.

    .. math:: \mathbb E[x^{\mathrm{mis}} \mid x^{\mathrm{obs}}] \approx \sum_k \tilde w_k \,
        \mathbb E[x^{\mathrm{mis}} \mid z_k], \qquad w_k = \frac{p(x^{\mathrm{obs}}, z_k)}{q(z_k \mid x^{\mathrm{obs}})}

    Some of the draws are from the prior, to which a posterior comes the nearer the less is observed, and where a guide
    that was trained on whole data does not look; their weights are those of the mixture.

    Multiple imputations are draws of :math:`(z_k, x^{\mathrm{mis}}_k)` resampled by the same weights; the interval is
    between their weighted quantiles, so it is of the missing value and not only of its mean.

    Arguments:
        pair: A VAE, an :class:`~pyro_vae.Incomplete` pair, or a tuple of programs that take ``mask=``.
        x: Data ``[n, ...]``, NaN where they are missing.
        mask: True where x is observed, instead of NaN or in addition to it.
        num_particles: Draws per datapoint.
        num_imputations: How many of them are returned as imputations.
        from_prior: How many of the draws are from the prior and not from the guide; by default half. Discrete latents
            have to do without, 0.
        level: The probability of the interval.
        seed: The draws depend on it alone; torch's own generator is left as it is.
        max_bytes: About how much memory a block of datapoints may take; other blocks are other draws.

    Errors:
        ConfigError: for a level outside (0, 1), and numbers of draws out of range.
        DataError, ShapeError: for infinite values, or a mask that does not fit the data.
        PairError: for a model with several observed sites, or one that observes something else than x; for programs
            that take no mask; and for discrete latents unless ``from_prior=0``.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> found = pv.impute((problem.model, problem.guide()), torch.tensor([[1.0, torch.nan]]))
        >>> found.mean[0, 0], bool((found.mean[0, 1] - 1.6).abs() < 0.1)  # exactly, 2 / (1 + 0.5**2)
        (tensor(1.), True)
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: expected a probability between 0 and 1, such as 0.9")
    num_particles = require_count("num_particles", num_particles, least=2, why=", since one draw has no spread")
    num_imputations = require_count("num_imputations", num_imputations)
    from_prior = require_from_prior(num_particles, num_particles // 2 if from_prior is None else from_prior)
    incomplete = Incomplete(pair)
    model, guide = incomplete.model, incomplete.guide
    opened, parts = Pair.of(model, guide, _with_nan(as_tensor(x), mask)), []
    with opened.evaluation(seed, "impute"):
        for block in weighted_blocks(opened, num_particles=num_particles, max_bytes=max_bytes, from_prior=from_prior):
            with block.pair.evaluation(seed, "observed"):
                observed_site(block.pair.model_sites(block.pair.run_guide()), block.pair.x)
            parts.append(_imputed(block, num_imputations, level))
    return Imputation.joined(parts)


def _imputed(block: Weighted, num_imputations: int, level: float) -> Imputation:
    ((values, fns),) = replicates(block.pair, block.z).values()
    values = values.to(block.pair.x).reshape(*values.shape[:2], *block.pair.x.shape[1:])  # categories are whole numbers
    weights = weights_of(values, block.log_w)
    means = fns[0].mean if len(fns) == 1 and len(values) > 1 else torch.stack([fn.mean for fn in fns])
    means = means.reshape(values.shape)
    means = torch.where(means.isfinite(), means, values)  # a category's number has none, nor has a Cauchy's value
    chosen = block._replace(z={"x": values}).resampled(num_imputations)["x"]
    missing, x = block.pair.x.isnan(), block.pair.x.nan_to_num()

    def filled(imputed: Tensor) -> Tensor:
        return torch.where(missing, imputed.to(x), x)

    tail = (1 - level) / 2
    return Imputation(
        mean=filled((weights * means).sum(0)),
        draws=filled(chosen),
        lower=filled(quantile(values, block.log_w, tail)),
        upper=filled(quantile(values, block.log_w, 1 - tail)),
        ess=ess(block.log_w),
        pareto_k=pareto_k(block.log_w),
        judgement=block.judgement,
    )


def _with_nan(x: Tensor, mask: Any) -> Tensor:
    """Return the data with NaN where the mask is false."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if mask is None or (mask := as_mask(mask, x)) is None:
        return x
    return x.masked_fill(~mask, torch.nan)
