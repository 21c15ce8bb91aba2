"""Train a VAE with two latent dimensions on scikit-learn's digits, and look at what it learned.

The picture, from left to right: held-out digits above their reconstructions; the latent space, one dot per held-out
digit at its posterior mean, coloured by class (the model never saw the classes), over circles that hold 50% and 95% of
the prior; and the decoder's image at every point of a grid that is uniform under the prior: walk through it and one
digit turns into another.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("train_and_look.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    num_epochs = 2 if args.smoke else 300
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    print(pv.evaluate(vae, x_test, num_particles=50 if args.smoke else 5000))

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[0.8, 1.2, 1])
    middle, right = middle.subplots(), right.subplots()
    with torch.no_grad():
        for shown, ax in zip(x_test[:24].split(6), left.subplots(4), strict=True):
            pv.plot.reconstructions(shown, vae.reconstruct(shown), ax)
        left.suptitle("held-out digits, and E[x | z] at z = E[z | x]", fontsize=9)
        pv.plot.latents(vae.encode(x_test).mean, digits.y_test, middle, title="posterior means of held-out digits")
        z, grid = pv.plot.latent_grid(12)
        pv.plot.manifold(vae.decode(grid).mean, z, right, title="means E[x | z] on a grid of quantiles of the prior")
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
