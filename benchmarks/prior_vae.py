r"""PriorVAE: a VAE of Gaussian-process draws as the prior of a regression, against the exact Gaussian process.

There are a thousand places on a line, and functions with a squared-exponential covariance of unknown length, uniform
in [0.1, 0.4]. A VAE is trained on draws of their twelve leading coefficients. Then twenty noisy values of each of
several functions are given. Pyro's NUTS draws from the posterior with the decoder as the prior, and its answer is
compared with the exact one, a mixture over the lengths; so is that of one Gaussian with the average covariance, which
is where the VAE's training starts. Last, the parts of an inference at n = 1,000 are timed in turn.
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import MixtureSameFamily

import pyro_vae as pv
from pyro_vae.models.likelihoods.base import bisect

from .provenance import Clock, add_arguments, origin, write

_PLACES = torch.linspace(0, 1, 1000, dtype=torch.float64)
_SHORT, _LONG = 0.1, 0.4  # the range of lengths
_NOISE = 0.1
_CHAINS = 4
_ANSWERS = ("vae", "one_gaussian", "exact")
_TAILS = torch.tensor([0.05, 0.95], dtype=torch.float64)


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Write ``prior_vae.json``."""
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*torch.jit")  # Pyro compiles with it
    provenance, clock = origin(argv, seed=args.seed), Clock()
    num_lengths, num_epochs, num_problems, num_draws, turns = 64, 1000, 20, 1500, 3
    if args.smoke:
        num_lengths, num_epochs, num_problems, num_draws, turns = 4, 2, 1, 20, 1
    lengths = torch.linspace(_SHORT, _LONG, 2 * num_lengths + 1)[1::2].tolist()  # the middles of equal intervals
    fields = pv.GaussianFields(_covariance, lengths, num_coefficients=12, num_draws=5120)
    average = torch.stack([_covariance(length) for length in lengths]).mean(0)
    gaussian = pv.GaussianFields(lambda _: average, [None], num_coefficients=12)
    vae, training = _trained(fields, num_epochs, args.seed)
    prior = pv.decoder_prior(vae)
    before = [value.clone() for value in vae.state_dict().values()]
    problems = []
    for number in range(num_problems):
        torch.manual_seed(args.seed + number)
        problems.append(_problem(fields, gaussian, prior, num_draws))
        print(number, problems[-1])
    record = {
        **provenance,
        "lengths": [_SHORT, _LONG, num_lengths],
        "left_out": fields.left_out,
        "training": {"epochs": num_epochs, **training},
        "draws": [_CHAINS, num_draws],
        "answers": {name: _mean_of([problem[name] for problem in problems]) for name in _ANSWERS},
        "worst_r_hat": max(problem["r_hat"] for problem in problems),
        "decoder_untouched": all(map(torch.equal, before, vae.state_dict().values())),
        "problems": problems,
        "time": _times(fields, prior, turns, num_draws),
    }
    write(args.out / "prior_vae.json", {**record, **clock.read()})


def _covariance(length: Any, places: Tensor = _PLACES) -> Tensor:
    differences = (places[:, None] - places) / length
    return torch.exp(-(differences**2) / 2)


def _trained(fields: pv.GaussianFields, num_epochs: int, seed: int) -> tuple[pv.VAE, dict[str, float]]:
    """Return the VAE, and KL(fields || VAE), as a mean of differences of log-densities at draws of the fields."""
    torch.manual_seed(seed)
    vae = pv.presets.ppca_vae(
        data_shape=(12,),
        latent_dim=16,
        hidden=(128, 128),
        likelihood_scale=fields.noise,
        scale_mixture=True,
        data_covariance=fields.data_covariance,
    )
    x = fields[:2000]
    start = time.perf_counter()
    pv.fit(
        vae,
        fields,
        num_epochs=num_epochs,
        batch_size=256,
        learning_rate=2e-3,
        schedule="cosine",
        objective=pv.objectives.IWAE(num_particles=8),
        seed=seed,
    )
    seconds = time.perf_counter() - start
    evidence = pv.evidence.importance(vae.model, vae.guide, x, num_particles=1000, seed=seed)
    kl = fields.log_prob(x) - evidence.value
    return vae, {"seconds": seconds, "kl": kl.mean().item(), "kl_stderr": (kl.std() / len(kl) ** 0.5).item()}


