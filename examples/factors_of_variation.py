"""Does a latent dimension mean something? A VAE and a beta-VAE on drawings whose factors of variation are known.

Every drawing shows the same L, which has no symmetry, at a place (x, y), in a size and at an angle that are drawn
independently: some of them are on top. Below, what each dimension of z does to the first drawing on its way through the
range that the data use, by KL divergence and with the factor that it knows most of. On the right, how far every factor
has a dimension of its own, from held-out drawings, for three seeds and on average. The beta-VAE's MIG is above the
VAE's for every seed, and its first two dimensions are x and y, which the VAE mixes with size and angle. It pays in
sharpness, in ELBO, and in what it still knows of size and angle.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

FACTORS = {"x": (-0.4, 0.4), "y": (-0.4, 0.4), "size": (0.3, 0.6), "angle": (-45.0, 45.0)}  # half images, degrees
SCORES = "MIG", "SAP", "disentanglement", "completeness", "informativeness"
BETAS = {"VAE": 1.0, "beta-VAE": 6.0}  # 6 of 4, 6 and 8, by MIG and its spread with other seeds
SIZE = 20


def drawings(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors ``[num, 4]``, and for each of them an L in black and white ``[num, SIZE, SIZE]``."""
    low, high = torch.tensor(list(FACTORS.values())).T
    factors = low + (high - low) * torch.rand(num, len(FACTORS), generator=torch.Generator().manual_seed(seed))
    x, y, size, angle = factors.T[:, :, None, None]
    pixels = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    right, down = pixels - x, pixels[:, None] + y
    cos, sin = torch.deg2rad(angle).cos() / size, torch.deg2rad(angle).sin() / size
    u, v = cos * right - sin * down, sin * right + cos * down  # the frame in which the L is upright
    bars = [(-0.12, -0.18, 0.3, 0.9), (0.18, 0.42, 0.6, 0.3)]  # middle, half width, half height
    inside = [((u - i).abs() < width) & ((v - j).abs() < height) for i, j, width, height in bars]
    return factors, (inside[0] | inside[1]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("factors_of_variation.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    seeds, num_train, num_test, num_epochs = ((10,), 256, 100, 1) if args.smoke else ((10, 11, 12), 8000, 2000, 40)

    (_, x_train), (factors, x_test) = drawings(num_train, seed=0), drawings(num_test, seed=1)
    figure = Figure(figsize=(12, 4.7), layout="constrained")
    ax = figure.subplot_mosaic([["data"] * 3, [*BETAS, "scores"]], height_ratios=[1, 6.5], width_ratios=[1, 1, 0.72])
    pv.plot.images(x_test[:24], ax["data"], columns=24, title=f"24 of {num_test} held-out drawings")
    found = torch.empty(len(BETAS), len(seeds), len(SCORES))
    print(f"{num_test} held-out drawings; ELBO and KL in nats\n")
    print(f"{'':8} seed {'ELBO':>8} {'KL':>6}" + "".join(f"{name:>17}" for name in SCORES))
    for kind, (name, beta) in enumerate(BETAS.items()):
        for place, seed in enumerate(seeds):
            torch.manual_seed(seed)
            vae = pv.presets.mlp_vae(data_shape=(SIZE, SIZE), latent_dim=6, data_mean=x_train.mean(0))
            run = {"objective": pv.objectives.BetaVAE(beta=beta, analytic_kl=True), "num_epochs": num_epochs}
            pv.fit(vae, x_train, learning_rate=2e-3, schedule="cosine", seed=seed, **run)
            codes = vae.encode(x_test).mean.detach()
            mig, sap, dci = (getattr(pv.diagnostics, score)(codes, factors) for score in ("mig", "sap", "dci"))
            each = mig.score, sap.score, dci.disentanglement, dci.completeness, dci.informativeness
            found[kind, place] = torch.tensor(each)
            elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=20).mean
            kl = pv.diagnostics.latent_summary(vae.model, vae.guide, x_test)["z"].kl
            print(f"{name:8} {seed:4} {elbo:8.2f} {kl.sum():6.2f}" + "".join(f"{score:17.3f}" for score in each))
            if place == 0:
                order, (most, factor) = kl.argsort(descending=True), mig.table.max(1)
                labels = [f"{kl[j]:.2f} nats\n{most[j]:.0%} of {[*FACTORS][factor[j]]}" for j in order]
                levels, z = pv.plot.traversal_grid(codes, codes[0], columns=7)
                title = f"{name} (β = {beta:g}, seed {seed}): one dimension at a time"
                pv.plot.traversals(vae.decode(z[order]).mean, ax[name], names=labels, levels=levels, title=title)
    print("\nmean and standard deviation over seeds")
    for kind, name in enumerate(BETAS):
        means, spreads = found[kind].mean(0), found[kind].std(0, correction=int(len(seeds) > 1))
        print(f"{name:28}" + "".join(f"{m:9.3f} ± {s:5.3f}" for m, s in zip(means, spreads, strict=True)))
        rows = torch.arange(len(SCORES)) + 0.24 * kind - 0.12
        ax["scores"].scatter(found[kind], rows.expand(len(seeds), -1), s=24, color=f"C{kind}", alpha=0.8, label=name)
        ax["scores"].plot(means, rows, "|", ms=13, mew=2, color=f"C{kind}")
    ax["scores"].set(xlim=(0, 1), xlabel="score (1 is best)", ylim=(len(SCORES) - 0.4, -0.4))
    ax["scores"].set_yticks(range(len(SCORES)), SCORES)
    ax["scores"].set_title(f"{len(seeds)} seeds, and their mean", fontsize=9)
    ax["scores"].grid(axis="x", alpha=0.3)
    ax["scores"].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
