"""Faces from a convolutional VAE with a Gaussian likelihood and a scale that depends on z, and how blurry they are.

By default there are only 100 faces, those of scikit-image, brought to the same mean and contrast. Twenty are held out;
each of the others gives four patches of 24 x 24 pixels, and their mirror images. With --data-dir the pictures of a
folder are used instead, such as CelebA's.

In the picture, above: held-out faces, E[x | z] at their codes, and the scale sigma_x(z); E[x | z] for z from the prior;
the face manifold of a second VAE with two latent dimensions. Below: paths between held-out faces, and the power of
images by spatial frequency, relative to held-out data. Means have lost the fine detail, which is the blur for which
VAEs are known. Draws of x have power there, but it is the likelihood's noise, independent from pixel to pixel.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv


def load(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Return training images and held-out images, with values in [0, 1]."""
    if folder is not None:
        return split(pv.data.read_images(folder, size=(32, 32), most=20_000) / 255)

    from skimage.data import lfw_subset

    x = torch.from_numpy(lfw_subset()[:100]).float()  # the other 100 are no faces
    mean = x.mean((1, 2), keepdim=True)
    contrast = x.std((1, 2), keepdim=True)
    train, test = split(0.5 + 0.2 * (x - mean) / contrast)

    # The faces are 25 x 25 pixels, which leaves four places for a patch of 24 x 24.
    patches = [train[:, top : top + 24, left : left + 24] for top in (0, 1) for left in (0, 1)]
    train = torch.cat(patches)
    mirrored = train.flip(-1)
    return torch.cat([train, mirrored]), test[:, :24, :24]


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return four fifths of the images and the last fifth, in random order."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = x[order]
    return x[: -len(x) // 5], x[-len(x) // 5 :]


def trained(x: Tensor, latent_dim: int, num_epochs: int) -> pv.VAE:
    """Return a trained convolutional VAE, which starts at the mean image."""
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Gaussian(x.shape[1:], min_scale=0.05, start_scale=0.2)
    encoder = pv.nn.ConvEncoder(x.shape[1:], (16, 32), (2, latent_dim))
    decoder = pv.nn.ConvDecoder(latent_dim, (32, 16), likelihood.param_shape)
    decoder.output_bias.data.copy_(likelihood.output_bias(x.mean(0)))
    vae = pv.VAE(encoder=encoder, decoder=decoder, prior=pv.priors.StandardNormal(latent_dim), likelihood=likelihood)
    pv.fit(vae, x, num_epochs=num_epochs, batch_size=32, learning_rate=2e-3, schedule="cosine")
    return vae.requires_grad_(False)


def plot_reconstructions(ax: Axes, x: Tensor, mean: Tensor, scale: Tensor) -> None:
    """Show ten images in two blocks of five columns: the image, its reconstruction, and the scale of the likelihood."""
    triples = torch.stack([x, mean, scale / 0.3], 1)[:10]
    blocks = [triples[:5], triples[5:]]
    stacked = torch.cat([block.transpose(0, 1).flatten(0, 1) for block in blocks])
    title = "held-out faces, E[x | z], $\\sigma_x(z)$ / 0.3"
    pv.plot.images(stacked, ax, columns=5, invert=False, title=title)


def plot_spectra(ax: Axes, x: Tensor, kinds: dict[str, Tensor]) -> None:
    """Plot the power of several kinds of images by spatial frequency, relative to that of x."""
    frequency, power = pv.diagnostics.power_spectrum(x)
    for name, images in kinds.items():
        ratio = pv.diagnostics.power_spectrum(images).power.mean(0) / power.mean(0)
        ax.semilogy(frequency, ratio, "o-", markersize=3, label=name)
        print(f"{name}: {ratio[0]:.0%} of the data's power at the lowest frequency, {ratio[-1]:.1%} at the highest")
    ax.axhline(1, color="0.3", linewidth=1, label="held-out data")
    ax.set(xlabel="spatial frequency, cycles per pixel", ylabel="power relative to held-out data")
    ax.legend(frameon=False, fontsize=8)


def main() -> None:
    args = parse_arguments()
    num_epochs = 1 if args.smoke else 100

    train, test = load(args.data_dir)
    vae = trained(train, 16, num_epochs)
    vae_of_plane = trained(train, 2, num_epochs)
    elbo = pv.evidence.elbo(vae.model, vae.guide, test, num_particles=100)
    print(f"{len(train)} training images, {len(test)} held out; ELBO {elbo.mean:.1f} ± {elbo.test_set_error:.1f} nats")

    codes = vae.encode(test).mean
    reconstructed = vae.decode(codes)
    sampled = vae.decode(vae.sample_latents(400))

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    left, middle, right = above.subplots(1, 3)
    paths, spectra = below.subplots(1, 2, width_ratios=[1.2, 1])

    plot_reconstructions(left, test, reconstructed.mean, reconstructed.stddev)
    pv.plot.images(sampled.mean[:48], middle, columns=8, invert=False, title="E[x | z] for z from the prior")
    z, grid = pv.plot.latent_grid(8)
    manifold = vae_of_plane.decode(grid).mean
    pv.plot.manifold(manifold, z, right, title="two latent dimensions: E[x | z]", invert=False)

    start = codes[:5, None]
    end = codes[5:10, None]
    lines = torch.lerp(start, end, torch.linspace(0, 1, 8)[:, None])
    title = "held-out faces, and E[x | z] on straight lines between them"
    pv.plot.interpolations(test[:5], vae.decode(lines).mean, test[5:10], paths, title=title, invert=False)

    kinds = {
        "E[x | z], held-out": reconstructed.mean,
        "E[x | z], z from p(z)": sampled.mean,
        "draws of x": sampled.sample(),
    }
    plot_spectra(spectra, test, kinds)
    figure.savefig(args.out, dpi=90)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="a folder of pictures; without it, scikit-image's 100 faces")
    parser.add_argument("--out", type=Path, default=Path("faces.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
