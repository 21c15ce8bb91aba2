"""Export VAEs to ArviZ, 0.23 or 1.x: leave-one-out cross-validation, weighted draws, and chains with their R-hat.

VAEs of scikit-learn's digits with 2, 4 and 8 latent dimensions are exported and compared by ``az.compare``. Each digit
has latents of its own, so leave-one-out has to use the log-likelihood called ``marginal``, which is log p(x).
Reweighting log p(x | z) instead is a harmonic mean with infinite variance.

In the picture, left: log p(x) of each VAE, leave-one-out from ``marginal``, which agrees with it, and leave-one-out
from log p(x | z), which is too high. Right: the latents of one digit, as draws from the guide with areas proportional
to their importance weights, over draws from Hamiltonian chains (grey).
"""

import argparse
import warnings
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import pyro_vae as pv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.x when it is imported
    import arviz as az


def leave_one_out(data: object, site: str, num_digits: int) -> tuple[float, float]:
    """Return the leave-one-out log predictive density per digit, and its standard error."""
    loo = az.loo(data, var_name=site)
    if hasattr(loo, "elpd"):  # ArviZ 1.x
        return loo.elpd / num_digits, loo.se / num_digits
    return loo.elpd_loo / num_digits, loo.se / num_digits


def plot_scores(ax: Axes, scores: dict[str, list[tuple[float, float]]], names: list[str]) -> None:
    """Plot each score of each VAE with its standard error."""
    for place, (label, found) in enumerate(scores.items()):
        values = [value for value, _ in found]
        errors = [error for _, error in found]
        positions = [vae + 0.12 * (place - 1) for vae in range(len(names))]
        ax.errorbar(positions, values, errors, fmt="os^"[place], capsize=3, label=label)
    ax.set(xticks=range(len(names)), xticklabels=names, ylabel="nats per held-out digit")
    ax.legend(frameon=False)


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")  # ArviZ warns, rightly, about the k-hat of the harmonic mean
    num_epochs, num_digits, num_draws, latent_dims = 150, 360, 1000, (2, 4, 8)
    if args.smoke:
        num_epochs, num_digits, num_draws, latent_dims = 1, 10, 100, (2, 3)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:num_digits]

    # Train the VAEs, export them, and score them on held-out digits in three ways.
    vaes = {}
    exports = {}
    scores = {"log p(x)": [], "loo of marginal": [], "loo of x given z": []}
    for latent_dim in latent_dims:
        torch.manual_seed(0)
        vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=latent_dim, data_mean=x_train.mean)
        pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

        weighted = pv.to_arviz(vae, x_test, num_draws=num_draws)
        evidence = pv.evidence.estimate(vae.model, vae.guide, x_test)
        resampled = pv.to_arviz(vae, x_test, num_draws=num_draws, resampled=True)  # draws of equal weight
        scores["log p(x)"].append((evidence.mean, evidence.test_set_error))
        scores["loo of marginal"].append(leave_one_out(weighted, "marginal", len(x_test)))
        scores["loo of x given z"].append(leave_one_out(resampled, "x", len(x_test)))

        name = f"{latent_dim} latents"
        vaes[name] = vae
        exports[name] = weighted
        latest = [f"{label} {found[-1][0]:.3f} ± {found[-1][1]:.3f}" for label, found in scores.items()]
        print(name, ", ".join(latest))
    print(az.compare(exports, var_name="marginal"))

    # Choose the digit with the fewest effective draws under the smallest VAE, and run Hamiltonian chains for it.
    vae = vaes["2 latents"]
    weighted = exports["2 latents"]
    weights = torch.from_numpy(weighted["sample_stats"]["log_w"].values[0]).softmax(0)
    effective_draws = 1 / weights.square().sum(0)
    digit = int(effective_draws.argmin())
    x = x_test[digit : digit + 1]
    chains = pv.refine(vae.model, vae.guide, x, method="hmc", num_draws=4 * num_draws)
    summary = az.summary(pv.to_arviz(vae, x, draws=chains, num_draws=10), var_names=["z"])
    print(summary)

    left, right = Figure(figsize=(10, 3.8), layout="constrained").subplots(1, 2)
    plot_scores(left, scores, list(vaes))

    from_chains = chains.z["z"][::8, 0]
    from_guide = weighted["posterior"]["z"].values[0, :, digit]
    r_hat = summary["r_hat"].astype(float).max()
    right.scatter(*from_chains.T, s=6, color="0.7", label=f"Hamiltonian chains, R-hat {r_hat:.2f}")
    right.scatter(*from_guide.T, s=3 + 2000 * weights[:, digit], alpha=0.4, label="guide, area by weight")
    right.set(xlabel="z1", ylabel="z2", title="the digit with the fewest effective draws")
    legend = right.legend(frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([20])
    left.figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("arviz_export.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
