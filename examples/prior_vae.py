"""PriorVAE: a VAE learns which functions a Gaussian process draws; its decoder is then the prior of two models.

There are a thousand places and a squared-exponential covariance of unknown length. The process needs a matrix of a
million entries for each length that it tries; the decoder is sixteen numbers and a small network.

In the picture, top left: functions drawn by the process and by the decoder. Top right and bottom left: a regression
given twenty noisy values, for a short and a long length. Here the exact answer is known, a mixture over the lengths
(grey), and the decoder's should be close to it. Bottom right: a small-area model, given a count at every place. No
exact answer is known, but all that changes in the model is the line that says how y was measured.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

import pyro_vae as pv

PLACES = torch.linspace(0, 1, 1000, dtype=torch.float64)
NOISE = 0.1
LATENT = 16
NUM_COEFFICIENTS = 12  # of a function; they stand for its values at all places


def covariance(length: float) -> Tensor:
    """Return the squared-exponential covariance of the values at all places."""
    differences = (PLACES[:, None] - PLACES) / length
    return torch.exp(-(differences**2) / 2)


def trained(fields: pv.GaussianFields, num_epochs: int) -> pv.VAE:
    """Return a VAE of the coefficients of functions that the Gaussian process draws."""
    vae = pv.presets.ppca_vae(
        data_shape=(NUM_COEFFICIENTS,),
        latent_dim=LATENT,
        hidden=(128, 128),
        data_covariance=fields.data_covariance,
        likelihood_scale=fields.noise,
        scale_mixture=True,
    )
    objective = pv.objectives.IWAE(num_particles=8)
    pv.fit(vae, fields, objective=objective, num_epochs=num_epochs, schedule="cosine", learning_rate=2e-3)
    return vae


def posterior(fields: pv.GaussianFields, prior: Any, measured: Callable[[Tensor], Any], y: Tensor, num: int) -> Tensor:
    """Return draws of the function at all places, by NUTS; ``measured`` is the distribution of y given the function."""

    def model() -> None:
        f = fields.basis @ prior()
        pyro.sample("y", measured(f).to_event(1), obs=y)

    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    options = {"num_samples": num, "warmup_steps": num // 2, "disable_progbar": True}
    chains = [MCMC(kernel, **options) for _ in range(4)]
    draws = []
    for chain in chains:
        chain.run()
        draws.append(chain.get_samples()["field/z"])
    z = torch.stack(draws)
    print(f"R-hat {split_gelman_rubin(z).max():.3f}")
    return prior.at({"z": z.flatten(0, 1)}).mean @ fields.basis.T


def draw_function(length: float) -> Tensor:
    """Return the values at all places of a function that the Gaussian process draws."""
    factor = torch.linalg.cholesky(covariance(length) + 1e-8 * torch.eye(1000))
    return factor @ torch.randn(1000).double()


def plot_answer(ax: Axes, draws: Tensor, truth: Tensor, title: str) -> None:
    """Plot the median of draws, their 90% interval, and the truth."""
    curves = draws.quantile(torch.tensor([0.5, 0.05, 0.95]), 0)
    ax.plot(PLACES, curves.T, "C0", lw=1, label=["decoder, 90%", "_", "_"])
    ax.plot(PLACES, truth, "k:", lw=1, label="truth")
    ax.set(title=title, xlabel="place")
    ax.legend(fontsize=7)


def regression(ax: Axes, fields: pv.GaussianFields, prior: Any, f: Tensor, length: float, num_draws: int) -> None:
    """Plot what the decoder and the process say about a function, given twenty noisy values of it."""
    seen = torch.randperm(1000)[:20]
    y = f[seen].float() + NOISE * torch.randn(20)
    exact = fields.given(seen, y, scale=NOISE)

    def measured(f: Tensor) -> dist.Normal:
        return dist.Normal(f[seen], NOISE)

    draws = posterior(fields, prior, measured, y, num_draws)
    distance = ((draws.mean(0) - exact.mean) / exact.stddev).square().mean().sqrt()
    reach = 1.645 * exact.stddev
    ax.fill_between(PLACES, exact.mean - reach, exact.mean + reach, color="0.85", label="Gaussian process, 90%")
    ax.plot(PLACES[seen], y, "k.", label="measured")
    plot_answer(ax, draws, f, f"length {length}: means {distance:.2f} sd apart")


def counts_per_area(ax: Axes, fields: pv.GaussianFields, prior: Any, f: Tensor, num_draws: int) -> None:
    """Plot what the decoder says about a rate, given a count at every place."""

    def measured(f: Tensor) -> dist.Poisson:
        return dist.Poisson(2 * f.exp())

    y = measured(f).sample().float()
    ax.plot(PLACES, y, "k.", ms=2, alpha=0.2, label="counts")
    draws = posterior(fields, prior, measured, y, num_draws)
    plot_answer(ax, 2 * draws.exp(), 2 * f.exp(), "rate in 1,000 areas, given a count in each")


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore", message=".*torch.jit")  # Pyro compiles with it
    num_lengths, num_epochs, num_draws = (3, 1, 8) if args.smoke else (32, 100, 500)

    pyro.set_rng_seed(0)
    lengths = torch.linspace(0.1, 0.4, num_lengths).tolist()
    fields = pv.GaussianFields(covariance, lengths, num_coefficients=NUM_COEFFICIENTS)
    vae = trained(fields, num_epochs)
    prior = pv.decoder_prior(vae)

    axes = Figure(figsize=(9, 6), layout="constrained").subplots(2, 2).flatten()
    by_process = fields[:8]
    by_decoder = prior.at({"z": torch.randn(8, LATENT)}).mean
    axes[0].plot(PLACES, fields.basis @ by_process.T, "0.6", lw=0.8)
    axes[0].plot(PLACES, fields.basis @ by_decoder.T, "C0", lw=0.8)
    axes[0].set(title="drawn by the process (grey), the decoder (blue)", xlabel="place", ylabel="f")

    f = draw_function(0.13)
    regression(axes[1], fields, prior, f, 0.13, num_draws)
    f = draw_function(0.37)
    regression(axes[2], fields, prior, f, 0.37, num_draws)
    counts_per_area(axes[3], fields, prior, f, num_draws)
    axes[0].figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("prior_vae.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