def _problem(fields: pv.GaussianFields, gaussian: pv.GaussianFields, prior: Any, num_draws: int) -> dict[str, Any]:
    """Compare three answers, given twenty noisy values of a function with a length that is not on the grid."""
    f = _function()
    places = torch.randperm(len(_PLACES))[:20]
    y = f[places] + _NOISE * torch.randn(20)
    exact = fields.given(places, y, scale=_NOISE)
    one = gaussian.given(places, y, scale=_NOISE)
    z, seconds = _posterior(lambda: fields.basis[places] @ prior(), y, num_draws, _CHAINS)
    draws = _at_all_places(fields, prior, z)
    return {
        "vae": _held_against(exact, f, draws.mean(0), draws.std(0), draws.quantile(_TAILS, 0)),
        "one_gaussian": _held_against(exact, f, one.mean, one.stddev, _quantiles(one)),
        "exact": _held_against(exact, f, exact.mean, exact.stddev, _quantiles(exact)),
        "r_hat": split_gelman_rubin(z).max().item(),
        "effective_draws": effective_sample_size(z).min().item(),
        "seconds": seconds,
    }


def _function() -> Tensor:
    """Return a function of random length, as its values at all places."""
    length = torch.empty(()).uniform_(_SHORT, _LONG).item()
    return _factor(_covariance(length)) @ torch.randn(len(_PLACES), dtype=torch.float64)


def _factor(covariance: Tensor) -> Tensor:
    return torch.linalg.cholesky(covariance + 1e-8 * torch.eye(len(covariance), dtype=torch.float64))


def _posterior(field: Callable[[], Tensor], y: Tensor, num_draws: int, num_chains: int) -> tuple[Tensor, float]:
    """Return draws of the decoder's latents given y, ``[chains, draws, latent]``, and the seconds they took."""

    def model() -> None:
        pyro.sample("y", dist.Normal(field(), _NOISE).to_event(1), obs=y.float())

    start = time.perf_counter()
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    options = {"num_samples": num_draws, "warmup_steps": num_draws // 4, "disable_progbar": True}
    chains = [MCMC(kernel, **options) for _ in range(num_chains)]
    draws = []
    for chain in chains:
        chain.run()
        draws.append(chain.get_samples()["field/z"])
    z = torch.stack(draws)
    return z, time.perf_counter() - start


def _at_all_places(fields: pv.GaussianFields, prior: Any, z: Tensor) -> Tensor:
    return (prior.at({"z": z.flatten(0, 1)}).mean @ fields.basis.T).double()


def _held_against(
    exact: MixtureSameFamily, f: Tensor, mean: Tensor, scale: Tensor, interval: Tensor
) -> dict[str, float]:
    """Return averages over all places; ``interval`` should hold f with a probability of 90%."""
    low, high = interval
    return {
        "mean_error": ((mean - exact.mean) / exact.stddev).square().mean().sqrt().item(),
        "scale_ratio": (scale / exact.stddev).mean().item(),
        "exact_probability": (exact.cdf(high) - exact.cdf(low)).mean().item(),
        "holds_truth": ((f > low) & (f < high)).double().mean().item(),
    }


def _quantiles(p: MixtureSameFamily) -> Tensor:
    """Return the ends of the central 90% at each place, by bisection."""
    far = 10 * p.stddev
    low, high = p.mean - far, p.mean + far
    return torch.stack([bisect(p.cdf, tail.expand_as(far), low, high) for tail in _TAILS])


def _mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]}


