"""PriorVAE: a VAE learns which functions a Gaussian process draws; its decoder is then the prior of two models.

A thousand places, a squared-exponential covariance of unknown length: the process needs a matrix of a million entries
for each length it tries, the decoder is sixteen numbers and a small network. With twenty noisy values the exact answer
is known, a mixture over the lengths, and drawn beside. With counts at every place, a small-area model, it is not; then
all that changes is the line that says how y was measured.
"""

import argparse
import warnings
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

PLACES, NOISE, LATENT = torch.linspace(0, 1, 1000, dtype=torch.float64), 0.1, 16


def covariance(length: float) -> Tensor:
    return torch.exp(-(((PLACES[:, None] - PLACES) / length) ** 2) / 2)


def posterior(fields: pv.GaussianFields, prior: Any, measured: Any, y: Tensor, num: int) -> Tensor:
    def model() -> None:
        pyro.sample("y", measured(fields.basis @ prior()).to_event(1), obs=y)

    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    chains = [MCMC(kernel, num, num // 2, disable_progbar=True) for _ in range(4)]
    z = torch.stack([chain.run() or chain.get_samples()["field/z"] for chain in chains])
    print(f"R-hat {split_gelman_rubin(z).max():.3f}")
    return prior.at({"z": z.flatten(0, 1)}).mean @ fields.basis.T


def show(ax: Axes, draws: Tensor, truth: Tensor, title: str) -> None:
    ax.plot(PLACES, draws.quantile(torch.tensor([0.5, 0.05, 0.95]), 0).T, "C0", lw=1, label=["decoder, 90%", "_", "_"])
    ax.plot(PLACES, truth, "k:", lw=1, label="truth")
    ax.set(title=title, xlabel="place")
    ax.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("prior_vae.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit")  # Pyro compiles with it
    num_lengths, num_epochs, num_draws = (3, 1, 8) if args.smoke else (32, 100, 500)
    pyro.set_rng_seed(0)
    fields = pv.GaussianFields(covariance, torch.linspace(0.1, 0.4, num_lengths).tolist(), num_coefficients=12)
    start = {"data_covariance": fields.data_covariance, "likelihood_scale": fields.noise, "scale_mixture": True}
    vae = pv.presets.ppca_vae(data_shape=(12,), latent_dim=LATENT, hidden=(128, 128), **start)
    several = pv.objectives.IWAE(num_particles=8)
    pv.fit(vae, fields, objective=several, num_epochs=num_epochs, schedule="cosine", learning_rate=2e-3)
    prior = pv.decoder_prior(vae)

    axes = Figure(figsize=(9, 6), layout="constrained").subplots(2, 2).flatten()
    axes[0].plot(PLACES, fields.basis @ fields[:8].T, "0.6", lw=0.8)
    axes[0].plot(PLACES, fields.basis @ prior.at({"z": torch.randn(8, LATENT)}).mean.T, "C0", lw=0.8)
    axes[0].set(title="drawn by the process (grey), the decoder (blue)", xlabel="place", ylabel="f")
    for ax, length in zip(axes[1:3], (0.13, 0.37), strict=True):
        f = torch.linalg.cholesky(covariance(length) + 1e-8 * torch.eye(1000)) @ torch.randn(1000).double()
        seen = torch.randperm(1000)[:20]
        y = f[seen].float() + NOISE * torch.randn(20)
        exact = fields.given(seen, y, scale=NOISE)
        draws = posterior(fields, prior, lambda f: dist.Normal(f[seen], NOISE), y, num_draws)  # noqa: B023
        error = ((draws.mean(0) - exact.mean) / exact.stddev).square().mean().sqrt()
        width = 1.645 * exact.stddev
        ax.fill_between(PLACES, exact.mean - width, exact.mean + width, color="0.85", label="Gaussian process, 90%")
        ax.plot(PLACES[seen], y, "k.", label="measured")
        show(ax, draws, f, f"length {length}: means {error:.2f} sd apart")
    y = dist.Poisson(2 * f.exp()).sample().float()
    axes[3].plot(PLACES, y, "k.", ms=2, alpha=0.2, label="counts")
    draws = posterior(fields, prior, lambda f: dist.Poisson(2 * f.exp()), y, num_draws)
    show(axes[3], 2 * draws.exp(), 2 * f.exp(), "rate in 1,000 areas, given a count in each")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
