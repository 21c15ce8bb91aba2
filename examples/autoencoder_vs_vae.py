"""A deterministic autoencoder against a VAE: the same networks, data and epochs; a code against a distribution q(z|x).

The autoencoder is a VAE that is trained on reconstruction alone and in which q(z|x) is a point.

In the picture, top left: from the code of a digit one walks to the code of another digit and beyond, or in a random
direction; the curves show how far images drawn from the decoder are from the nearest training image. Between two codes
the autoencoder is no worse, but it leaves the data sooner. Middle: such walks. Right: held-out digits, blends of two
digits, and lower halves; for each, the autoencoder's reconstruction, five of the VAE's decoded draws from q(z|x), and
twice the standard deviation of 500 of them, which is somewhat larger for a blend and more so for a half. Bottom left:
the codes of the first image of each kind, as numbers (crosses) and as q(z|x) with two standard deviations.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

LATENT_DIM = 8
STOPS = (0, 0.5, 1, 1.5, 2, 3, 4)  # lengths of a walk at which images are shown; 1 is the code of the other digit


def train(x_train: pv.data.Pixels, beta: float, num_epochs: int) -> pv.VAE:
    """Return a trained VAE, or an autoencoder if ``beta`` is zero."""
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=LATENT_DIM, data_mean=x_train.mean)
    if beta == 0:
        vae.posterior = pv.posteriors.DiagonalNormal(LATENT_DIM, min_scale=1e-6, max_scale=1e-6)  # a point
    pv.fit(
        vae,
        x_train,
        objective=pv.objectives.BetaVAE(beta=beta),
        num_epochs=num_epochs,
        batch_size=64,
        learning_rate=3e-3,
        schedule="cosine",
    )
    return vae.requires_grad_(False)


def distance(images: Tensor, known: Tensor) -> float:
    """Return the number of pixels by which images differ from the nearest of the known images, on average."""
    return torch.cdist(images.flatten(1), known, p=1).amin(1).mean().item()


def plot_walks(
    ax: Axes,
    vaes: dict[str, pv.VAE],
    x: Tensor,
    other: Tensor,
    known: Tensor,
    levels: dict[str, float],
    lengths: np.ndarray,
) -> None:
    """Plot how far decoded images are from the nearest known image along walks, between two levels for comparison."""
    half_way = sum(levels.values()) / 2
    for (name, vae), colour in zip(vaes.items(), ("C1", "C0"), strict=True):
        codes = vae.encode(x).mean
        to_other = codes[other] - codes
        random = torch.nn.functional.normalize(torch.randn_like(codes)) * to_other.norm(dim=1, keepdim=True)
        walks = (("through another code", to_other, "-"), ("in a random direction", random, ":"))
        for where, direction, style in walks:
            found = []
            for length in lengths.tolist():
                images = vae.decode(codes + length * direction).sample()
                found.append(distance(images, known))
            found = np.array(found)
            ax.plot(lengths, found, style, color=colour, label=f"{name}, {where}")
            near = found[lengths <= 1].max()
            far = lengths[(found > half_way).argmax()]
            print(f"{name} {where}: up to {near:.2f} at lengths up to 1, half-way to independent pixels at {far:.1f}")

    for (name, level), style in zip(levels.items(), ("--", "-."), strict=True):
        ax.axhline(level, color="0.4", ls=style, lw=1, label=name)
    ax.set(xlabel="length of the walk / distance of the codes", ylabel="pixels off the nearest training image")
    ax.legend(fontsize=8)


def plot_images_on_walks(ax: Axes, vaes: dict[str, pv.VAE], x: Tensor, other: Tensor) -> None:
    """Show E[x|z] on the walks from four digits through the code of another digit, for either network in turn."""
    rows = []
    for vae in vaes.values():
        codes = vae.encode(x).mean
        direction = codes[other] - codes
        images = [vae.decode(codes[:4] + stop * direction[:4]).mean for stop in STOPS]
        rows.append(torch.stack(images, 1))
    in_turn = torch.stack(rows, 1).flatten(0, 1)
    pv.plot.traversals(in_turn, ax, names=[*vaes] * 4, title="E[x|z] through another code")
    ax.set_xticks(9 * np.arange(len(STOPS)) + 3.5, [str(stop) for stop in STOPS])


def plot_ambiguity(ax_images: Axes, ax_codes: Axes, vaes: dict[str, pv.VAE], kinds: dict[str, Tensor]) -> None:
    """Show what either network makes of clear and of ambiguous digits, as images and as codes."""
    autoencoder = vaes["AE"]
    vae = vaes["VAE"]
    shown = []
    names = []
    for place, (kind, images) in enumerate(kinds.items()):
        particles = pv.draw_particles(vae.model, vae.guide, images, num_particles=500)
        decoded = vae.decode(particles.z["z"]).mean
        variance = decoded.var(0)
        spread = variance.mean((1, 2)).sqrt().mean()

        # The same spread under the exact posterior, by importance weights.
        weights = particles.log_w.softmax(0)[:, :, None, None]
        weighted_variance = (weights * decoded**2).sum(0) - (weights * decoded).sum(0) ** 2
        exact_spread = weighted_variance.mean((1, 2)).sqrt().mean()

        q = vae.encode(images)
        dimensions = np.arange(1, LATENT_DIM + 1) + 0.25 * (place - 1)
        colour = f"C{place + 2}"
        ax_codes.errorbar(dimensions, q.mean[0], 2 * q.stddev[0], fmt="_", color=colour, label=f"q(z|x), {kind}")
        ax_codes.plot(dimensions, autoencoder.encode(images).mean[0], "x", color=colour)
        entropy = q.entropy().mean()
        spreads = f"decoded pixels ± {spread:.3f}, by the posterior ± {exact_spread:.3f}"
        print(f"{kind}: entropy of q {entropy:.2f}, {spreads}")

        reconstruction = autoencoder.reconstruct(images)
        columns = torch.cat([images[None], reconstruction[None], decoded[:5], 2 * variance.sqrt()[None]])
        shown.append(columns[:, :3].transpose(0, 1))
        names += ["", f"{kind}\n± {spread:.3f}", ""]

    pv.plot.traversals(torch.cat(shown), ax_images, names=names, title="clear and ambiguous digits")
    ax_images.set_xticks(9 * np.arange(8) + 3.5, ["x", "AE", "", "", "VAE", "", "", "2 sd"])
    ax_codes.set(xlabel="latent dimension", ylabel="z (crosses: AE)", ylim=(-6, 4.5))
    ax_codes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")


def main() -> None:
    args = parse_arguments()
    num_epochs = 2 if args.smoke else 150
    lengths = np.arange(7) if args.smoke else np.arange(0, 6.05, 0.1)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    known = pv.data.Pixels(digits.x_train, "static", max_value=digits.max_value)[:].flatten(1)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    vaes = {"AE": train(x_train, 0.0, num_epochs), "VAE": train(x_train, 1.0, num_epochs)}

    another_class = digits.y_test[:, None] != digits.y_test
    other = torch.multinomial(another_class.float(), 1)[:, 0]  # for each digit, one of another class

    independent_pixels = torch.bernoulli(x_train.mean.expand(len(x), 8, 8))
    levels = {"held-out digits": distance(x, known), "independent pixels": distance(independent_pixels, known)}
    print("pixels off the nearest training image:", {name: round(level, 2) for name, level in levels.items()})

    axes = Figure(figsize=(15, 6), layout="constrained").subplot_mosaic("ABC;DBC", height_ratios=[3, 2])
    plot_walks(axes["A"], vaes, x, other, known, levels, lengths)
    plot_images_on_walks(axes["B"], vaes, x, other)

    grey = digits.x_test / digits.max_value
    blends = (grey + grey[other]) / 2
    lower_halves = grey * (torch.arange(8) > 3)[:, None]
    kinds = {"held-out": x, "blends": torch.bernoulli(blends), "half hidden": torch.bernoulli(lower_halves)}
    plot_ambiguity(axes["C"], axes["D"], vaes, kinds)
    pv.plot.save(axes["A"], args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("autoencoder_vs_vae.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
