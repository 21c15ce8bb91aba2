"""Refine the encoder's answer for single digits: what does it miss, and what does it cost to get it back?

A VAE with two latent dimensions learns scikit-learn's digits. The example looks at the four held-out digits with the
ELBO furthest below log p(x), which a grid gives: for them q(z | x) is furthest from the posterior.

In the picture there is one panel per digit. Grey is the posterior, also from a grid: 50%, 90% and 99% of its mass. Over
it lie the encoder's answer as an ellipse of two standard deviations (red), the best Gaussian for this digit alone by
local variational inference (green), and draws of Hamiltonian chains that were started from the encoder (blue dots). The
titles say how many nats q is from the posterior, before and after.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

import pyro_vae as pv


def posterior_on_grid(vae: pv.VAE, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two axes around the draws z ``[draws, 2]``, and p(z | x) on their grid as shares of the mass."""
    margin = 0.1 * (z.amax(0) - z.amin(0))
    low = z.amin(0) - margin
    high = z.amax(0) + margin
    first = torch.linspace(low[0].item(), high[0].item(), 200)
    second = torch.linspace(low[1].item(), high[1].item(), 200)
    nodes = torch.cartesian_prod(first, second)
    with torch.no_grad():
        log_p = vae.decode(nodes).log_prob(x) + Normal(0.0, 1.0).log_prob(nodes).sum(-1)
    return first, second, log_p.softmax(0).reshape(200, 200)


def density_levels(mass: Tensor) -> list[float]:
    """Return the levels above which the grid has 99%, 90% and 50% of its mass."""
    ordered = mass.flatten().sort(descending=True).values
    cumulative = ordered.cumsum(0)
    return [ordered[(cumulative < share).sum()].item() for share in (0.99, 0.9, 0.5)]


def ellipse(mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the points ``[2, points]`` of a Gaussian's ellipse of two standard deviations."""
    angle = torch.linspace(0, 2 * torch.pi, 100)
    circle = torch.stack([angle.cos(), angle.sin()])
    return mean[:, None] + 2 * torch.linalg.cholesky(covariance) @ circle


def plot_digit(ax: Axes, vae: pv.VAE, x: Tensor, encoder: Tensor, best_gaussian: Tensor, from_hmc: Tensor) -> None:
    """Plot the posterior of one digit, two ellipses, and draws."""
    first, second, mass = posterior_on_grid(vae, x, torch.cat([from_hmc, encoder.T]))
    ax.contourf(first, second, mass.T, levels=[*density_levels(mass), 1.0], colors=["0.92", "0.84", "0.72"])
    every = max(1, len(from_hmc) // 200)
    ax.plot(*from_hmc[::every].T, ".", ms=2.5, color="C0", label="HMC")
    ax.plot(*encoder, color="C3", label="encoder")
    ax.plot(*best_gaussian, color="C2", label="best Gaussian")


def main() -> None:
    args = parse_arguments()
    num_epochs, num_digits, num_draws, num_steps = (1, 20, 160, 5) if args.smoke else (300, None, 4000, 300)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:num_digits]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

    # The four digits with the largest gap.
    log_p = pv.evidence.quadrature(vae.model, vae.guide, x_test).value
    elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=1000).value
    gap = log_p - elbo
    print(
        f"{len(x_test)} held-out digits: log p(x) - ELBO is {gap.mean():.2f} nats on average, {gap.max():.2f} at most"
    )
    worst = gap.argsort(descending=True)[:4]
    x = x_test[worst]

    svi = pv.refine(vae.model, vae.guide, x, method="svi", num_steps=num_steps, num_draws=num_draws)
    hmc = pv.refine(vae.model, vae.guide, x, method="hmc", num_draws=4 * num_draws)
    print(svi)
    print(hmc)

    kl_before = gap[worst]
    kl_after = log_p[worst] - svi.elbo - svi.gain  # the gain takes the ELBO to that of the refined q
    with torch.no_grad():
        q = vae.encode(x)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(x))
    for place, ax in enumerate(axes):
        from_svi = svi.z["z"][:, place]
        from_hmc = hmc.z["z"][:, place]
        encoder = ellipse(q.mean[place], torch.diag(q.stddev[place].square()))
        best_gaussian = ellipse(from_svi.mean(0), torch.cov(from_svi.T))
        plot_digit(ax, vae, x[place], encoder, best_gaussian, from_hmc)
        ax.set_title(f"KL {kl_before[place]:.2f} (encoder), {kl_after[place]:.2f} (best Gaussian)", fontsize=9)
        ax.set_xlabel(f"z1; HMC: R-hat {hmc.r_hat[place]:.3f}")
    axes[0].set_ylabel("z2")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("refine.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
