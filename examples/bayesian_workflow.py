"""A whole Bayesian workflow on one model, from a prior predictive check to a decision.

A scanner glues one image in ten from halves of two. A VAE of digits is checked before it has seen any, fitted to whole
and half images, criticised, checked by its replicates, compared with a smaller one by leave-one-out, refined, and asked
which scans to look at: log p(whole) against log p(upper) + log p(lower). A look costs 1, a glued scan not found 20.
"""

import argparse
import warnings
from pathlib import Path

import arviz as az
import torch
from matplotlib.figure import Figure

import pyro_vae as pv

LOOK, MISS, GLUED = 1.0, 20.0, 0.1


def parts(x: torch.Tensor) -> list[torch.Tensor]:
    """Whole images, their upper and their lower halves, NaN for what is missing."""
    upper = (torch.arange(8) < 4)[:, None]
    return [x, x.masked_fill(~upper, torch.nan), x.masked_fill(upper, torch.nan)]


def edges(x: torch.Tensor) -> torch.Tensor:
    return x.diff(dim=-1).abs().sum((-2, -1)) + x.diff(dim=-2).abs().sum((-2, -1))


def cost(score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a scan on average, and its standard error; scores ``[genuine or glued, n]``."""
    looked_at = (torch.tensor(GLUED).logit() - score).sigmoid() * MISS > LOOK
    each, share = torch.where(looked_at, LOOK, torch.tensor([[0.0], [MISS]])), torch.tensor([1 - GLUED, GLUED])
    return share @ each.mean(1), (share**2 @ each.var(1) / each.shape[1]).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bayesian_workflow.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # ArviZ warns of k-hats, of which the verdicts speak
    num_epochs, num_digits, num = (1, 20, 100) if args.smoke else (100, None, 2000)
    digits = pv.data.load("digits")
    train, x = (pv.data.Pixels(x, "static", max_value=16)[:num_digits] for x in (digits.x_train, digits.x_test))
    vaes, exported, several = {}, {}, pv.objectives.IWAE(num_particles=5)
    for latent_dim in (2, 8):
        torch.manual_seed(0)
        vae = vaes[latent_dim] = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=latent_dim, data_mean=train.mean(0))
        drawn = {"untrained": edges(pv.prior_predictive(vae.model, 1000)["x"])}
        pv.fit(pv.Incomplete(vae), torch.cat(parts(train)), objective=several, num_epochs=num_epochs, schedule="cosine")
        exported[f"{latent_dim} latents"] = pv.to_arviz(vae, x, num_draws=num // 4)
    drawn |= {"trained": edges(pv.prior_predictive(vae.model, 1000)["x"]), "held-out digits": edges(x)}
    replicated = edges(pv.posterior_predictive(vae.model, vae.guide, x, num_draws=200)["x"])
    small, large = (pv.evidence.importance(v.model, v.guide, x, proposal="refined", seed=1) for v in vaes.values())
    loo = az.compare(exported, var_name="marginal").iloc[1]
    refined = pv.refine(vae.model, vae.guide, x, method="svi")
    pair, scans = pv.Incomplete(vae), torch.cat([x, torch.cat([x[:, :4], x.roll(1, 0)[:, 4:]], 1)])
    scores = {"never": torch.full((2, len(x)), torch.inf), "always": torch.full((2, len(x)), -torch.inf)}
    for rule, estimate in (("by ELBO", pv.evidence.elbo), ("by log p(x)", pv.evidence.importance)):
        each = [estimate(pair.model, pair.guide, part, num_particles=num).value.float() for part in parts(scans)]
        scores[rule] = (each[0] - each[1] - each[2]).unflatten(0, (2, len(x)))
    mean, error = torch.tensor([cost(score) for score in scores.values()]).T
    axes = Figure(figsize=(12, 7), layout="constrained").subplots(2, 3).flatten()
    for label, values in drawn.items():
        axes[0].hist(values, range(0, 60, 3), density=True, histtype="step", lw=2, label=label)
    axes[0].set(title="1 prior predictive check", xlabel="edges of an image", ylabel="share")
    gaps = large.value - torch.stack([refined.elbo, refined.elbo + refined.gain])
    axes[1].plot(gaps.sort(1).values.T, label=["encoder", "refined"])
    axes[1].set(title="2 criticism, and 5 refinement", xlabel="images in order", ylabel="log p(x) - ELBO, nats")
    axes[2].hist(replicated.mean(-1), 20, label="replicates")
    axes[2].axvline(edges(x).mean(), color="k", label="held-out digits")
    axes[2].set(title="3 posterior predictive check", xlabel="mean edges of an image")
    axes[3].plot(small.value, large.value, ".", ms=3, label=f"LOO: {loo.elpd_diff:.0f} ± {loo.dse:.0f} nats")
    axes[3].axline((-20, -20), slope=1, color="0.7")
    axes[3].set(title="4 comparison", xlabel="log p(x), 2 latents", ylabel="log p(x), 8 latents")
    axes[4].hist(scores["by log p(x)"].T, range(-20, 12, 2), histtype="step", lw=2, label=["genuine", "glued"])
    axes[4].set(title="6 evidence", xlabel="log p(whole) - log p(upper) - log p(lower)", ylabel="images")
    axes[5].bar([*scores], mean, yerr=error, capsize=5)
    axes[5].set(title="7 decision", xlabel="look", ylabel="cost of a scan")
    for ax in axes[:5]:
        ax.legend(fontsize=8)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(args.out, dpi=100)
    print(f"costs {mean.tolist()} ± {error.tolist()}, gain {refined.mean_gain.value:.3f}", args.out, sep="\n")


if __name__ == "__main__":
    main()
