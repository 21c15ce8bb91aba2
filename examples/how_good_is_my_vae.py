"""How good is a trained VAE? log p(x) with a verdict, and where the nats between it and the ELBO go.

A VAE with eight latent dimensions, too many for a grid, learns scikit-learn's digits. First comes the table: bounds and
log p(x) of held-out digits, and for how many of them it is to be believed. On digits drawn from the model log p(x) is
enclosed from both sides. Then the gap is taken apart: the best Gaussian or flow for each digit alone says what the
encoder loses by answering all digits with one network (amortisation) and what the family cannot do (approximation), on
digits that it was trained on and on others. The last question is whether the guide is as sure as it should be.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

COLOURS = {"ok": "C0", "doubtful": "C1", "unreliable": "C3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("how_good_is_my_vae.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, few, draws, steps, temperatures = (2, 20, 200, 10, 5) if args.smoke else (150, 100, None, 500, 100)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    kinds = {"training": digits.x_train, "test": digits.x_test}
    kinds = {kind: pv.data.Pixels(x, "static", max_value=digits.max_value)[:] for kind, x in kinds.items()}
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=8, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    pair = vae.model, vae.guide

    found = pv.evaluate(vae, kinds["test"], estimator="auto", num_particles=draws)
    shares = ", ".join(f"{found.log_evidence.share(verdict):.0%} {verdict}" for verdict in COLOURS)
    print(f"{found}\n\nlog p(x) of {len(kinds['test'])} test digits by {found.estimator}: {shares}")

    x, z = pv.simulation.simulate(vae.model, kinds["test"][:few])
    enclosed = pv.evidence.sandwich(*pair, x, z, num_temperatures=temperatures)
    lower, upper = (f"{side.mean:.3f} ± {side.monte_carlo_error:.3f}" for side in enclosed)
    print(f"{few} digits drawn from the model, by chains: {lower} <= log p(x) <= {upper}")

    left, right = (figure := Figure(figsize=(12, 4.4), layout="constrained")).subfigures(1, 2, width_ratios=[1.3, 1])
    print("\nmean nats ± Monte-Carlo ± which digits:     log p(x) - ELBO           amortisation          approximation")
    for (kind, x), ax in zip(kinds.items(), axes := left.subplots(2, sharex=True), strict=True):
        evidence = pv.evidence.ais(*pair, x[:few], num_temperatures=temperatures)
        options = {"log_evidence": evidence, "num_steps": steps}
        families = ("diagonal", "full", "flow")
        gaps = {name: pv.diagnostics.inference_gaps(*pair, x[:few], family=name, **options) for name in families}
        for name, gap in gaps.items():
            parts = gap.mean_total, gap.mean_amortisation, gap.mean_approximation
            print(f"{kind:>16} digits, {name:8}" + "".join(f"   {a:6.3f} ±{b:6.3f} ±{c:6.3f}" for a, b, c in parts))
        errors = f"{evidence.mean:.2f} ± {evidence.monte_carlo_error:.3f} ± {evidence.test_set_error:.2f}"
        pv.plot.inference_gaps(gaps, ax, title=f"{few} {kind} digits: log p(x) = {errors} nats".replace("-", "−"))
    handles = axes[0].get_legend_handles_labels()
    for ax in axes:
        ax.get_legend().remove()
        ax.label_outer()
    left.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8, columnspacing=1.2)

    sampled = pv.evidence.importance(*pair, kinds["test"][:few], num_particles=draws)
    ax, gap = right.subplots(), gaps["diagonal"]
    for verdict, colour in COLOURS.items():
        at = torch.from_numpy(sampled.verdict == verdict)
        bars = 1.96 * torch.hypot(gap.log_evidence_stderr, gap.elbo_stderr)[at]
        label = f"{verdict} ({at.sum()})"
        ax.errorbar(sampled.pareto_k[at], gap.total[at], bars, fmt="o", ms=3.5, lw=1, color=colour, label=label)
    for limit in (0.5, 0.7):
        ax.axvline(limit, color="0.6", linewidth=1, linestyle=":")
    ax.set(xlabel=f"k-hat of {sampled.num_particles[0]} weights", ylabel="log p(x) − ELBO, nats per digit")
    ax.set_yscale("log")
    ax.set_yticks(nats := [0.1, 0.2, 0.5, 1, 2], [f"{tick:g}" for tick in nats])
    ax.minorticks_off()
    ax.set_title(f"{few} test digits, and the verdict on importance sampling", fontsize=9)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)

    ranks = pv.diagnostics.calibration(*pair, kinds["test"], num_simulations=2000)
    calibrated = f"{(ranks.verdict == 'calibrated').sum()} of {len(ranks.names)} dimensions"
    print(f"\nthe guide is calibrated in {calibrated}, and {ranks.spread.mean():.2f} times too narrow on average")
    print(args.out)


if __name__ == "__main__":
    main()
