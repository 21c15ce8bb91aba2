"""Faces from a convolutional VAE with a Gaussian likelihood whose scale depends on z, and how blurry they are.

By default there are only 100 faces, those of scikit-image, brought to the same mean and contrast: 20 are held out; of
the others there are four patches of 24 x 24 each, and their mirror images. With --data-dir: a folder of pictures, such
as CelebA's. Above: held-out faces, E[x | z] at their codes, and sigma_x(z); E[x | z] for z from the prior; the face
manifold of a second VAE with two latent dimensions. Below: paths between held-out faces, and the power of images by
spatial frequency, relative to held-out data. Means have lost the fine detail: that is the blur for which VAEs are
known. Draws of x have power there, but it is the likelihood's noise, independent from pixel to pixel.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv


def load(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Training and held-out images in [0, 1]."""
    if folder:
        x = pv.data.read_images(folder, size=(32, 32), most=20_000) / 255
    else:
        from skimage.data import lfw_subset

        x = torch.from_numpy(lfw_subset()[:100]).float()  # the other 100 are no faces
        x = 0.5 + 0.2 * (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[: -len(x) // 5], x[-len(x) // 5 :]
    if folder is None:
        train = torch.cat([train[:, i : i + 24, j : j + 24] for i in (0, 1) for j in (0, 1)])
        train, test = torch.cat([train, train.flip(-1)]), test[:, :24, :24]
    return train, test


def fitted(x: Tensor, latent_dim: int, num_epochs: int) -> pv.VAE:
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Gaussian(x.shape[1:], min_scale=0.05, start_scale=0.2)
    encoder = pv.nn.ConvEncoder(x.shape[1:], (16, 32), (2, latent_dim))
    decoder = pv.nn.ConvDecoder(latent_dim, (32, 16), likelihood.param_shape)
    decoder.output_bias.data.copy_(likelihood.output_bias(x.mean(0)))
    vae = pv.VAE(encoder=encoder, decoder=decoder, prior=pv.priors.StandardNormal(latent_dim), likelihood=likelihood)
    pv.fit(vae, x, num_epochs=num_epochs, batch_size=32, learning_rate=2e-3, schedule="cosine")
    return vae.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="a folder of pictures; without it, scikit-image's 100 faces")
    parser.add_argument("--out", type=Path, default=Path("faces.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train, test = load(args.data_dir)
    vae, plane = (fitted(train, dim, 1 if args.smoke else 100) for dim in (16, 2))
    elbo = pv.evidence.elbo(vae.model, vae.guide, test, num_particles=100)
    print(f"{len(train)} training images, {len(test)} held out; ELBO {elbo.mean:.1f} ± {elbo.test_set_error:.1f} nats")
    q = vae.encode(test).mean
    codes, sampled = vae.decode(q), vae.decode(vae.sample_latents(400))
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    seen, drawn, manifold = above.subplots(1, 3)
    rows = torch.stack([test, codes.mean, codes.stddev / 0.3], 1)[:10]
    stacked = torch.cat([rows[start : start + 5].transpose(0, 1).flatten(0, 1) for start in (0, 5)])
    pv.plot.images(stacked, seen, columns=5, invert=False, title="held-out faces, E[x | z], $\\sigma_x(z)$ / 0.3")
    pv.plot.images(sampled.mean[:48], drawn, columns=8, invert=False, title="E[x | z] for z from the prior")
    z, grid = pv.plot.latent_grid(8)
    pv.plot.manifold(plane.decode(grid).mean, z, manifold, title="two latent dimensions: E[x | z]", invert=False)
    paths, spectrum = below.subplots(1, 2, width_ratios=[1.2, 1])
    lines = torch.lerp(q[:5, None], q[5:10, None], torch.linspace(0, 1, 8)[:, None])
    title = "held-out faces, and E[x | z] on straight lines between them"
    pv.plot.interpolations(test[:5], vae.decode(lines).mean, test[5:10], paths, title=title, invert=False)
    frequency, data = pv.diagnostics.power_spectrum(test)
    kinds = {"E[x | z], held-out": codes.mean, "E[x | z], z from p(z)": sampled.mean, "draws of x": sampled.sample()}
    for name, images in kinds.items():
        ratio = pv.diagnostics.power_spectrum(images).power.mean(0) / data.mean(0)
        spectrum.semilogy(frequency, ratio, "o-", markersize=3, label=name)
        print(f"{name}: {ratio[0]:.0%} of the data's power at the lowest frequency, {ratio[-1]:.1%} at the highest")
    spectrum.axhline(1, color="0.3", linewidth=1, label="held-out data")
    spectrum.set(xlabel="spatial frequency, cycles per pixel", ylabel="power relative to held-out data")
    spectrum.legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=90)
    print(args.out)


if __name__ == "__main__":
    main()
