"""Refine the encoder's answer for single digits: what does it miss, and how much is it to have back?

A VAE with two latent dimensions learns scikit-learn's digits. Of the held-out ones, those are looked at whose ELBO is
furthest below log p(x), which a grid gives: there q(z | x) is furthest from the posterior. A grid also gives that
posterior (grey: 50%, 90% and 99% of its mass). Over it lie the encoder's answer as an ellipse of two standard
deviations, the best Gaussian for this digit alone (local variational inference), and draws of Hamiltonian chains that
were started from the encoder. How many nats q is from the posterior, before and after, stands above.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.distributions import Normal

import pyro_vae as pv


def posterior(vae: pv.VAE, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Axes around draws z ``[draws, 2]``, and p(z | x) there as shares of the mass."""
    low, high = z.amin(0) - 0.1 * (width := z.amax(0) - z.amin(0)), z.amax(0) + 0.1 * width
    axes = torch.stack([torch.linspace(*ends, 200) for ends in torch.stack([low, high], 1).tolist()])
    nodes = torch.cartesian_prod(*axes)
    with torch.no_grad():
        log_p = vae.decode(nodes).log_prob(x) + Normal(0.0, 1.0).log_prob(nodes).sum(-1)
    return axes, log_p.softmax(0).reshape(200, 200)


def ellipse(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Of two standard deviations, as points ``[2, points]``."""
    angle = torch.linspace(0, 2 * torch.pi, 100)
    return mean[:, None] + 2 * torch.linalg.cholesky(covariance) @ torch.stack([angle.cos(), angle.sin()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("refine.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, few, draws, steps = (1, 20, 160, 5) if args.smoke else (300, None, 4000, 300)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:few]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    pair = vae.model, vae.guide

    exact = pv.evidence.quadrature(*pair, x_test)
    gap = exact.value - pv.evidence.elbo(*pair, x_test, num_particles=1000).value
    print(
        f"{len(x_test)} held-out digits: log p(x) - ELBO is {gap.mean():.2f} nats on average, {gap.max():.2f} at most"
    )
    worst = gap.argsort(descending=True)[:4]
    x, exact = x_test[worst], exact.value[worst]
    svi = pv.refine(*pair, x, method="svi", num_steps=steps, num_draws=draws)
    hmc = pv.refine(*pair, x, method="hmc", num_draws=4 * draws)
    print(svi, hmc, sep="\n")

    axes = (figure := Figure(figsize=(12, 3.6), layout="constrained")).subplots(1, len(x))
    with torch.no_grad():
        q = vae.encode(x)
    before, after = gap[worst], exact - svi.elbo - svi.gain
    for place, ax in enumerate(axes):
        z, optimum = hmc.z["z"][:, place], svi.z["z"][:, place]
        found = ellipse(q.mean[place], torch.diag(q.stddev[place].square()))
        grid, mass = posterior(vae, x[place], torch.cat([z, found.T]))
        ordered = mass.flatten().sort(descending=True).values
        levels = [ordered[(ordered.cumsum(0) < share).sum()].item() for share in (0.99, 0.9, 0.5)]
        ax.contourf(*grid, mass.T, levels=[*levels, 1.0], colors=["0.92", "0.84", "0.72"])
        ax.plot(*z[:: max(1, len(z) // 200)].T, ".", ms=2.5, color="C0", label="HMC")
        ax.plot(*found, color="C3", label="encoder")
        ax.plot(*ellipse(optimum.mean(0), torch.cov(optimum.T)), color="C2", label="best Gaussian")
        ax.set_title(f"KL {before[place]:.2f} (encoder), {after[place]:.2f} (best Gaussian)", fontsize=9)
        ax.set(xlabel=f"z1; HMC: R-hat {hmc.r_hat[place]:.3f}", ylabel="z2" if place == 0 else None)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
