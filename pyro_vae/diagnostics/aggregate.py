r"""The aggregate posterior: the information of the latents about the data, and its distance from the prior."""

from __future__ import annotations

__all__ = ["AggregatePosterior", "Information", "aggregate_posterior"]

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import DataError, PairError, require_count
from ..ops.means import Mean
from ..pairs.pair import Pair
from ..pairs.running import Program
from ..pairs.traces import guide_sites, latent_sites, require_rows
from .mixtures import Component, log_others

_ROWS = 1024
_COLLAPSED = 0.01  # nats


class Information(NamedTuple):
    r"""The parts of the mean KL divergence, in nats; with :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`, draw by draw,

    .. math:: \underbrace{\tfrac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z))}_{\texttt{kl}}
        = \underbrace{I_q(x; z)}_{\texttt{mutual\_information}}
        + \underbrace{\mathrm{KL}(q(z) \,\|\, p(z))}_{\texttt{prior\_kl}}
    """

    mutual_information: Mean
    """At most log N; on average below the information about all data of this kind."""
    mutual_information_upper: Mean
    """The same with each datapoint's own component left out of the mixture: on average above it."""
    prior_kl: Mean
    """How far the aggregate is from the prior; on average above that of all data of this kind, by as much."""
    kl: Mean
    """Their sum."""


class AggregatePosterior(NamedTuple):
    r"""One latent site over ``num_data`` datapoints."""

    each: Information
    """Dimension by dimension, ``[latent]`` (an event of several dimensions is flattened)."""
    whole: Information
    """All dimensions together, which is not their sum unless they are independent of each other throughout."""
    num_data: int
    num_draws: int

    @property
    def collapsed(self) -> Bool[Tensor, " latent"]:
        """The dimensions without information about x: mutual information below 0.01 nats, whatever their KL is."""
        return self.each.mutual_information.value < _COLLAPSED

    @property
    def at_ceiling(self) -> bool:
        """Whether the whole's information is within 1 nat of log N, its ceiling for N datapoints."""
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
    For the distribution they are from it is too small on average and cannot exceed :math:`\log N`; leaving each
    datapoint's own component out errs in the other direction, so the two enclose it in expectation. Compare them, above
    all for the site as a whole, before a value near :math:`\log N` is believed.

    All :math:`N^2` pairs of datapoints are looked at, in blocks of about ``max_bytes``.

    Arguments:
        model, guide: Any Pyro pair with one data plate and local latents.
        x: Data ``[n, ...]``, any array type; n of at least 2.
        num_draws: Draws per datapoint.
        max_data: Of more datapoints a random subset of this size is taken, unless the pair does not take its datapoints
            one by one: ``num_data`` says how many it was.
        seed: Of the subset and the draws; torch's own generator is left as it is.
        max_bytes: About how much memory a block may take.

    Returns:
        One :class:`AggregatePosterior` per site of the model, with nan where there is no answer: in pairs of several
        latent sites, whose posteriors depend on each other's draws, for the single dimensions of mixtures, and for
        other priors and posteriors than these, independent dimensions and Gaussians with correlations.

    Errors:
        DataError: for empty or non-finite data, or a single datapoint.
        PairError: for a guide whose draws are not finite.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        | On Variational Bounds of Mutual Information (Poole et al., 2019)  https://arxiv.org/abs/1905.06922

    Example:
        >>> import pyro_vae as pv
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
        raise DataError("x: found one datapoint, expected at least 2: one alone shares no information with its latents")
    with pair.evaluation(seed, "aggregate"):
        if len(pair) > max_data and pair.independent_rows:
            pair = pair.rows(torch.randperm(len(pair))[:max_data].sort().values.to(pair.x.device))
        blocks = [_sites(block) for block in pair.split(_ROWS)]
        sites, latent = blocks[0]
        if len(sites) > 1:  # an automatic guide's auxiliary ones are among them
            return {name: _unknown(sites[name], num_draws, len(pair)) for name in latent}
        (name,) = latent
        parts = [Component.of(q[name]["fn"], p[name]["fn"], num_draws) for q, p in blocks]
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


def _summary(parts: list[Component], max_bytes: int) -> AggregatePosterior:
    num_draws = len(parts[0].z)
    num_data = sum(part.z.shape[1] for part in parts)
    others = torch.cat([log_others(place, parts, max_bytes) for place in range(len(parts))], 1)
    log_q = torch.cat([part.log_q for part in parts], 1).double()
    log_prior = torch.cat([part.log_prior for part in parts], 1).double()
    mixture = torch.logaddexp(others, log_q) - math.log(num_data)
    terms = (log_q - mixture, log_q - others + math.log(num_data - 1), mixture - log_prior, log_q - log_prior)
    each, whole = (Information(*(_mean(term[..., part]) for term in terms)) for part in (slice(-1), -1))
    return AggregatePosterior(each, whole, num_data, num_draws)


def _mean(terms: Float[Tensor, "draws rows *part"]) -> Mean:
    return Mean.of(terms.mean(0), terms.std(0) / math.sqrt(len(terms)))


def _unknown(site: Any, num_draws: int, num_data: int) -> AggregatePosterior:
    nothing = site["value"].new_full((2, site["value"][0].numel()), torch.nan)
    each, whole = (Information(*[Mean.of(part, part)] * 4) for part in (nothing, nothing[:, 0]))
    return AggregatePosterior(each, whole, num_data, num_draws)
