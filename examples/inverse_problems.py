"""Inverse problems with a trained decoder as the prior: what was the image, given half of it, a blur, or a few sums?

A VAE of scikit-learn's digits is one primitive of three Pyro models that say how an image was measured: its upper
half, a blurred copy, or 32 random sums of its 64 pixels, with noise. NUTS draws from the posterior of the image; it is
compiled, since the frozen decoder registers nothing. Beside it, the answer under a Gaussian of the training images.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin

import pyro_vae as pv

NOISE, COLUMNS = 0.1, ["truth", "seen", "Gaussian", "decoder", "2 sd", "draw", "draw", "draw", "draw"]


def measurements() -> dict[str, torch.Tensor]:
    """Matrices ``[numbers, 64]`` that say what is measured of an image."""
    pixels = torch.eye(64).reshape(64, 1, 8, 8)
    kernel = torch.outer(weights := torch.tensor([1.0, 2.0, 1.0]) / 4, weights).expand(1, 1, 3, 3)
    blurred = torch.nn.functional.conv2d(pixels, kernel, padding=1)
    blurred = torch.nn.functional.conv2d(blurred, kernel, padding=1).reshape(64, 64).T
    return {"upper half": torch.eye(64)[:32], "blurred": blurred, "32 sums": torch.randn(32, 64) / 8}


def gaussian_answer(matrix: torch.Tensor, y: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    covariance = images.T.cov() + 1e-4 * torch.eye(64)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + NOISE**2 * torch.eye(len(matrix)))
    return images.mean(0) + gain @ (y - matrix @ images.mean(0))


def posterior(prior: Callable, matrix: torch.Tensor, y: torch.Tensor, num_draws: int) -> torch.Tensor:
    """The noise behind the image, ``[chains, draws, latent]``."""

    def model() -> None:
        pyro.sample("y", dist.Normal(matrix @ prior().reshape(64), NOISE).to_event(1), obs=y)

    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    chains = [MCMC(kernel, num_draws, num_draws, disable_progbar=True) for _ in range(4)]
    return torch.stack([chain.run() or chain.get_samples()["field/z"] for chain in chains])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("inverse_problems.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message=".*torch.jit")  # Pyro compiles with it
    num_epochs, num_draws = (2, 4) if args.smoke else (400, 500)

    pyro.set_rng_seed(0)
    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "none", max_value=digits.max_value)
    images = x_train[:].reshape(-1, 64)
    truth = pv.data.Pixels(digits.x_test, "none", max_value=digits.max_value)[4].reshape(64)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=10, likelihood="gaussian", likelihood_scale=0.15)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, schedule="cosine", learning_rate=2e-3)
    prior = pv.decoder_prior(vae)

    pictures, names = [], []
    for name, matrix in measurements().items():
        y = matrix @ truth + NOISE * torch.randn(len(matrix))
        z = posterior(prior, matrix, y, num_draws)
        draws, r_hat = prior.at({"z": z.flatten(0, 1)}).mean.reshape(-1, 64), split_gelman_rubin(z).max()
        linear = gaussian_answer(matrix, y, images)
        errors = [(answer - truth).square().mean().sqrt() for answer in (linear, draws.mean(0))]
        print(f"{name}: RMSE {errors[1]:.3f} with the decoder, {errors[0]:.3f} with a Gaussian; R-hat {r_hat:.3f}")
        pictures += [truth, matrix.T @ y, linear, draws.mean(0), 2 * draws.std(0), *draws[:: len(draws) // 4][:4]]
        names.append(f"{name}: RMSE\n{errors[0]:.2f} and {errors[1]:.2f}")
    ax = Figure(figsize=(9, 3.6), layout="constrained").subplots()
    pv.plot.images(torch.stack(pictures).reshape(-1, 8, 8), ax, columns=len(COLUMNS))
    ax.set_axis_on()
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.set_xticks([3.5 + 9 * place for place in range(len(COLUMNS))], COLUMNS)
    ax.set_yticks([3.5 + 9 * place for place in range(len(names))], names)
    ax.figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
