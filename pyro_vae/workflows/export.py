r"""Export of a pair's draws, with the labels of the data, for ArviZ."""

from __future__ import annotations

__all__ = ["to_arviz", "to_datatree"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from pyro.distributions import MaskedDistribution
from torch import Tensor

from .. import __version__
from ..errors import ConfigError, PairError, require_count
from ..ops.pareto import pareto_k
from ..ops.resampling import systematic
from ..ops.weights import ess
from ..pairs.pair import Pair, programs_of, takes_missing
from ..pairs.particles import Particles, draw_particles
from ..pairs.running import Program, run_at
from ..pairs.sites import Sites, weigh
from ..pairs.traces import observed_values
from .labels import Labels, labels_of, numbered, renamed
from .predictive import prior_predictive
from .weighted import replicates


def to_datatree(
    *pair_and_x: Any,
    num_draws: int = 1000,
    draws: Any = None,
    resampled: bool = False,
    coords: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> xr.DataTree:
    r"""Export draws of a pair for given data as an :class:`xarray.DataTree` of ArviZ's groups; needs xarray alone.

    ===================== ==============================================================================================
    ``posterior``         the latent sites, ``[chain, draw, observation, ...]``
    ``sample_stats``      ``log_w``, ``log_prior`` and ``log_q`` of each draw, ``[chain, draw, observation]``, in nats;
                          for each observation k-hat of the weights and the effective number of draws
    ``log_likelihood``    ``log p(x | z)`` by observed site and ``marginal``, log p(x), ``[chain, draw, observation]``
    ``posterior_predictive`` ``prior`` ``prior_predictive`` ``observed_data``
                          replicates of x, draws of z and x from the model, and the data
    ===================== ==============================================================================================

    Draws are from the guide, so that the posterior is represented by them *and* their weights,
    :math:`\log w = \log p(x, z) - \log q(z \mid x)`. Of ``resampled`` ones, and of a refinement's that count the same,
    ``log_w`` is 0 and ``log_q`` still the guide's; ``pareto_k`` and ``ess`` are those of the weights, or the chains,
    that the draws come from.

    There are two log-likelihoods. Of ``x`` given its own z, leave-one-out by reweighting is a harmonic mean of infinite
    variance, whatever ArviZ's k-hat is of it: with parameters held, nothing but its own z is known of x. What is meant
    is :math:`\log p(x)`, so ``az.loo(data, var_name="marginal")`` and ``az.compare`` should be called for it: each
    draw of ``marginal`` is a bootstrap replicate of its importance-sampling estimate. ArviZ's k-hat is of these
    replicates, and fine where the weights are not: put theirs in its place, ``found.pareto_k =
    data["sample_stats"]["pareto_k"]``, before ``az.plot_khat(found)``. ArviZ 1.x's
    ``loo_approximate_posterior`` takes ``log_p = log_prior + log_likelihood`` and ``log_q``; it reweights by
    :math:`p(z) / q(z \mid x)`, for which guides are mostly too narrow, and its k-hat says so. For a number with an
    error bar, a direction and a verdict there is :mod:`pyro_vae.evidence`.

    Dimensions and coordinates of what pandas or xarray holds are kept, an index of several levels as a coordinate for
    each, and labels that netCDF has no type for, such as periods, as text. A ``/`` in a name becomes a ``.``, since it
    would be a group, so the ``table/z`` of :func:`~pyro_vae.embed` is ``table.z``. The first dimension is else called
    ``observation`` and the others ``x_dim_0``, ``x_dim_1``, ... (``feature`` of a data frame); those of a latent site
    ``z_dim_0``, ...

    Arguments:
        pair_and_x: A VAE, or anything else with ``.model`` and ``.guide``, and data; or a model, a guide, and data.
        num_draws: Of each group.
        draws: A :class:`~pyro_vae.Refinement` of the same data, whose draws are taken instead of the guide's.
        resampled: Draw from the weighted draws, so that all count the same.
        coords: Labels by dimension, such as ``{"z_dim_0": ["slant", "width"]}``.
        seed: The draws depend on it alone; torch's own generator is left as it is.

    Errors:
        ConfigError: for arguments that are no pair and data, a refinement of other data or other latent sites, labels
            that do not fit, and names in the data that are those of draws, sites or statistics.
        PairError: for sites called chain, draw or marginal, and as for :func:`pyro_vae.draw_particles`.
        DataError: As there.

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
        >>> tree = pv.to_datatree(vae, torch.zeros(3, 6), num_draws=50, coords={"observation": [*"abc"]})
        >>> dict(tree["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 50, 'observation': 3, 'z_dim_0': 2}
        >>> tree["posterior"]["z"].sel(observation="c").shape
        (1, 50, 2)
    """
    model, guide, data = _pair_and_x(pair_and_x)
    pair = Pair.of(model, guide, data)
    labels = labels_of(data, pair.x)
    with pair.evaluation(seed, "export"):
        found = _numbers(pair, require_count("num_draws", num_draws), draws, resampled, seed)
    groups = _groups(found, labels, pair.x)
    made_by = {
        "inference_library": "pyro_vae",
        "inference_library_version": __version__,
        "draws": "guide" if draws is None else draws.method,
    }
    labels = labels.checked({*groups["posterior"]}, {*groups["posterior_predictive"]}, groups, coords or {})
    return xr.DataTree.from_dict(
        {
            name: xr.Dataset(variables, coords=labels.coords(variables), attrs=made_by)
            for name, variables in groups.items()
            if variables
        }
    )


def to_arviz(
    *pair_and_x: Any,
    num_draws: int = 1000,
    draws: Any = None,
    resampled: bool = False,
    coords: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """Return :func:`to_datatree` in the form of the installed ArviZ: ``InferenceData`` for 0.23, the tree for 1.x.

    Arguments:
        pair_and_x, num_draws, draws, resampled, coords, seed: As for :func:`to_datatree`.
    """
    import arviz as az

    tree = to_datatree(*pair_and_x, num_draws=num_draws, draws=draws, resampled=resampled, coords=coords, seed=seed)
    return az.from_datatree(tree) if hasattr(az, "from_datatree") else tree


class _Numbers(NamedTuple):
    """The numbers behind the groups, by the sites' own names."""

    num_chains: int
    z: dict[str, Tensor]
    stats: dict[str, Tensor]
    """Statistics of each draw, ``[draws, batch]``."""
    quality: dict[str, Tensor]
    """Statistics of each datapoint, ``[batch]``."""
    log_likelihood: dict[str, Tensor]
    replicates: dict[str, Tensor]
    prior: dict[str, Tensor]
    observed: dict[str, Tensor]


def _numbers(pair: Pair, num_draws: int, draws: Any, resampled: bool, seed: int) -> _Numbers:
    own = draw_particles(pair.model, pair.guide, pair, num_particles=num_draws)
    drawn = _of_guide(own) if draws is None else _of_refinement(draws, own, pair.x)
    if resampled:
        drawn = drawn.resampled()
    log_w = drawn.log_w
    sites = _scored(pair, drawn.z)
    again = {name: value for name, (value, _) in replicates(pair, drawn.z).items()}
    values = _observed(pair)
    prior = _prior(pair.model, num_draws, seed)
    marginal = _replicated(own.log_w, len(log_w))
    log_prior, log_likelihood = _sum(sites.log_prior), _sum(sites.log_likelihood)
    # The density that weighted draws are from, which may be another than the guide's.
    log_q = log_prior + log_likelihood - log_w if log_w.any() else _sum(sites.log_q)
    return _Numbers(
        drawn.num_chains,
        renamed(drawn.z),
        {"log_w": log_w, "log_prior": log_prior, "log_q": log_q},
        {"pareto_k": drawn.pareto_k, "ess": drawn.ess},
        {**renamed(sites.log_likelihood), "marginal": marginal},
        renamed(again),
        renamed(prior),
        {name: value for name, value in renamed(values).items() if name in renamed(again)},
    )


def _groups(found: _Numbers, labels: Labels, x: Tensor) -> dict[str, dict[str, Any]]:
    """Return group -> variable -> ``(dimensions, array)``."""
    chains, first = found.num_chains, labels.first
    dims = {name: labels.over(name, value, x) for name, value in found.observed.items()}
    latent = {name: numbered(name, value, 2) for name, value in found.z.items()}
    predicted = {name: value for name, value in found.prior.items() if name in found.replicates}
    return {
        "posterior": {name: _array(value, chains, [first, *latent[name]]) for name, value in found.z.items()},
        "sample_stats": {name: _array(value, chains, [first]) for name, value in found.stats.items()}
        | {name: ([first], value.cpu().numpy()) for name, value in found.quality.items()},
        "log_likelihood": {name: _array(value, chains, [first]) for name, value in found.log_likelihood.items()},
        "posterior_predictive": {
            name: _array(value, chains, [first, *dims[name]]) for name, value in found.replicates.items()
        },
        "prior": {name: _array(found.prior[name], 1, latent[name]) for name in found.z if name in found.prior},
        "prior_predictive": {name: _array(value, 1, dims[name]) for name, value in predicted.items()},
        "observed_data": {name: ([first, *dims[name]], value.cpu().numpy()) for name, value in found.observed.items()},
    }


class _Drawn(NamedTuple):
    """Draws, those of the first chain first, and their quality for each datapoint."""

    num_chains: int
    z: dict[str, Tensor]
    log_w: Tensor
    pareto_k: Tensor
    ess: Tensor

    def resampled(self) -> _Drawn:
        """Return as many draws of equal weight, which are no better than these."""
        chosen = systematic(self.log_w), torch.arange(self.log_w.shape[1], device=self.log_w.device)
        z = {name: value[chosen] for name, value in self.z.items()}
        return self._replace(z=z, log_w=torch.zeros_like(self.log_w))


def _of_guide(own: Particles) -> _Drawn:
    return _Drawn(1, own.z, own.log_w, pareto_k(own.log_w), ess(own.log_w))


def _of_refinement(draws: Any, own: Particles, x: Tensor) -> _Drawn:
    if not isinstance(getattr(draws, "z", None), dict) or not hasattr(draws, "num_chains"):
        raise ConfigError(f"draws: found {type(draws).__name__}, expected what pyro_vae.refine returns")
    if (found := draws.log_w.shape[1]) != (expected := own.log_w.shape[1]):
        raise ConfigError(f"draws: found a refinement of {found} datapoints, expected one of the {expected} in x")
    if draws.x.shape != x.shape or not torch.equal(draws.x.nan_to_num(), x.to(draws.x).nan_to_num()):
        raise ConfigError("draws: found a refinement of other data than x: refine the same rows, in the same order")
    shapes = [{name: [*value.shape[2:]] for name, value in sorted(of.z.items())} for of in (draws, own)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"draws: found latent sites {shapes[0]}, expected those of the pair, {shapes[1]}")
    return _Drawn(draws.num_chains, draws.z, draws.log_w, draws.pareto_k, draws.ess)


def _pair_and_x(given: tuple[Any, ...]) -> tuple[Program, Program, Any]:
    if len(given) == 3 and callable(given[0]) and callable(given[1]):
        return given
    if len(given) == 2:
        return *programs_of(given[0]), given[1]
    raise ConfigError(
        f"expected (vae, x) or (model, guide, x), found {', '.join(type(part).__name__ for part in given) or 'nothing'}"
    )


def _replicated(log_w: Tensor, num: int) -> Tensor:
    """Return bootstrap replicates ``[num, batch]`` of the importance-sampling estimate of log p(x)."""
    counts = torch.distributions.Multinomial(len(log_w), torch.ones(len(log_w), dtype=torch.float64))
    some = max(1, 2**22 // len(log_w))  # the counts of all replicates are num times as many numbers as there are draws
    blocks = [counts.sample((min(some, num - done),)).to(log_w.device) for done in range(0, num, some)]
    largest = log_w.double().amax(0)
    mean = torch.cat([block @ (log_w.double() - largest).exp() for block in blocks]) / len(log_w)
    return mean.clamp(min=torch.finfo(torch.float64).tiny).log() + largest


def _scored(pair: Pair, z: dict[str, Tensor]) -> Sites:
    """Return the log-densities of model and guide at these draws, site by site."""
    num, vectorized = len(next(iter(z.values()))), pair.vectorized()
    values = pair.run_guide()
    drawn = list(run_at(pair.guide, values, z, pair.args, pair.kwargs, together=vectorized.guide))
    return weigh(pair, drawn, num, vectorized)


def _prior(model: Program, num: int, seed: int) -> dict[str, Tensor]:
    """Return draws from a model that generates; nothing for other models."""
    try:
        return prior_predictive(model, num, seed=seed)
    except PairError:
        return {}


def _observed(pair: Pair) -> dict[str, Tensor]:
    """Return the values that the model observes, ``[batch, *event]``, with NaN where an entry is missing."""
    sites = pair.model_sites(pair.run_guide())
    values = observed_values(sites)
    if not takes_missing(pair.model):
        return values
    return {name: value.masked_fill(_missing(sites[name], value, pair.x), torch.nan) for name, value in values.items()}


def _missing(site: Any, value: Tensor, x: Tensor) -> Tensor:
    """Return where an observed value is missing: where x is NaN, or the site is masked."""
    fn, mask = site["fn"], site["mask"]
    while not isinstance(fn, MaskedDistribution) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, MaskedDistribution):
        mask = fn._mask
    missing = x.isnan() if x.shape == value.shape else torch.zeros_like(value, dtype=torch.bool)
    if isinstance(mask, Tensor):
        missing = missing | ~mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
    return missing


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum(0)


def _array(value: Tensor, num_chains: int, dims: list[str]) -> tuple[list[str], np.ndarray]:
    """Return dimensions and array of draws, split into chains."""
    array = value.detach().cpu().numpy()
    return ["chain", "draw", *dims], array.reshape(num_chains, -1, *array.shape[1:])