def _times(fields: pv.GaussianFields, prior: Any, turns: int, num_draws: int) -> dict[str, Any]:
    """Time the parts of an inference on one function with a value at every place; each turn does all of them once."""
    f = _function()
    y = f + _NOISE * torch.randn(len(f))
    work = {
        "gradient_gp": lambda: _seconds(lambda: _gradient_gp(y)),
        "gradient_gp_twenty": lambda: _seconds(lambda: _gradient_gp_marginal(y, torch.arange(0, 1000, 50))),
        "gradient_gp_marginal": lambda: _seconds(lambda: _gradient_gp_marginal(y, torch.arange(1000))),
        "gradient_vae": lambda: _seconds(lambda: _gradient_vae(fields, prior, y), 20),
        "effective_draw_gp_marginal": lambda: _per_effective_draw(lambda: _draws_gp(y, max(num_draws // 10, 10))),
        "effective_draw_vae": lambda: _per_effective_draw(lambda: _draws_vae(fields, prior, y, num_draws)),
    }
    found = {name: [] for name in work}
    for _ in range(turns):
        for name, measure in work.items():
            found[name].append(measure())
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ratios = {
        "gradient": medians["gradient_gp"] / medians["gradient_vae"],
        "effective_draw": medians["effective_draw_gp_marginal"] / medians["effective_draw_vae"],
    }
    return {"seconds": medians, "gp_over_vae": ratios, "turns": found}


def _seconds(do: Callable[[], object], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        do()
    return (time.perf_counter() - start) / times


def _per_effective_draw(draw: Callable[[], Tensor]) -> float:
    """Return seconds over the effective number of draws, the smallest of twenty values of the function."""
    start = time.perf_counter()
    draws = draw()
    seconds = time.perf_counter() - start
    return seconds / effective_sample_size(draws[None, :, ::50]).min().item()


def _gradient_gp(y: Tensor) -> None:
    """Differentiate log p(y, f, length), f as a factor times white noise, as any likelihood but the Gaussian needs."""
    noise = torch.randn(len(y), dtype=torch.float64, requires_grad=True)
    log_length = _log_length()
    f = _factor(_covariance(log_length.exp())) @ noise
    log_p = -(noise.square().sum() + ((y - f) / _NOISE).square().sum()) / 2
    log_p.backward()


def _gradient_gp_marginal(y: Tensor, places: Tensor) -> None:
    """Differentiate log p(y, length), with f integrated out, as a Gaussian likelihood allows."""
    seen = y[places]
    covariance = _covariance(_log_length().exp(), _PLACES[places]) + _NOISE**2 * torch.eye(len(seen)).double()
    dist.MultivariateNormal(torch.zeros_like(seen), covariance).log_prob(seen).backward()


def _log_length() -> Tensor:
    return torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)


def _gradient_vae(fields: pv.GaussianFields, prior: Any, y: Tensor) -> None:
    """Differentiate log p(y, z), with the decoder as the prior of f."""
    z = torch.randn(16, requires_grad=True)
    f = fields.basis @ prior.at({"z": z}).mean
    log_p = -(z.square().sum() + ((y.float() - f) / _NOISE).square().sum()) / 2
    log_p.backward()


def _draws_vae(fields: pv.GaussianFields, prior: Any, y: Tensor, num_draws: int) -> Tensor:
    z, _ = _posterior(lambda: fields.basis @ prior(), y, num_draws, 1)
    return _at_all_places(fields, prior, z)


def _draws_gp(y: Tensor, num_draws: int) -> Tensor:
    """Draw lengths by NUTS, and for each of them f given y, as a draw from the prior that is corrected by y."""
    noise = _NOISE**2 * torch.eye(len(y), dtype=torch.float64)

    def model() -> None:
        length = pyro.sample("length", dist.Uniform(torch.tensor(_SHORT).double(), torch.tensor(_LONG).double()))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), _covariance(length) + noise), obs=y)

    chain = MCMC(NUTS(model), num_draws, num_draws // 4, disable_progbar=True)
    chain.run()
    draws = []
    for length in chain.get_samples()["length"]:
        covariance = _covariance(length)
        f = _factor(covariance) @ torch.randn_like(y)
        residual = y - f - _NOISE * torch.randn_like(y)
        factor = torch.linalg.cholesky(covariance + noise)
        draws.append(f + covariance @ torch.cholesky_solve(residual[:, None], factor)[:, 0])
    return torch.stack(draws)
