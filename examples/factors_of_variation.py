"""Does a latent dimension mean something? A VAE and a beta-VAE on drawings with known factors of variation.

Every drawing shows the same L, which has no symmetry, at a place (x, y), in a size and at an angle that are drawn
independently.

In the picture, above: some of the drawings. Below, for either VAE: what happens to the first drawing when one dimension
of z moves through the range that the data use, with the dimensions ordered by KL divergence, and for each the factor
about which it has the most information. Right: five scores, for three seeds and on average, of how far every factor has
a dimension of its own, from held-out drawings.

The beta-VAE's MIG is above the VAE's for every seed, and its first two dimensions are x and y, which the VAE mixes with
size and angle. It pays in sharpness, in ELBO, and in what it still knows of size and angle.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

FACTORS = {"x": (-0.4, 0.4), "y": (-0.4, 0.4), "size": (0.3, 0.6), "angle": (-45.0, 45.0)}  # half images, degrees
SCORES = ("MIG", "SAP", "disentanglement", "completeness", "informativeness")
BETAS = {"VAE": 1.0, "beta-VAE": 6.0}  # 6 was chosen from 4, 6 and 8, by MIG and its spread with other seeds
SIZE = 20  # pixels along each side


def drawings(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random factors ``[num, 4]`` and an L in black and white for each of them ``[num, SIZE, SIZE]``."""
    low, high = torch.tensor(list(FACTORS.values())).T
    uniform = torch.rand(num, len(FACTORS), generator=torch.Generator().manual_seed(seed))
    factors = low + (high - low) * uniform
    x, y, size, angle = factors.T[:, :, None, None]

    # Coordinates (u, v) of every pixel in the frame in which the L is upright and of size one.
    pixels = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    right = pixels - x
    down = pixels[:, None] + y
    cos = torch.deg2rad(angle).cos() / size
    sin = torch.deg2rad(angle).sin() / size
    u = cos * right - sin * down
    v = sin * right + cos * down

    stem = ((u + 0.12).abs() < 0.3) & ((v + 0.18).abs() < 0.9)
    foot = ((u - 0.18).abs() < 0.6) & ((v - 0.42).abs() < 0.3)
    return factors, (stem | foot).float()


def trained(x_train: Tensor, beta: float, seed: int, num_epochs: int) -> pv.VAE:
    """Return a VAE with six latent dimensions that was trained on the beta-VAE objective."""
    torch.manual_seed(seed)
    vae = pv.presets.mlp_vae(data_shape=(SIZE, SIZE), latent_dim=6, data_mean=x_train.mean(0))
    pv.fit(
        vae,
        x_train,
        objective=pv.objectives.BetaVAE(beta=beta, analytic_kl=True),
        num_epochs=num_epochs,
        learning_rate=2e-3,
        schedule="cosine",
        seed=seed,
    )
    return vae


def plot_traversals(ax: Axes, vae: pv.VAE, codes: Tensor, kl: Tensor, shares: Tensor, title: str) -> None:
    """Move one latent dimension of the first drawing at a time; ``shares`` is the table of MIG ``[latent, factor]``."""
    order = kl.argsort(descending=True)
    most, factor = shares.max(1)
    names = []
    for dimension in order:
        best = list(FACTORS)[factor[dimension]]
        names.append(f"{kl[dimension]:.2f} nats\n{most[dimension]:.0%} of {best}")
    levels, z = pv.plot.traversal_grid(codes, codes[0], columns=7)
    pv.plot.traversals(vae.decode(z[order]).mean, ax, names=names, levels=levels, title=title)


def plot_scores(ax: Axes, found: Tensor) -> None:
    """Plot the scores ``[kind, seed, score]`` as dots, and their means over seeds as bars."""
    num_seeds = found.shape[1]
    for kind, name in enumerate(BETAS):
        rows = torch.arange(len(SCORES)) + 0.24 * kind - 0.12
        every_seed = rows.expand(num_seeds, -1)
        ax.scatter(found[kind], every_seed, s=24, color=f"C{kind}", alpha=0.8, label=name)
        ax.plot(found[kind].mean(0), rows, "|", ms=13, mew=2, color=f"C{kind}")
    ax.set(xlim=(0, 1), xlabel="score (1 is best)", ylim=(len(SCORES) - 0.4, -0.4))
    ax.set_yticks(range(len(SCORES)), SCORES)
    ax.set_title(f"{num_seeds} seeds, and their mean", fontsize=9)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(frameon=False, fontsize=8, loc="lower left")


def main() -> None:
    args = parse_arguments()
    seeds, num_train, num_test, num_epochs = (10, 11, 12), 8000, 2000, 40
    if args.smoke:
        seeds, num_train, num_test, num_epochs = (10,), 256, 100, 1

    _, x_train = drawings(num_train, seed=0)
    factors, x_test = drawings(num_test, seed=1)
    figure = Figure(figsize=(12, 4.7), layout="constrained")
    layout = [["data", "data", "data"], ["VAE", "beta-VAE", "scores"]]
    axes = figure.subplot_mosaic(layout, height_ratios=[1, 6.5], width_ratios=[1, 1, 0.72])
    pv.plot.images(x_test[:24], axes["data"], columns=24, title=f"24 of {num_test} held-out drawings")

    found = torch.empty(len(BETAS), len(seeds), len(SCORES))
    print(f"{num_test} held-out drawings; ELBO and KL in nats\n")
    print(f"{'':8} seed {'ELBO':>8} {'KL':>6}" + "".join(f"{name:>17}" for name in SCORES))
    for kind, (name, beta) in enumerate(BETAS.items()):
        for place, seed in enumerate(seeds):
            vae = trained(x_train, beta, seed, num_epochs)
            codes = vae.encode(x_test).mean.detach()
            mig = pv.diagnostics.mig(codes, factors)
            sap = pv.diagnostics.sap(codes, factors)
            dci = pv.diagnostics.dci(codes, factors)
            scores = [mig.score, sap.score, dci.disentanglement, dci.completeness, dci.informativeness]
            found[kind, place] = torch.tensor(scores)

            elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=20).mean
            kl = pv.diagnostics.latent_summary(vae.model, vae.guide, x_test)["z"].kl
            row = "".join(f"{score:17.3f}" for score in scores)
            print(f"{name:8} {seed:4} {elbo:8.2f} {kl.sum():6.2f}{row}")
            if place == 0:
                title = f"{name} (β = {beta:g}, seed {seed}): one dimension at a time"
                plot_traversals(axes[name], vae, codes, kl, mig.table, title)

    print("\nmean and standard deviation over seeds")
    for kind, name in enumerate(BETAS):
        means = found[kind].mean(0)
        spreads = found[kind].std(0, correction=int(len(seeds) > 1))
        row = "".join(f"{mean:9.3f} ± {spread:5.3f}" for mean, spread in zip(means, spreads, strict=True))
        print(f"{name:28}{row}")
    plot_scores(axes["scores"], found)
    figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("factors_of_variation.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
