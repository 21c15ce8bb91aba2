r"""The aggregate posterior: the information of the latents about the data, and its distance from the prior."""

from __future__ import annotations

__all__ = ["AggregatePosterior", "Information", "aggregate_posterior"]

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MixtureSameFamily, MultivariateNormal, Normal

from ..errors import DataError, PairError, require_count
from ..ops.means import Mean
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.traces import guide_sites, latent_sites, require_rows

_ROWS = 1024
_COLLAPSED = 0.01  # nats
_COPIES = 6  # copies of a block's log-densities that are in memory at once


class Information(NamedTuple):
    r"""The parts of the mean KL divergence, in nats, with :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`:

    .. math:: \underbrace{\tfrac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z))}_{\texttt{kl}}
        = \underbrace{I_q(x; z)}_{\texttt{mutual\_information}}
        + \underbrace{\mathrm{KL}(q(z) \,\|\, p(z))}_{\texttt{prior\_kl}}
    """

    mutual_information: Mean
    """The information of z about the index of x: at most log N, on average below that of the data's distribution."""
    mutual_information_upper: Mean
    """The same with each datapoint's own component left out of the mixture, which is too large on average."""
    prior_kl: Mean
    """The divergence of the aggregate from the prior: too large on average, by what the information lacks."""
    kl: Mean
    """The sum of ``mutual_information`` and ``prior_kl``, draw by draw."""


class AggregatePosterior(NamedTuple):
    r"""The aggregate posterior of one latent site over ``num_data`` datapoints."""

    each: Information
    """The parts for each dimension, ``[latent]`` (an event of several dimensions is flattened)."""
    whole: Information
    """The parts for all dimensions together: the sum over them only if they are independent of each other."""
    num_data: int
    num_draws: int

    @property
    def collapsed(self) -> Bool[Tensor, " latent"]:
        """The dimensions without information about x: mutual information below 0.01 nats, whatever their KL is."""
        return self.each.mutual_information.value < _COLLAPSED

    @property
    def at_ceiling(self) -> bool:
        """True if the information of the whole site is within 1 nat of log N, its ceiling for N datapoints."""
        return self.whole.mutual_information.value.item() > math.log(self.num_data) - 1


@torch.no_grad()
def aggregate_posterior(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_draws: int = 2,
    max_data: int = 2000,
    seed: int = 0,
    max_bytes: int = 2**26,
) -> dict[str, AggregatePosterior]:
    r"""Split the KL term of the ELBO into mutual information and the aggregate's distance from the prior, per site.

    .. math:: I_q(x; z) = \frac1N \sum_n \mathbb E_{q(z \mid x_n)} \Big[
        \log q(z \mid x_n) - \log \frac1N \sum_m q(z \mid x_m) \Big]

    Estimated on draws from every datapoint's posterior, with the mixture over all N of them: unbiased for these data.
    For the distribution behind the data it is too small on average and cannot exceed :math:`\log N`. Leaving each
    datapoint's own component out errs in the other direction, so the two enclose it in expectation. Compare them, above
    all for the site as a whole, before you believe a value near :math:`\log N`.

    The densities of all :math:`N^2` pairs of datapoints are computed in blocks of about ``max_bytes``.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type; n of at least 2.
        num_draws: Draws per datapoint.
        max_data: The size of the random subset that is taken of more datapoints, if the pair takes its datapoints one
            by one; the result's ``num_data`` is the number used.
        seed: The seed of the subset and the draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block may take.

    Returns:
        One :class:`AggregatePosterior` per site of the model. Values are nan for pairs of several latent sites, where
        posteriors depend on each other's draws, for the single dimensions of mixtures, and for priors and posteriors
        that are neither mixtures, nor products over dimensions, nor Gaussians with correlations.

    Errors:
        DataError: for empty or non-finite data, or a single datapoint.
        PairError: for a guide with draws that are not finite.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        | On Variational Bounds of Mutual Information (Poole et al., 2019)  https://arxiv.org/abs/1905.06922

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0, 0.0]], scale=1.0)  # the second latent dimension is not used
        >>> found = aggregate_posterior(problem.model, problem.guide(), problem.sample(500, seed=0))["z"]
        >>> found.collapsed.tolist()
        [False, True]
        >>> information = found.whole.mutual_information  # exactly 0.5 log 2 = 0.347
        >>> bool((information.value - 0.347).abs() < 3 * information.test_set_error)
        True
    """
    num_draws = require_count("num_draws", num_draws, least=2, why=", since one draw has no error bar")
    max_data = require_count("max_data", max_data, least=2)
    max_bytes = require_count("max_bytes", max_bytes)
    pair = Pair.of(model, guide, x)
    if len(pair) < 2:
        raise DataError("x: found one datapoint, expected at least 2, as latents tell them apart: pass more data")
    with pair.evaluation(seed, "aggregate"):
        if len(pair) > max_data and pair.independent_rows:
            pair = pair.rows(torch.randperm(len(pair))[:max_data].sort().values.to(pair.x.device))
        blocks = [_sites(block) for block in pair.split(_ROWS)]
        sites, latent = blocks[0]
        if len(sites) > 1:  # including the auxiliary sites of an automatic guide
            return {name: _unknown(sites[name], num_draws, len(pair)) for name in latent}
        (name,) = latent
        parts = [_Component.of(q[name]["fn"], p[name]["fn"], num_draws) for q, p in blocks]
        return {name: _summary(parts, max_bytes)}


