"""What each of the ELBO's two terms does by itself: three trainings, and the latent space that each of them leaves.

The reconstruction E_q[log p(x|z)] alone puts every digit where it can be told from all others, without regard to the
prior. KL(q(z|x) || p(z)) alone makes every q(z|x) the prior, which says nothing about x. It takes both for a latent
space that is used and can be drawn from.

In the picture one column per training. Above, a draw from q(z|x) for every held-out digit, coloured by class, and the
circles that hold 50% and 95% of the prior: each panel has axes of its own, but the circles are the same. Below, the
decoder's mean images at 30 draws from the prior, the same for all three: of reconstruction alone they are sharp, but
the classes that were put outside (2, 4, 6, 7) do not come up; of KL alone they are the mean image, with which the
decoder began; of both there are all kinds of digits.
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import poutine

import pyro_vae as pv

NAMES = {"reconstruction": "reconstruction alone", "kl": "KL alone", "both": "both: the ELBO"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elbo_terms.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    run = {"num_epochs": 2 if args.smoke else 200, "batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine"}

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    prior_draws = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    columns = ("ELBO", "reconstruction", "KL(q(z|x)||p)", "KL(q(z)||p)", "I(x; z)", "outside 95% of p(z)")
    print(f"{'nats per held-out digit':24}" + "".join(f"{name:>{len(name) + 3}}" for name in columns))

    axes = (figure := Figure(figsize=(13, 6.4), layout="constrained")).subplots(2, 3, height_ratios=[3, 1])
    for (upper, lower), (terms, name) in zip(axes.T, NAMES.items(), strict=True):
        torch.manual_seed(0)
        vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
        # The ELBO without its KL term is that of beta = 0; without reconstruction, that of a model that observes no x.
        objective = pv.objectives.BetaVAE(beta=0.0 if terms == "reconstruction" else 1.0, analytic_kl=True)
        model = poutine.block(vae.model, hide=["x"]) if terms == "kl" else vae.model
        pv.fit((model, vae.guide), x_train, objective=objective, **run)

        parts = pv.diagnostics.elbo_parts(vae.model, vae.guide, x, analytic_kl=True)
        aggregate = pv.diagnostics.aggregate_posterior(vae.model, vae.guide, x)["z"].whole
        with torch.no_grad():
            torch.manual_seed(0)
            z, images = vae.encode(x).sample(), vae.decode(prior_draws).mean
        numbers = [part.mean().item() for part in (parts.elbo, parts.reconstruction, parts.kl["z"])]
        numbers += [aggregate.prior_kl.value.item(), aggregate.mutual_information.value.item()]
        outside = (z.square().sum(1) > -2 * math.log(0.05)).double().mean().item()
        row = "".join(
            f"{round(value, 2) + 0.0:{len(title) + 3}.2f}" for value, title in zip(numbers, columns, strict=False)
        )
        print(f"{name:24}{row}{outside:22.0%}")

        elbo, reconstruction, kl, distance, _ = numbers
        title = f"trained on {name}\nreconstruction {reconstruction:.1f} − KL {kl:.1f} = ELBO {elbo:.1f} nats\n"
        title += f"KL(q(z) ‖ p(z)) {abs(distance):.1f} nats, {outside:.0%} of draws outside 95% of p(z)"
        pv.plot.latents(z, digits.y_test, upper, title=title.replace(" -", " −"))
        most = 1.05 * max(z.abs().max().item(), 2.6)
        upper.set(xlim=(-most, most), ylim=(-most, most), xlabel="$z_1$", ylabel="$z_2$")
        upper.set_aspect("equal", adjustable="box")
        if terms != "both":
            upper.get_legend().remove()
        pv.plot.images(images, lower, columns=10, title="E[x|z] at 30 draws from the prior")
    figure.savefig(args.out, dpi=100)
    print(
        f"I(x; z) of {len(x)} digits is at most log {len(x)} = {math.log(len(x)):.2f}: then each has a place to itself"
    )
    print(args.out)


if __name__ == "__main__":
    main()
