"""Does the model make data like ours? Predictive checks of a VAE of digits, and what the importance weights correct.

A test statistic of the data is compared with that of data which the model makes, from its prior or, digit by digit,
from its posterior; p, the share of replicates with at least as much of it, is bad near 0 and near 1. Ink counts black
pixels, edges the neighbours that differ. Posterior checks are conservative: replicates have seen their own digits.

Two latent dimensions have an exact answer: a grid. Against it stand the expected ink of each held-out digit under the
guide alone and under its importance weights, which cannot put right what no draw of the guide has reached.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv


def ink(x: Tensor) -> Tensor:
    return x.sum((-2, -1))


def edges(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().sum((-2, -1)) + x.diff(dim=-2).abs().sum((-2, -1))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("predictive_checks.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, num_draws, num_particles, side = (1, 20, 100, 21) if args.smoke else (150, 400, 2000, 201)
    digits = pv.data.load("digits")
    train, x = (pv.data.Pixels(x, "threshold", max_value=16)[:] for x in (digits.x_train, digits.x_test))
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=train.mean(0))
    with torch.enable_grad():
        pv.fit(vae, train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    pair, options = (vae.model, vae.guide), {"num_draws": num_draws, "num_particles": num_particles}
    made = {
        "prior": pv.prior_predictive(vae.model, num_draws * len(x))["x"].unflatten(0, (num_draws, len(x))),
        "guide alone": pv.posterior_predictive(*pair, x, corrected=False, **options)["x"],
        "corrected": pv.posterior_predictive(*pair, x, **options)["x"],
    }
    *checks, left, right = (figure := Figure(figsize=(11, 7.4), layout="constrained")).subplots(2, 2).flat
    for statistic, ax in zip((ink, edges), checks, strict=True):
        name, observed = statistic.__name__, statistic(x)
        print(f"{name}: {observed.mean():.2f} held out, {statistic(train).mean():.2f} in training; p-values of")
        for source, replicated in made.items():
            p = [(of(statistic(replicated), -1) >= of(observed, -1)).double().mean() for of in (torch.mean, torch.std)]
            print(f"  {source}: {p[0]:.3f} for the mean over digits, {p[1]:.3f} for the standard deviation")
        for shift, source, colour in ((-0.15, "guide alone", "C1"), (0.15, "corrected", "C0")):
            each = [statistic(made[source][:, digits.y_test == k]).mean(-1) for k in range(10)]
            low, high = torch.stack(each, 1).quantile(torch.tensor([0.025, 0.975]), 0)
            ax.vlines(torch.arange(10) + shift, low, high, colour, lw=3, label=f"95% of replicates, {source}")
        ax.plot(range(10), [observed[digits.y_test == k].mean() for k in range(10)], "kx", label="held-out digits")
        ax.set(xticks=range(10), xlabel="class", ylabel=f"mean {name} of a class", title="posterior predictive check")
    checks[1].legend(frameon=False, fontsize=8, loc="lower right")
    for values, label in ((made["prior"], "draws from the prior"), (x, "held-out digits")):
        left.hist(edges(values).flatten(), torch.arange(9.5, 56), density=True, histtype="step", lw=2, label=label)
    left.set(xlabel="edges of a digit", ylabel="share of digits", title="prior predictive check")
    left.legend(frameon=False, fontsize=8)

    z = torch.cartesian_prod(*[torch.linspace(-5, 5, side)] * 2)
    log_p = torch.stack([vae.prior().log_prob(z) + vae.decode(z).log_prob(row) for row in x])
    exact = log_p.softmax(1) @ ink(vae.decode(z).mean)
    found = pv.predict(*pair, x, lambda z: ink(vae.decode(z["z"]).mean), num_particles=num_particles)
    alone = (ink(vae.decode(vae.encode(x).sample((num_particles,))).mean).mean(0) - exact).abs()
    gap = (found.mean - exact).abs()
    for verdict, colour in (("ok", "C0"), ("doubtful", "C1"), ("unreliable", "C3")):
        if len(those := torch.from_numpy(found.verdict == verdict).nonzero()[:, 0]):
            right.loglog(alone[those], gap[those], ".", color=colour, label=f"{verdict} ({len(those)})")
            rms = [part[those].square().mean().sqrt() for part in (alone, gap, found.stderr)]
            print(f"expected ink of {len(those)} digits, {verdict}: RMSE {rms[0]:.3f} under the guide alone,")
            inside = (gap <= 2 * found.stderr)[those].double().mean()
            print(f"  {rms[1]:.3f} corrected; stated {rms[2]:.3f}, and {inside:.0%} within two standard errors")
    right.plot([1e-4, 1], [1e-4, 1], color="0.6", lw=1, zorder=0)
    right.set(xlabel="error under the guide alone, pixels", ylabel="error corrected, pixels")
    right.set_title(f"expected ink: the correction is nearer for {(gap < alone).double().mean():.0%} of digits")
    right.legend(frameon=False, fontsize=8, title="verdict on the weights")
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
