r"""A pair's log-densities as functions of the latent values, for Markov chains, grids and local optimisation."""

from __future__ import annotations

__all__ = ["Density", "Terms"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to, constraints

from ..errors import PairError
from ..ops.weights import log_mixture
from .pair import Pair
from .running import Program, as_trace, particle_plate, redraw, replay, run_at, same_rows, trace
from .traces import (
    common_scale,
    guide_sites,
    is_point_mass,
    latent_sites,
    observed_values,
    require_densities,
    require_rows,
    require_same_sites,
    sample_sites,
    site_log_prob,
    total,
)


class Terms(NamedTuple):
    """Log-densities at given latent values, in nats per datapoint, unscaled, in unconstrained coordinates."""

    log_prior: Float[Tensor, "particles batch"]
    log_likelihood: Float[Tensor, "particles batch"]
    log_q: Float[Tensor, "particles batch"]

    @property
    def log_p(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z)`."""
        return self.log_prior + self.log_likelihood

    @property
    def log_w(self) -> Float[Tensor, "particles batch"]:
        r""":math:`\log p(x, z) - \log q(z \mid x)`."""
        return self.log_p - self.log_q


class Density:
    r"""The pair on some rows of data, as a function of :math:`u \in \mathbb R^D`, the latent values of all sites.

    A site whose values are constrained (positive, a simplex) is mapped to unconstrained coordinates, and the logarithm
    of the Jacobian determinant is part of ``log_prior`` and of ``log_q``: both are densities of u. The likelihood and
    the weights are the same in either coordinates. All terms can be differentiated by u.

    The guide's networks run once, when the object is made, if it has one latent site. A model whose networks take no
    leading particle dimension gets particles as further rows, or one by one if its rows depend on each other.

    Arguments:
        pair: A pair with continuous local latents; all of its rows are in memory at once.

    Errors:
        PairError: for discrete or masked latents, a guide on other values than the model's, or what
            :func:`~pyro_vae.draw_particles` refuses.

    Example:
        >>> problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
        >>> density = Density(Pair.of(problem.model, problem.guide(), torch.zeros(3, 2)))
        >>> density.terms(density.draw(5)).log_w.shape
        torch.Size([5, 3])
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        with torch.no_grad():
            self._drawn = pair.run_guide()
            latent = guide_sites(self._drawn)
            require_rows(latent, len(pair))
            sites = pair.model_sites(self._drawn)
            self._prior = {name: site for name, site in sites.items() if not site["is_observed"]}
            require_same_sites(latent, self._prior)
            common_scale([*latent.values(), *sites.values()])
            _require_unmasked({**latent, **self._prior})
        self._vectorized = pair.vectorized(self._drawn)
        self._transforms = {name: _transform(name, site, self._prior.get(name)) for name, site in latent.items()}
        values = {name: self._transforms[name].inv(site["value"]) for name, site in latent.items()}
        self._shapes = {name: value.shape[1:] for name, value in values.items()}
        self.dim = sum(shape.numel() for shape in self._shapes.values())

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.pair)

    @property
    def sizes(self) -> dict[str, int]:
        """Latent site name -> the number of its coordinates, in their order."""
        return {name: shape.numel() for name, shape in self._shapes.items()}

    def require_guide(self) -> Density:
        """Return itself, or raise :class:`~pyro_vae.errors.PairError` for point masses, which have no density."""
        require_densities(guide_sites(self._drawn))
        return self

    def draw(self, num: int) -> Float[Tensor, "particles batch latent"]:
        """Return draws from the guide."""
        return self._draw(self.pair.guide, num, latent_sites(self._drawn), self._vectorized.guide)

    def draw_prior(self, num: int) -> Float[Tensor, "particles batch latent"]:
        """Return draws from the model's prior; with one latent site the model does not run again."""
        return self._draw(self.pair.model, num, self._prior, self._vectorized.model)

    def _draw(
        self, program: Program, num: int, sites: dict[str, Any], together: bool
    ) -> Float[Tensor, "particles batch latent"]:
        args, kwargs = self.pair.args, self.pair.kwargs
        if len(sites) == 1:  # its distribution is known
            drawn = [redraw(as_trace(sites), num)]
        elif together:
            with particle_plate(num):
                drawn = [trace(same_rows(program, self._drawn), args, kwargs)]
        else:
            drawn = [trace(same_rows(program, self._drawn), args, kwargs) for _ in range(num)]
        latent: list[dict[str, Any]] = [latent_sites(one) for one in drawn]
        z = {name: torch.stack([one[name]["value"] for one in latent]) for name in self._shapes}
        if len(drawn) == 1 and num > 1:
            z = {name: value[0] for name, value in z.items()}
        return self.coordinates({name: value.expand(num, len(self), *value.shape[2:]) for name, value in z.items()})

    def draw_defensive(
        self, num: int, from_prior: int
    ) -> tuple[Float[Tensor, "particles batch latent"], Float[Tensor, "particles batch"]]:
        r"""Return draws from :math:`\alpha\, p(z) + (1 - \alpha)\, q(z \mid x)`, and their weights.

        .. math:: w = p(x, z) / \big(\alpha\, p(z) + (1 - \alpha)\, q(z \mid x)\big) \le p(x \mid z) / \alpha

        Arguments:
            num: The number of draws.
            from_prior: The number of those from the prior, which come first; at least one, and fewer than ``num``.

        References:
            | Safe and Effective Importance Sampling (Owen & Zhou, 2000)  https://doi.org/10.1080/01621459.2000.10473909
        """
        u = torch.cat([self.draw_prior(from_prior), self.draw(num - from_prior)])
        terms = self.terms(u)
        return u, terms.log_p - log_mixture(terms.log_prior, terms.log_q, from_prior / num)

    def values(self, u: Float[Tensor, "particles batch latent"]) -> dict[str, Tensor]:
        """Return site name -> ``[particles, batch, *event]``."""
        parts = u.split([shape.numel() for shape in self._shapes.values()], -1)
        return {
            name: self._transforms[name](part.reshape(*u.shape[:2], *self._shapes[name]))
            for name, part in zip(self._shapes, parts, strict=True)
        }

    def coordinates(self, z: dict[str, Tensor]) -> Float[Tensor, "particles batch latent"]:
        """Return the coordinates of these :meth:`values`."""
        parts = [self._transforms[name].inv(z[name]) for name in self._shapes]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def observed(self) -> dict[str, Tensor]:
        """Return site name -> the values ``[batch, *event]`` that the model observes."""
        return observed_values(self.pair.model_sites(self._drawn))

    def sites_at(self, u: Float[Tensor, "nodes latent"]) -> dict[str, Any]:
        """Return the model's sites on copies of the first row of data, one for each of these latent values."""
        z = {name: value[:, 0] for name, value in self.values(u[:, None]).items()}
        x = self.pair.x[:1].expand(len(u), *self.pair.x.shape[1:])
        return sample_sites(replay(self.pair.model, self._as_rows(z), (x,), {}))

    def terms(self, u: Float[Tensor, "particles batch latent"], *, q: bool = True) -> Terms:
        """Return all log-densities at u; without ``q``, ``log_q`` is zero and the guide does not run."""
        z = self.values(u)
        jacobian = self.log_jacobian(u, z)
        sites = self._log_probs(self.pair.model, z, self._vectorized.model)
        prior = total({name: term for name, term in sites.items() if name in z}) + jacobian
        likelihood = total({name: term for name, term in sites.items() if name not in z})
        log_q = self._log_q(z) + jacobian if q else torch.zeros_like(prior)
        return Terms(prior, likelihood.expand_as(prior), log_q)

    def log_q(self, u: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch"]:
        """Return the guide's log-density at u; the model does not run."""
        z = self.values(u)
        return self._log_q(z) + self.log_jacobian(u, z)

    def log_jacobian(
        self, u: Float[Tensor, "particles batch latent"], z: dict[str, Tensor]
    ) -> Float[Tensor, "particles batch"]:
        """Return the log-determinant of the Jacobian of the map from u to its :meth:`values` z."""
        parts = u.split([shape.numel() for shape in self._shapes.values()], -1)
        found = u.new_zeros(u.shape[:2])
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            log_det = self._transforms[name].log_abs_det_jacobian(part.reshape(*u.shape[:2], *shape), z[name])
            found = found + log_det.reshape(*u.shape[:2], -1).sum(-1)
        return found

    def _log_q(self, z: dict[str, Tensor]) -> Float[Tensor, "particles batch"]:
        if len(z) == 1:  # its distribution is known; a change of values needs no network
            ((name, value),) = z.items()
            site = {**guide_sites(self._drawn)[name], "value": value if len(value) > 1 else value[0]}
            return site_log_prob(site, len(value))
        return total(self._log_probs(self.pair.guide, z, self._vectorized.guide))

    def _log_probs(self, program: Program, z: dict[str, Tensor], together: bool) -> dict[str, Tensor]:
        """Return the log-densities ``[particles, batch]`` of the program's sites, with its latent ones at ``z``."""
        num, rows = next(iter(z.values())).shape[:2]
        if num > 1 and not together and self.pair.independent_rows:
            folded = self._as_rows({name: value.flatten(0, 1) for name, value in z.items()})
            x = self.pair.x.expand(num, *self.pair.x.shape).flatten(0, 1)
            sites = sample_sites(replay(program, folded, (x,), {}))
            return {name: site_log_prob(site, 1).reshape(num, rows) for name, site in sites.items()}
        each = [
            {name: site_log_prob(site, num if together else 1) for name, site in sample_sites(one).items()}
            for one in run_at(program, self._drawn, z, self.pair.args, self.pair.kwargs, together=together)
        ]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]} if len(each) > 1 else each[0]

    def _as_rows(self, z: dict[str, Tensor]) -> poutine.Trace:
        """Return latent values ``[rows, *event]`` to replay a program at, without the plates' indices."""
        return as_trace({name: {**site, "value": z[name]} for name, site in latent_sites(self._drawn).items()})


def _require_unmasked(latent: dict[str, Any]) -> None:
    if masked := [name for name, site in latent.items() if isinstance(site["mask"], Tensor)]:
        raise PairError(
            f"latent sites {masked} are masked for some datapoints, expected a density everywhere: mask the observed "
            "sites alone, or leave the datapoints out"
        )


def _transform(name: str, site: Any, prior: Any) -> Any:
    """Return the map from unconstrained coordinates to the model's support, over which p(x) is an integral."""
    if site["infer"].get("is_auxiliary"):
        raise PairError(
            f"site {name!r} of the guide is auxiliary, expected the model's own latents: chains, grids and mixtures "
            "need their density; use evidence.importance, with proposal='guide'"
        )
    if not site["fn"].has_rsample:
        raise PairError(
            f"site {name!r} has no reparameterised distribution ({type(site['fn']).__name__}), expected continuous "
            "latents: chains, grids and mixtures move through them; use evidence.importance, with proposal='guide'"
        )
    support, needed = (_components(part["fn"].support) for part in (site, prior))
    if not is_point_mass(site["fn"]) and not _alike(biject_to(support), biject_to(needed), site["value"]):
        raise PairError(
            f"site {name!r}: the guide's values are in {_line(support)}, the model's in {_line(needed)}, expected the "
            "same: chains, grids and mixtures would miss some of p(x); give the guide a distribution on all of it"
        )
    return biject_to(needed)


def _components(support: Any) -> Any:
    """Return the support; for a mixture, whose support has no map of its own, that of its components."""
    return support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support


def _alike(one: Any, other: Any, value: Tensor) -> bool:
    """Return whether two maps from unconstrained coordinates agree at one value."""
    u = one.inv(value)
    found, expected = one(u), other(u)
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-6, equal_nan=True)


def _line(constraint: Any) -> str:
    return " ".join(repr(constraint).split())
