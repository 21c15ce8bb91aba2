"""Inverse problems with a trained decoder as the prior: what was the image, given half of it, a blur, or a few sums?

A VAE of scikit-learn's digits becomes one building block of three Pyro models that say how an image was measured: its
upper half, a blurred copy, or 32 random sums of its 64 pixels, all with noise. NUTS draws from the posterior of the
image. It can be compiled, since the frozen decoder registers no parameters.

In the picture there is one row per measurement: the true image; what was seen, put back on the image's pixels; the
answer under a Gaussian with the training images' mean and covariance; the posterior mean under the decoder, with twice
its standard deviation and four draws.
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
from torch import Tensor

import pyro_vae as pv

NOISE = 0.1
COLUMNS = ["truth", "seen", "Gaussian", "decoder", "2 sd", "draw", "draw", "draw", "draw"]


def measurements() -> dict[str, Tensor]:
    """Return matrices ``[numbers, 64]``; each of them times the pixels of an image is what is measured."""
    upper_half = torch.eye(64)[:32]

    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(weights, weights).expand(1, 1, 3, 3)
    single_pixels = torch.eye(64).reshape(64, 1, 8, 8)
    once = torch.nn.functional.conv2d(single_pixels, kernel, padding=1)
    twice = torch.nn.functional.conv2d(once, kernel, padding=1)
    blur = twice.reshape(64, 64).T

    sums = torch.randn(32, 64) / 8
    return {"upper half": upper_half, "blurred": blur, "32 sums": sums}


def gaussian_answer(matrix: Tensor, y: Tensor, images: Tensor) -> Tensor:
    """Return the posterior mean of the image if images were Gaussian."""
    mean = images.mean(0)
    covariance = images.T.cov() + 1e-4 * torch.eye(64)
    covariance_of_y = matrix @ covariance @ matrix.T + NOISE**2 * torch.eye(len(matrix))
    gain = covariance @ matrix.T @ torch.linalg.inv(covariance_of_y)
    return mean + gain @ (y - matrix @ mean)


def posterior(prior: Callable[[], Tensor], matrix: Tensor, y: Tensor, num_draws: int) -> Tensor:
    """Return draws of the latents of the image, by NUTS, ``[chains, draws, latent]``."""

    def model() -> None:
        image = prior().reshape(64)
        pyro.sample("y", dist.Normal(matrix @ image, NOISE).to_event(1), obs=y)

    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    options = {"num_samples": num_draws, "warmup_steps": num_draws, "disable_progbar": True}
    chains = [MCMC(kernel, **options) for _ in range(4)]
    draws = []
    for chain in chains:
        chain.run()
        draws.append(chain.get_samples()["field/z"])
    return torch.stack(draws)


def rmse(answer: Tensor, truth: Tensor) -> Tensor:
    return (answer - truth).square().mean().sqrt()


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore", message=".*torch.jit")  # Pyro compiles with it
    num_epochs, num_draws = (2, 4) if args.smoke else (400, 500)

    pyro.set_rng_seed(0)
    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "none", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "none", max_value=digits.max_value)
    images = x_train[:].reshape(-1, 64)
    truth = x_test[4].reshape(64)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=10, likelihood="gaussian", likelihood_scale=0.15)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, schedule="cosine", learning_rate=2e-3)
    prior = pv.decoder_prior(vae)

    pictures = []
    names = []
    for name, matrix in measurements().items():
        y = matrix @ truth + NOISE * torch.randn(len(matrix))
        z = posterior(prior, matrix, y, num_draws)
        draws = prior.at({"z": z.flatten(0, 1)}).mean.reshape(-1, 64)
        mean = draws.mean(0)
        gaussian = gaussian_answer(matrix, y, images)
        error = rmse(mean, truth)
        gaussian_error = rmse(gaussian, truth)
        r_hat = split_gelman_rubin(z).max()
        print(f"{name}: RMSE {error:.3f} with the decoder, {gaussian_error:.3f} with a Gaussian; R-hat {r_hat:.3f}")

        seen = matrix.T @ y
        one_of_each_chain = draws[:: len(draws) // 4][:4]
        pictures += [truth, seen, gaussian, mean, 2 * draws.std(0), *one_of_each_chain]
        names.append(f"{name}: RMSE\n{gaussian_error:.2f} and {error:.2f}")

    ax = Figure(figsize=(9, 3.6), layout="constrained").subplots()
    pv.plot.images(torch.stack(pictures).reshape(-1, 8, 8), ax, columns=len(COLUMNS))
    ax.set_axis_on()
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.set_xticks([3.5 + 9 * place for place in range(len(COLUMNS))], COLUMNS)  # images are 8 pixels wide, gaps one
    ax.set_yticks([3.5 + 9 * place for place in range(len(names))], names)
    ax.figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("inverse_problems.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
