"""A VAE in ArviZ, 0.23 or 1.x: leave-one-out that means log p(x), draws with weights, and chains with their R-hat.

VAEs of scikit-learn's digits with 2, 4 and 8 latent dimensions are exported and compared by ``az.compare``. What
leave-one-out is to be asked for is the log-likelihood called ``marginal``, log p(x): of a digit only its own z is
known, so reweighting log p(x | z) is a harmonic mean of infinite variance, whose answer stands beside. On the
right, one digit's draws from the guide, the larger the more they weigh, and draws of Hamiltonian chains.
"""

import argparse
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # 0.23 announces 1.x
    import arviz as az


def elpd(data: object, name: str) -> tuple[float, float]:
    """Leave-one-out log predictive density of all digits, and its standard error."""
    found = az.loo(data, var_name=name)
    new = hasattr(found, "elpd")
    return (found.elpd, found.se) if new else (found.elpd_loo, found.se)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("arviz_export.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # ArviZ warns of the harmonic mean's k-hat, as it should
    num_epochs, num_digits, num_draws, sizes = (1, 10, 100, (2, 3)) if args.smoke else (150, 360, 1000, (2, 4, 8))

    digits = pv.data.load("digits")
    train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:num_digits]
    vaes, exported, rows = {}, {}, {"log p(x)": [], "loo of marginal": [], "loo of x given z": []}
    for latent_dim in sizes:
        torch.manual_seed(0)
        name = f"{latent_dim} latents"
        vae = vaes[name] = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=latent_dim, data_mean=train.mean)
        pv.fit(vae, train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
        exported[name] = data = pv.to_arviz(vae, x, num_draws=num_draws)
        evidence = pv.evidence.estimate(vae.model, vae.guide, x)
        rows["log p(x)"].append((evidence.mean, evidence.test_set_error))
        equal = pv.to_arviz(vae, x, num_draws=num_draws, resampled=True)
        for row, draws, site in (("loo of marginal", data, "marginal"), ("loo of x given z", equal, "x")):
            rows[row].append(tuple(number / len(x) for number in elpd(draws, site)))
        print(name, ", ".join(f"{row} {found[-1][0]:.3f} ± {found[-1][1]:.3f}" for row, found in rows.items()))
    print(az.compare(exported, var_name="marginal"))

    left, right = Figure(figsize=(10, 3.8), layout="constrained").subplots(1, 2)
    for place, (row, found) in enumerate(rows.items()):
        value, error = zip(*found, strict=True)
        where = [start + 0.12 * (place - 1) for start in range(len(sizes))]
        left.errorbar(where, value, error, fmt="os^"[place], capsize=3, label=row)
    left.set(xticks=range(len(sizes)), xticklabels=[*vaes], ylabel="nats per held-out digit")
    left.legend(frameon=False)

    vae, data = vaes["2 latents"], exported["2 latents"]
    weights = torch.from_numpy(data["sample_stats"]["log_w"].values[0]).softmax(0)
    digit = int((1 / weights.square().sum(0)).argmin())  # the one whose draws are worth least
    draws = data["posterior"]["z"].values[0, :, digit]
    chains = pv.refine(vae.model, vae.guide, x[digit : digit + 1], method="hmc", num_draws=4 * num_draws)
    table = az.summary(pv.to_arviz(vae, x[digit : digit + 1], draws=chains, num_draws=10), var_names=["z"])
    print(table)
    z, r_hat = chains.z["z"][::8, 0], table["r_hat"].astype(float).max()
    right.scatter(*z.T, s=6, color="0.7", label=f"Hamiltonian chains, R-hat {r_hat:.2f}")
    right.scatter(*draws.T, s=3 + 2000 * weights[:, digit], alpha=0.4, label="guide, area by weight")
    right.set(xlabel="z1", ylabel="z2", title="the digit with the fewest effective draws")
    for handle in right.legend(frameon=False, fontsize=8).legend_handles:
        handle.set_sizes([20])
    left.figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
