"""A VAE inside a bigger model: latents of a count table feed a Bayesian regression, and both are trained as one.

scikit-learn's digits are a count table: how many of the 16 points in each of 64 cells have ink. Here only one point in
ten is seen. The user's model calls the pair's model, takes z, and states a regression of the class on it, with global
weights; the user's guide calls the pair's guide. Stock SVI trains all of it as one model, or the VAE first and the
regression afterwards (two stages). A regression on the counts themselves is there for comparison.

In the picture: log p(y | x) of held-out digits for the three ways, a line per split of the data, and the means with
their standard errors.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_vae as pv

LATENT = 4
NUM_TRAIN = 1437
WAYS = ("two stages", "one model", "counts")


def train(model: Callable, guide: Callable, x: Tensor, y: Tensor, num_steps: int) -> None:
    """Train by Pyro's SVI on minibatches of the training rows."""
    optimiser = pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.03 ** (1 / num_steps)})
    svi = SVI(model, guide, optimiser, Trace_ELBO())
    for _ in range(num_steps):
        rows = torch.randint(NUM_TRAIN, (96,))
        svi.step(x[rows], y[rows])


def held_out_probabilities(x: Tensor, y: Tensor, way: str, num_steps: int) -> Tensor:
    """Return the probabilities of the classes ``[held-out digits, 10]``, averaged over the posterior."""
    vae = pv.presets.table_vae(kinds=["count"] * 64, latent_dim=LATENT, data_mean=x[:NUM_TRAIN].mean(0), name=way)

    def latents(x: Tensor) -> Tensor:
        if way == "one model":
            return pv.embed(vae.model, x, name="digits")["z"]
        return vae.encode(x).sample()

    def model(x: Tensor, y: Tensor | None) -> None:
        z = latents(x)
        features = x if way == "counts" else z
        # The weights belong to all images; of their terms, a minibatch counts its share.
        with poutine.scale(scale=len(x) / NUM_TRAIN):
            weights = pyro.sample("weights", dist.Normal(torch.zeros(features.shape[1] + 1, 10), 5.0).to_event(2))
        slopes = weights[..., :-1, :]
        intercept = weights[..., -1:, :]
        logits = pyro.deterministic("logits", features @ slopes + intercept)
        with pyro.plate("images", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide_of_weights = AutoNormal(poutine.block(model, expose=["weights"]), init_scale=0.1)

    def guide(x: Tensor, y: Tensor | None) -> None:
        if way == "one model":
            pv.embed(vae.guide, x, name="digits")
        with poutine.scale(scale=len(x) / NUM_TRAIN):
            guide_of_weights(x, y)

    if way == "two stages":
        train(lambda x, _: vae.model(x), lambda x, _: vae.guide(x), x, y, num_steps)
    train(model, guide, x, y, num_steps)

    predictive = Predictive(model, guide=guide, num_samples=min(300, num_steps), return_sites=["logits"])
    logits = predictive(x[NUM_TRAIN:], None)["logits"]
    return logits.softmax(-1).flatten(0, -3).mean(0)


def main() -> None:
    args = parse_arguments()
    num_steps, num_splits = (20, 2) if args.smoke else (3000, 4)

    table, classes = load_digits(return_X_y=True)
    counts = torch.from_numpy(table)
    labels = torch.from_numpy(classes)
    scores = {way: torch.empty(num_splits) for way in WAYS}
    for split in range(num_splits):
        pyro.set_rng_seed(split)
        order = torch.randperm(len(counts))
        x = dist.Binomial(counts[order], torch.tensor(0.1)).sample().float()  # one point in ten
        y = labels[order]
        y_test = y[NUM_TRAIN:]
        for way in WAYS:
            with pyro.get_param_store().scope():  # each way starts with an empty parameter store
                p = held_out_probabilities(x, y, way, num_steps)
            score = p.gather(1, y_test[:, None]).log().mean()
            right = (p.argmax(1) == y_test).double().mean()
            scores[way][split] = score
            print(f"split {split}, {way}: {score:.3f} nats, {right:.1%} right")

    gain = scores["one model"] - scores["two stages"]
    error = gain.std() / num_splits**0.5
    print(f"one model gains {gain.mean():.3f} ± {error:.3f} nats per digit on two stages")

    values = torch.stack([scores[way] for way in WAYS])
    ax = Figure(figsize=(6, 3.2), layout="constrained").subplots()
    ax.plot(WAYS, values, "o-", color="0.7", lw=1, ms=4)
    ax.errorbar(WAYS, values.mean(1), values.std(1) / num_splits**0.5, fmt="s", capsize=5)
    ax.set(ylabel="log p(y | x), nats per held-out digit", xlim=(-0.3, 2.3))
    ax.figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vae_in_a_model.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
