"""Does the model make data like ours? Predictive checks of a VAE of digits, and what the importance weights correct.

A test statistic of the data is compared with that of data that the model makes, from its prior or, digit by digit, from
its posterior. The p-value is the share of replicates with at least as much of the statistic; near 0 or 1 it is bad. Ink
is the number of black pixels, edges is the number of neighbours that differ. Posterior checks are conservative, since
the replicates have seen their own digits.

In the picture, above: mean ink and mean edges of each class of held-out digits, on 95% of replicates, with and without
importance weights. Below, left: edges of draws from the prior and of held-out digits. Below, right: errors of the
expected ink of each digit, which a grid gives exactly for two latent dimensions; across, under the guide alone, and
upwards, after correction by importance weights. The weights cannot correct what no draw of the guide has reached.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

VERDICTS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}


def ink(x: Tensor) -> Tensor:
    """Return the number of black pixels of each image."""
    return x.sum((-2, -1))


def edges(x: Tensor) -> Tensor:
    """Return the number of neighbouring pixels that differ, for each image."""
    horizontal = x.diff(dim=-1).abs().sum((-2, -1))
    vertical = x.diff(dim=-2).abs().sum((-2, -1))
    return horizontal + vertical


def p_value(replicated: Tensor, observed: Tensor) -> Tensor:
    """Return the share of replicates that are at least as large as what was observed."""
    return (replicated >= observed).double().mean()


def plot_classes(ax: Axes, name: str, replicates: dict[str, Tensor], observed: Tensor, classes: Tensor) -> None:
    """Plot class means of a statistic of digits ``[digits]``, and 95% of those of replicates ``[draws, digits]``."""
    for source, shift, colour in (("guide alone", -0.15, "C1"), ("corrected", 0.15, "C0")):
        means = [replicates[source][:, classes == k].mean(-1) for k in range(10)]
        low, high = torch.stack(means, 1).quantile(torch.tensor([0.025, 0.975]), 0)
        ax.vlines(torch.arange(10) + shift, low, high, colour, lw=3, label=f"95% of replicates, {source}")
    ax.plot(range(10), [observed[classes == k].mean() for k in range(10)], "kx", label="held-out digits")
    ax.set(xticks=range(10), xlabel="class", ylabel=f"mean {name} of a class", title="posterior predictive check")


def plot_prior_check(ax: Axes, drawn: Tensor, x: Tensor) -> None:
    """Plot the distribution of the number of edges, of draws from the prior and of held-out digits."""
    for images, label in ((drawn, "draws from the prior"), (x, "held-out digits")):
        values = edges(images).flatten()
        ax.hist(values, torch.arange(9.5, 56), density=True, histtype="step", lw=2, label=label)
    ax.set(xlabel="edges of a digit", ylabel="share of digits", title="prior predictive check")
    ax.legend(frameon=False, fontsize=8)


def ink_on_grid(vae: pv.VAE, x: Tensor, side: int) -> Tensor:
    """Return E[ink | x] of each digit under the exact posterior, from a grid on the latent plane."""
    axis = torch.linspace(-5, 5, side)
    z = torch.cartesian_prod(axis, axis)
    log_p = torch.stack([vae.prior().log_prob(z) + vae.decode(z).log_prob(image) for image in x])
    return log_p.softmax(1) @ ink(vae.decode(z).mean)


def plot_correction(ax: Axes, alone: Tensor, corrected: Tensor, found: pv.Prediction) -> None:
    """Plot the errors of the expected ink before and after the correction, and print them for each verdict."""
    for verdict, colour in VERDICTS.items():
        at = torch.from_numpy(found.verdict == verdict)
        if not at.any():
            continue
        ax.loglog(alone[at], corrected[at], ".", color=colour, label=f"{verdict} ({at.sum()})")
        rmse_alone = alone[at].square().mean().sqrt()
        rmse_corrected = corrected[at].square().mean().sqrt()
        stated = found.stderr[at].square().mean().sqrt()
        inside = (corrected[at] <= 2 * found.stderr[at]).double().mean()
        print(f"expected ink of {at.sum()} digits, {verdict}: RMSE {rmse_alone:.3f} under the guide alone,")
        print(f"  {rmse_corrected:.3f} corrected; stated {stated:.3f}, and {inside:.0%} within two standard errors")
    ax.plot([1e-4, 1], [1e-4, 1], color="0.6", lw=1, zorder=0)
    ax.set(xlabel="error under the guide alone, pixels", ylabel="error corrected, pixels")
    nearer = (corrected < alone).double().mean()
    ax.set_title(f"expected ink: the correction is nearer for {nearer:.0%} of digits")
    ax.legend(frameon=False, fontsize=8, title="verdict on the weights")


@torch.no_grad()
def main() -> None:
    args = parse_arguments()
    num_epochs, num_draws, num_particles, side = (1, 20, 100, 21) if args.smoke else (150, 400, 2000, 201)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "threshold", max_value=16)[:]
    x = pv.data.Pixels(digits.x_test, "threshold", max_value=16)[:]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean(0))
    with torch.enable_grad():
        pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

    # Replicates of all held-out digits, [draws, digits, 8, 8], from three sources.
    drawn = pv.prior_predictive(vae.model, num_draws * len(x))["x"]
    options = {"num_draws": num_draws, "num_particles": num_particles}
    made = {
        "prior": drawn.unflatten(0, (num_draws, len(x))),
        "guide alone": pv.posterior_predictive(vae.model, vae.guide, x, corrected=False, **options)["x"],
        "corrected": pv.posterior_predictive(vae.model, vae.guide, x, **options)["x"],
    }

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    (ax_ink, ax_edges), (ax_prior, ax_correction) = figure.subplots(2, 2)
    for name, statistic, ax in (("ink", ink, ax_ink), ("edges", edges, ax_edges)):
        observed = statistic(x)
        print(f"{name}: {observed.mean():.2f} held out, {statistic(x_train).mean():.2f} in training; p-values of")
        replicates = {}
        for source, images in made.items():
            replicates[source] = statistic(images)
            p_mean = p_value(replicates[source].mean(-1), observed.mean(-1))
            p_std = p_value(replicates[source].std(-1), observed.std(-1))
            print(f"  {source}: {p_mean:.3f} for the mean over digits, {p_std:.3f} for the standard deviation")
        plot_classes(ax, name, replicates, observed, digits.y_test)
    ax_edges.legend(frameon=False, fontsize=8, loc="lower right")
    plot_prior_check(ax_prior, made["prior"], x)

    # The expected ink of each digit: exact, with importance weights, and under the guide alone.
    exact = ink_on_grid(vae, x, side)
    found = pv.predict(vae.model, vae.guide, x, lambda z: ink(vae.decode(z["z"]).mean), num_particles=num_particles)
    z = vae.encode(x).sample((num_particles,))
    guide_alone = ink(vae.decode(z).mean).mean(0)
    plot_correction(ax_correction, (guide_alone - exact).abs(), (found.mean - exact).abs(), found)
    figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("predictive_checks.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
