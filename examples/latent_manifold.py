"""Train a VAE with two latent dimensions, and look at what it learned: its latent plane, encoded and decoded.

In the picture, left: one dot per held-out digit at its posterior mean, with the ellipse of one standard deviation of
q(z | x) around it, coloured by class (the model never saw the classes), over circles that hold 50% and 95% of the
prior. The wider an ellipse, the less the image says about where it belongs. Right: the decoder's image at every point
of a grid of quantiles of the prior, by the inverse normal CDF, so that every cell holds the same share of p(z). Walk
through it, and one digit turns into another.

With --data-dir the images are MNIST's, without it scikit-learn's digits.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv


def main() -> None:
    args = parse_arguments()
    name, num_epochs, batch_size, side = "digits", 300, 64, 12
    if args.data_dir is not None:
        name, num_epochs, batch_size, side = "mnist", 15, 100, 20
    if args.smoke:
        num_epochs = 1

    images = pv.data.load(name, data_dir=args.data_dir)
    x_train = pv.data.Pixels(images.x_train, "dynamic", max_value=images.max_value)
    x_test = pv.data.Pixels(images.x_test, "static", max_value=images.max_value)[:1000]
    classes = images.y_test[: len(x_test)]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=x_train.shape, latent_dim=2, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=batch_size, learning_rate=3e-3, schedule="cosine")

    evidence = pv.evidence.quadrature(vae.model, vae.guide, x_test)
    elbo = pv.evidence.elbo(vae.model, vae.guide, x_test, num_particles=100)
    print(f"{len(x_test)} held-out images of {name} after {num_epochs} epochs, mean nats ± choice of images:")
    print(f"log p(x) {evidence.mean:.2f} ± {evidence.test_set_error:.2f}, by a grid: {evidence.share('ok'):.0%} ok")
    print(f"ELBO     {elbo.mean:.2f} ± {elbo.test_set_error:.2f}")

    with torch.no_grad():
        q = vae.encode(x_test)
        z, grid = pv.plot.latent_grid(side)
        decoded = vae.decode(grid).mean
    print(f"the standard deviation of q(z | x) is {q.stddev.mean():.2f} on average, that of the prior is 1")

    left, right = Figure(figsize=(11, 4.9), layout="constrained").subplots(1, 2, width_ratios=[1.1, 1])
    title = f"{len(x_test)} held-out images: q(z | x) by class"
    pv.plot.latents(q.mean, classes, left, scale=q.stddev, title=title)
    title = f"E[x | z] on a grid of {side} x {side} quantiles of the prior"
    pv.plot.manifold(decoded, z, right, title=title)
    pv.plot.save(right, args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="torchvision's folder with MNIST; without it, digits of 8 x 8")
    parser.add_argument("--out", type=Path, default=Path("latent_manifold.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
