"""A VAE inside a bigger model: latents of a count table feed a Bayesian regression, and both are trained as one.

scikit-learn's digits are a count table: how many of the 16 points in each of 64 cells are inked. Here one in ten is
seen. The user's model calls the pair's model, takes z and states a regression of the class on it, with global weights;
the user's guide calls the pair's guide. Stock SVI trains all of it, or the VAE first and the regression afterwards.
"""

import argparse
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

LATENT, TRAIN, WAYS = 4, 1437, ("two stages", "one model", "counts")


def train(model: object, guide: object, x: Tensor, y: Tensor, num_steps: int) -> None:
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.03 ** (1 / num_steps)}), Trace_ELBO())
    for _ in range(num_steps):
        rows = torch.randint(TRAIN, (96,))
        svi.step(x[rows], y[rows])


def held_out_probabilities(x: Tensor, y: Tensor, way: str, num_steps: int) -> Tensor:
    vae = pv.presets.table_vae(kinds=["count"] * 64, latent_dim=LATENT, data_mean=x[:TRAIN].mean(0), name=way)

    def model(x: Tensor, y: Tensor | None) -> None:
        z = pv.embed(vae.model, x, name="digits")["z"] if way == "one model" else vae.encode(x).sample()
        features = x if way == "counts" else z
        with poutine.scale(scale=len(x) / TRAIN):  # a batch has its share of what all images have in common
            weights = pyro.sample("weights", dist.Normal(torch.zeros(features.shape[1] + 1, 10), 5.0).to_event(2))
        logits = pyro.deterministic("logits", features @ weights[..., :-1, :] + weights[..., -1:, :])
        with pyro.plate("images", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def guide(x: Tensor, y: Tensor | None) -> None:
        if way == "one model":
            pv.embed(vae.guide, x, name="digits")
        with poutine.scale(scale=len(x) / TRAIN):
            guide_of_weights(x, y)

    guide_of_weights = AutoNormal(poutine.block(model, expose=["weights"]), init_scale=0.1)
    if way == "two stages":
        train(lambda x, _: vae.model(x), lambda x, _: vae.guide(x), x, y, num_steps)
    train(model, guide, x, y, num_steps)
    several = Predictive(model, guide=guide, num_samples=min(300, num_steps), return_sites=["logits"])
    return several(x[TRAIN:], None)["logits"].softmax(-1).flatten(0, -3).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vae_in_a_model.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_steps, num_splits = (20, 2) if args.smoke else (3000, 4)
    counts, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    scores = {way: torch.empty(num_splits) for way in WAYS}
    for split in range(num_splits):
        pyro.set_rng_seed(split)
        order = torch.randperm(len(counts))
        x, y = dist.Binomial(counts[order], torch.tensor(0.1)).sample().float(), labels[order]
        for way, score in scores.items():
            with pyro.get_param_store().scope():  # Pyro's store is one for all models
                p = held_out_probabilities(x, y, way, num_steps)
            score[split] = p.gather(1, y[TRAIN:, None]).log().mean()
            print(
                f"split {split}, {way}: {score[split]:.3f} nats, {(p.argmax(1) == y[TRAIN:]).double().mean():.1%} right"
            )
    gain = scores["one model"] - scores["two stages"]
    result = f"one model gains {gain.mean():.3f} ± {gain.std() / num_splits**0.5:.3f} nats per digit on two stages"
    ax, values = Figure(figsize=(6, 3.2), layout="constrained").subplots(), torch.stack([*scores.values()])
    ax.plot(WAYS, values, "o-", color="0.7", lw=1, ms=4)
    ax.errorbar(WAYS, values.mean(1), values.std(1) / num_splits**0.5, fmt="s", capsize=5)
    ax.set(ylabel="log p(y | x), nats per held-out digit", xlim=(-0.3, 2.3))
    ax.figure.savefig(args.out, dpi=100)
    print(result, args.out, sep="\n")


if __name__ == "__main__":
    main()