def _sites(pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the guide's and the model's latent sites."""
    guide_trace = pair.run_guide()
    q = guide_sites(guide_trace)
    require_rows(q, len(pair))
    for name, site in q.items():
        bad = int((~site["value"].reshape(len(pair), -1).isfinite()).any(1).sum())
        if bad:
            raise PairError(
                f"the guide's draws of site {name!r} are not finite for {bad} of {len(pair)} datapoints, expected a "
                "posterior for each, since the aggregate is their mixture: leave these datapoints out"
            )
    return q, latent_sites(pair.run_model(guide_trace))


def _summary(parts: list[_Component], max_bytes: int) -> AggregatePosterior:
    num_draws = len(parts[0].z)
    num_data = sum(part.z.shape[1] for part in parts)
    others = torch.cat([_log_others(index, parts, max_bytes) for index in range(len(parts))], 1)
    log_q = torch.cat([part.log_q for part in parts], 1).double()
    log_prior = torch.cat([part.log_prior for part in parts], 1).double()
    mixture = torch.logaddexp(others, log_q) - math.log(num_data)
    terms = (log_q - mixture, log_q - others + math.log(num_data - 1), mixture - log_prior, log_q - log_prior)
    each, whole = (Information(*(_mean(term[..., part]) for term in terms)) for part in (slice(-1), -1))
    return AggregatePosterior(each, whole, num_data, num_draws)


def _mean(terms: Float[Tensor, "draws rows *part"]) -> Mean:
    return Mean.of(terms.mean(0), terms.std(0) / math.sqrt(len(terms)))


def _unknown(site: Any, num_draws: int, num_data: int) -> AggregatePosterior:
    nan = site["value"].new_full((2, site["value"][0].numel()), torch.nan)
    each, whole = (Information(*[Mean.of(part, part)] * 4) for part in (nan, nan[:, 0]))
    return AggregatePosterior(each, whole, num_data, num_draws)


class _Component(NamedTuple):
    """The posteriors of some rows, draws from them, and the densities of these draws."""

    q: Any
    z: Float[Tensor, "draws rows *event"]
    log_q: Float[Tensor, "draws rows parts"]
    log_prior: Float[Tensor, "draws rows parts"]

    @classmethod
    def of(cls, q: Any, p: Any, num_draws: int) -> _Component:
        z = q.sample(torch.Size([num_draws]))
        return cls(q, z, _log_densities(q, z), _log_densities(p, z))


def _log_densities(fn: Any, z: Tensor) -> Float[Tensor, "*batch parts"]:
    """Return log-densities of each dimension and, last, of all of them together; nan where they are not known."""
    event_dim = len(fn.event_shape)
    lead, size = z.shape[: z.ndim - event_dim], fn.event_shape.numel()
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        each = Normal(fn.mean, fn.variance.sqrt(), validate_args=False).log_prob(z)
        return torch.cat([each, fn.log_prob(z)[..., None]], -1)
    if isinstance(fn, MixtureSameFamily):
        whole = fn.log_prob(z)
        return torch.cat([whole.new_full((*whole.shape, size), torch.nan), whole[..., None]], -1)
    base: Any = fn.base_dist if isinstance(fn, Independent) else fn
    if (
        isinstance(base, Delta)
        or base.event_shape
        or len(base.batch_shape) != len(fn.batch_shape) + len(fn.event_shape)
    ):
        return z.new_full((*torch.broadcast_shapes(lead, fn.batch_shape), size + 1), torch.nan)
    each = base.log_prob(z)
    each = each.reshape(*each.shape[: each.ndim - event_dim], size)
    return torch.cat([each, each.sum(-1, keepdim=True)], -1)


def _log_others(index: int, parts: list[_Component], max_bytes: int) -> Float[Tensor, "draws rows parts"]:
    """Return, at the draws of one part, the log of the sum of all components but the draw's own, in float64."""
    part = parts[index]
    widest = max(other.z.shape[1] for other in parts)
    step = max(1, max_bytes // (_COPIES * part.log_q[:, 0].nbytes * widest))
    blocks = []
    for rows in torch.arange(part.z.shape[1], device=part.z.device).split(step):
        z, log_sum = part.z[:, rows].unsqueeze(2), torch.full_like(part.log_q[:, rows].double(), -torch.inf)
        for other in parts:
            cross = _log_densities(other.q, z)  # [draws, rows, components, parts]
            if other is part:
                cross[:, torch.arange(len(rows), device=rows.device), rows] = -torch.inf
            log_sum = torch.logaddexp(log_sum, cross.double().logsumexp(2))
        blocks.append(log_sum)
    return torch.cat(blocks, 1)
