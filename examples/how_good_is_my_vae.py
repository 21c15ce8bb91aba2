"""How good is a trained VAE? log p(x) with a verdict, and where the nats between it and the ELBO go.

A VAE with eight latent dimensions, too many for a grid, learns scikit-learn's digits. Four questions are asked:

1. How well does it predict held-out digits? A table has bounds and log p(x), and the share of digits for which the
   estimate of log p(x) is trustworthy.
2. Is the estimator right? On digits drawn from the model log p(x) is enclosed from both sides.
3. What keeps the ELBO below log p(x)? The best Gaussian or flow for each digit alone says what the encoder loses by
   answering all digits with one network (amortisation) and what the family cannot do (approximation), on digits that
   it was trained on and on others. This is the left of the picture.
4. Is the guide as sure as it should be? Simulated data say.

On the right of the picture is each test digit's gap against the k-hat of its importance weights, coloured by verdict.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

import pyro_vae as pv

COLOURS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}
FAMILIES = ("diagonal", "full", "flow")


def inference_gaps(vae: pv.VAE, x: Tensor, evidence: pv.evidence.LogEvidence, num_steps: int) -> dict:
    """Return what the ELBO loses to log p(x), taken apart by the best approximation in each family."""
    gaps = {}
    for family in FAMILIES:
        gaps[family] = pv.diagnostics.inference_gaps(
            vae.model, vae.guide, x, family=family, log_evidence=evidence, num_steps=num_steps
        )
    return gaps


def print_gaps(kind: str, gaps: dict) -> None:
    for family, gap in gaps.items():
        row = ""
        for part in (gap.mean_total, gap.mean_amortisation, gap.mean_approximation):
            value, monte_carlo_error, test_set_error = part
            row += f"   {value:6.3f} ±{monte_carlo_error:6.3f} ±{test_set_error:6.3f}"
        print(f"{kind:>16} digits, {family:8}{row}")


def share_legend(figure: SubFigure, axes: list[Axes]) -> None:
    """Replace the legends of the axes, which are the same, by one below them."""
    handles, labels = axes[0].get_legend_handles_labels()
    for ax in axes:
        ax.get_legend().remove()
        ax.label_outer()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8, columnspacing=1.2)


def plot_verdicts(ax: Axes, sampled: pv.evidence.LogEvidence, gap: pv.diagnostics.InferenceGaps) -> None:
    """Plot the gap of each digit against k-hat, with a colour for each verdict on importance sampling."""
    errors = 1.96 * torch.hypot(gap.log_evidence_stderr, gap.elbo_stderr)
    for verdict, colour in COLOURS.items():
        at = torch.from_numpy(sampled.verdict == verdict)
        label = f"{verdict} ({at.sum()})"
        ax.errorbar(sampled.pareto_k[at], gap.total[at], errors[at], fmt="o", ms=3.5, lw=1, color=colour, label=label)
    for limit in (0.5, 0.7):
        ax.axvline(limit, color="0.6", linewidth=1, linestyle=":")
    ax.set(xlabel=f"k-hat of {sampled.num_particles[0]} weights", ylabel="log p(x) − ELBO, nats per digit")
    ax.set_yscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_title(f"{len(gap.total)} test digits, and the verdict on importance sampling", fontsize=9)
    ax.legend(frameon=False, fontsize=8)


def main() -> None:
    args = parse_arguments()
    num_epochs, few, num_particles, num_steps, num_temperatures = 150, 100, None, 500, 100
    if args.smoke:
        num_epochs, few, num_particles, num_steps, num_temperatures = 2, 20, 200, 10, 5

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    train = pv.data.Pixels(digits.x_train, "static", max_value=digits.max_value)[:]
    test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=8, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

    # 1. Bounds and log p(x) of the held-out digits.
    evaluation = pv.evaluate(vae, test, estimator="auto", num_particles=num_particles)
    shares = [f"{evaluation.log_evidence.share(verdict):.0%} {verdict}" for verdict in COLOURS]
    print(f"{evaluation}\n")
    print(f"log p(x) of {len(test)} test digits by {evaluation.estimator}: {', '.join(shares)}")

    # 2. log p(x) of digits drawn from the model, between two bounds.
    x, z = pv.simulation.simulate(vae.model, test[:few])
    lower, upper = pv.evidence.sandwich(vae.model, vae.guide, x, z, num_temperatures=num_temperatures)
    print(
        f"{few} digits drawn from the model, by chains: {lower.mean:.3f} ± {lower.monte_carlo_error:.3f}"
        f" <= log p(x) <= {upper.mean:.3f} ± {upper.monte_carlo_error:.3f}"
    )

    # 3. The gap between log p(x) and the ELBO, in two parts.
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.3, 1])
    axes = left.subplots(2, sharex=True)
    print("\nmean nats ± Monte-Carlo ± which digits:     log p(x) - ELBO           amortisation          approximation")
    for (kind, x), ax in zip((("training", train[:few]), ("test", test[:few])), axes, strict=True):
        evidence = pv.evidence.ais(vae.model, vae.guide, x, num_temperatures=num_temperatures)
        gaps = inference_gaps(vae, x, evidence, num_steps)
        print_gaps(kind, gaps)
        value = f"{evidence.mean:.2f} ± {evidence.monte_carlo_error:.3f} ± {evidence.test_set_error:.2f}"
        pv.plot.inference_gaps(gaps, ax, title=f"{few} {kind} digits: log p(x) = {value} nats".replace("-", "−"))
    share_legend(left, axes)

    sampled = pv.evidence.importance(vae.model, vae.guide, test[:few], num_particles=num_particles)
    plot_verdicts(right.subplots(), sampled, gaps["diagonal"])
    figure.savefig(args.out, dpi=100)

    # 4. The calibration of the guide.
    ranks = pv.diagnostics.calibration(vae.model, vae.guide, test, num_simulations=2000)
    calibrated = (ranks.verdict == "calibrated").sum()
    print(f"\nthe guide is calibrated in {calibrated} of {len(ranks.names)} dimensions,", end=" ")
    print(f"and {ranks.spread.mean():.2f} times too narrow on average")
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("how_good_is_my_vae.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
