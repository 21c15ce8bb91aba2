"""The two terms of the ELBO, each by itself: three trainings, and the latent space that each of them leaves.

The reconstruction E_q[log p(x|z)] alone keeps every digit apart from all others, without regard to the prior.
KL(q(z|x) || p(z)) alone makes every q(z|x) the prior, which says nothing about x. It takes both for a latent space that
is used and can be drawn from.

In the picture there is one column per training. Above is a draw from q(z|x) for every held-out digit, coloured by
class, and the circles that hold 50% and 95% of the prior: the panels have different scales, but the circles are the
same. Below are the decoder's mean images at 30 draws from the prior, the same draws for all three. Reconstruction alone
gives sharp images, but the classes that it has put outside the circles (2, 4, 6, 7) are missing. KL alone gives the
mean image, with which the decoder began. Both together give all kinds of digits.
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import poutine

import pyro_vae as pv

TRAININGS = {"reconstruction": "reconstruction alone", "kl": "KL alone", "both": "both: the ELBO"}
COLUMNS = ("ELBO", "reconstruction", "KL(q(z|x)||p)", "KL(q(z)||p)", "I(x; z)")
SQUARED_RADIUS = -2 * math.log(0.05)  # of the circle that holds 95% of a standard normal in the plane


def trained(terms: str, x_train: pv.data.Pixels, num_epochs: int) -> pv.VAE:
    """Return a VAE that was trained on one term of the ELBO, or on both."""
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    model = vae.model
    beta = 1.0
    if terms == "reconstruction":
        beta = 0.0  # the weight of the KL term
    if terms == "kl":
        model = poutine.block(vae.model, hide=["x"])  # a model that observes nothing has no reconstruction term
    pv.fit(
        (model, vae.guide),
        x_train,
        objective=pv.objectives.BetaVAE(beta=beta, analytic_kl=True),
        num_epochs=num_epochs,
        batch_size=64,
        learning_rate=3e-3,
        schedule="cosine",
    )
    return vae


def main() -> None:
    args = parse_arguments()
    num_epochs = 2 if args.smoke else 200

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    prior_draws = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))

    header = "".join(f"{name:>{len(name) + 3}}" for name in (*COLUMNS, "outside 95% of p(z)"))
    print(f"{'nats per held-out digit':24}{header}")
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[3, 1])
    for (upper, lower), (terms, name) in zip(axes.T, TRAININGS.items(), strict=True):
        vae = trained(terms, x_train, num_epochs)

        parts = pv.diagnostics.elbo_parts(vae.model, vae.guide, x, analytic_kl=True)
        elbo = parts.elbo.mean().item()
        reconstruction = parts.reconstruction.mean().item()
        kl = parts.kl["z"].mean().item()
        aggregate = pv.diagnostics.aggregate_posterior(vae.model, vae.guide, x)["z"].whole
        aggregate_kl = aggregate.prior_kl.value.item()
        information = aggregate.mutual_information.value.item()
        with torch.no_grad():
            torch.manual_seed(0)
            z = vae.encode(x).sample()
            images = vae.decode(prior_draws).mean
        outside = (z.square().sum(1) > SQUARED_RADIUS).double().mean().item()

        row = ""
        for column, value in zip(COLUMNS, (elbo, reconstruction, kl, aggregate_kl, information), strict=True):
            row += f"{round(value, 2) + 0.0:{len(column) + 3}.2f}"  # adding 0.0 turns -0.0 into 0.0
        print(f"{name:24}{row}{outside:22.0%}")

        title = (
            f"trained on {name}\nreconstruction {reconstruction:.1f} − KL {kl:.1f} = ELBO {elbo:.1f} nats\n"
            f"KL(q(z) ‖ p(z)) {abs(aggregate_kl):.1f} nats, {outside:.0%} of draws outside 95% of p(z)"
        )
        pv.plot.latents(z, digits.y_test, upper, title=title.replace(" -", " −"))
        reach = 1.05 * max(z.abs().max().item(), 2.6)
        upper.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$z_1$", ylabel="$z_2$")
        upper.set_aspect("equal", adjustable="box")
        if terms != "both":
            upper.get_legend().remove()  # one legend is enough
        pv.plot.images(images, lower, columns=10, title="E[x|z] at 30 draws from the prior")
    figure.savefig(args.out, dpi=100)

    most = math.log(len(x))
    print(f"I(x; z) of {len(x)} digits is at most log {len(x)} = {most:.2f}, which is reached if no two digits overlap")
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elbo_terms.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
