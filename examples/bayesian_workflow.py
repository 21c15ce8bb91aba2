"""A whole Bayesian workflow on one model, from a prior predictive check to a decision.

A scanner glues one image in ten from the halves of two digits. Which scans are worth a look, if a look costs 1 and a
glued scan that is not found costs 20? A VAE of digits answers in seven steps. The panels of the picture have their
numbers; steps 2 and 5 share one.

1. prior predictive check: how many edges do images from the model have, before and after training?
2. criticism: how far is the ELBO of each held-out digit below log p(x)?
3. posterior predictive check: do replicates of the held-out digits have as many edges as the digits?
4. comparison: how much better are eight latent dimensions than two, by leave-one-out?
5. refinement: how much of the gap of step 2 does the best Gaussian for each digit close?
6. evidence: log p(whole) - log p(upper) - log p(lower) is high for genuine scans and low for glued ones.
7. decision: what does a scan cost, if one never looks, always looks, or looks where the evidence says it pays?

The VAE is trained on whole images and on halves, so that it can say how probable a half is.
"""

import argparse
import warnings
from pathlib import Path

import arviz as az
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

COST_OF_LOOK = 1.0
COST_OF_MISS = 20.0
SHARE_GLUED = 0.1


def parts(x: Tensor) -> list[Tensor]:
    """Return the whole images, their upper halves and their lower halves, with NaN for what is missing."""
    upper = (torch.arange(8) < 4)[:, None]
    return [x, x.masked_fill(~upper, torch.nan), x.masked_fill(upper, torch.nan)]


def edges(x: Tensor) -> Tensor:
    """Return the number of neighbouring pixels that differ, for each image."""
    horizontal = x.diff(dim=-1).abs().sum((-2, -1))
    vertical = x.diff(dim=-2).abs().sum((-2, -1))
    return horizontal + vertical


def glued(x: Tensor) -> Tensor:
    """Return images with the upper half of one digit and the lower half of the digit before it."""
    return torch.cat([x[:, :4], x.roll(1, 0)[:, 4:]], 1)


def expected_cost(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cost of a scan and its standard error, from log evidence ratios ``[genuine or glued, n]``."""
    probability_glued = (torch.tensor(SHARE_GLUED).logit() - score).sigmoid()
    look = probability_glued * COST_OF_MISS > COST_OF_LOOK
    cost_without_look = torch.tensor([[0.0], [COST_OF_MISS]])
    cost = torch.where(look, COST_OF_LOOK, cost_without_look)
    shares = torch.tensor([1 - SHARE_GLUED, SHARE_GLUED])
    mean = shares @ cost.mean(1)
    variance = shares**2 @ cost.var(1) / cost.shape[1]
    return mean, variance.sqrt()


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")  # ArviZ warns about k-hats, which the verdicts cover
    num_epochs, num_digits, num_particles = (1, 20, 100) if args.smoke else (100, None, 2000)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "static", max_value=16)[:num_digits]
    x = pv.data.Pixels(digits.x_test, "static", max_value=16)[:num_digits]
    axes = Figure(figsize=(12, 7), layout="constrained").subplots(2, 3).flatten()

    # Train a small VAE and a large one, the latter being the one that is checked below.
    vaes = {}
    exports = {}
    for latent_dim in (2, 8):
        torch.manual_seed(0)
        vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=latent_dim, data_mean=x_train.mean(0))
        untrained = pv.prior_predictive(vae.model, 1000)["x"]
        pv.fit(
            pv.Incomplete(vae),
            torch.cat(parts(x_train)),
            objective=pv.objectives.IWAE(num_particles=5),
            num_epochs=num_epochs,
            schedule="cosine",
        )
        exports[f"{latent_dim} latents"] = pv.to_arviz(vae, x, num_draws=num_particles // 4)
        vaes[latent_dim] = vae
    vae = vaes[8]

    # 1. Prior predictive check.
    trained = pv.prior_predictive(vae.model, 1000)["x"]
    for label, images in (("untrained", untrained), ("trained", trained), ("held-out digits", x)):
        axes[0].hist(edges(images), range(0, 60, 3), density=True, histtype="step", lw=2, label=label)
    axes[0].set(title="1 prior predictive check", xlabel="edges of an image", ylabel="share")

    # 3. Posterior predictive check.
    replicates = pv.posterior_predictive(vae.model, vae.guide, x, num_draws=200)["x"]
    axes[2].hist(edges(replicates).mean(-1), 20, label="replicates")
    axes[2].axvline(edges(x).mean(), color="k", label="held-out digits")
    axes[2].set(title="3 posterior predictive check", xlabel="mean edges of an image")

    # 4. Comparison, before step 2 because its log p(x) is needed there.
    small = pv.evidence.importance(vaes[2].model, vaes[2].guide, x, proposal="refined", seed=1)
    large = pv.evidence.importance(vaes[8].model, vaes[8].guide, x, proposal="refined", seed=1)
    loo = az.compare(exports, var_name="marginal").iloc[1]
    axes[3].plot(small.value, large.value, ".", ms=3, label=f"LOO: {loo.elpd_diff:.0f} ± {loo.dse:.0f} nats")
    axes[3].axline((-20, -20), slope=1, color="0.7")
    axes[3].set(title="4 comparison", xlabel="log p(x), 2 latents", ylabel="log p(x), 8 latents")

    # 2. Criticism: the gap between log p(x) and the ELBO. 5. Refinement: what is left of it.
    refined = pv.refine(vae.model, vae.guide, x, method="svi")
    gap = large.value - refined.elbo
    refined_gap = large.value - (refined.elbo + refined.gain)
    axes[1].plot(gap.sort().values, label="encoder")
    axes[1].plot(refined_gap.sort().values, label="refined")
    axes[1].set(title="2 criticism, and 5 refinement", xlabel="images in order", ylabel="log p(x) - ELBO, nats")

    # 6. Evidence for genuine scans and for glued ones, by two estimates.
    pair = pv.Incomplete(vae)
    scans = torch.cat([x, glued(x)])
    scores = {"never": torch.full((2, len(x)), torch.inf), "always": torch.full((2, len(x)), -torch.inf)}
    for rule, estimate in (("by ELBO", pv.evidence.elbo), ("by log p(x)", pv.evidence.importance)):
        found = []
        for part in parts(scans):
            evidence = estimate(pair.model, pair.guide, part, num_particles=num_particles)
            found.append(evidence.value.float())
        whole, upper, lower = found
        scores[rule] = (whole - upper - lower).unflatten(0, (2, len(x)))
    by_kind = scores["by log p(x)"].T
    axes[4].hist(by_kind, range(-20, 12, 2), histtype="step", lw=2, label=["genuine", "glued"])
    axes[4].set(title="6 evidence", xlabel="log p(whole) - log p(upper) - log p(lower)", ylabel="images")

    # 7. Decision.
    costs = [expected_cost(score) for score in scores.values()]
    means = [mean.item() for mean, _ in costs]
    errors = [error.item() for _, error in costs]
    axes[5].bar(list(scores), means, yerr=errors, capsize=5)
    axes[5].set(title="7 decision", xlabel="look", ylabel="cost of a scan")

    for ax in axes[:5]:
        ax.legend(fontsize=8)
    axes[0].figure.savefig(args.out, dpi=100)
    print(f"costs {means} ± {errors}, gain {refined.mean_gain.value:.3f}")
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bayesian_workflow.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
