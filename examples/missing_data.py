"""Missing data: half of a table is gone; what was it, and how sure can one be?

The table has thirty measurements of 569 tumours (scikit-learn's breast cancer data), and half of them are hidden at
random. A VAE that starts as probabilistic PCA is trained on what is left by the MIWAE bound, the importance-weighted
bound of the observed entries, and imputes the rest with intervals. Beside it are the mean, iterative PCA, and chained
regressions. Iterative PCA shrinks the singular values by the amount that is best on some observed entries. The VAE's
options were chosen on other masks than these.

In the picture, left: the error of each method on the hidden entries, a dot for each mask. Right: imputed values of one
measurement with 90% intervals, and the truth, coloured by whether it is inside.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from torch import Tensor

import pyro_vae as pv

METHODS = ("mean", "iterative PCA", "chained regressions", "VAE")


def rmse(answer: Tensor, truth: Tensor, where: Tensor) -> float:
    return (answer - truth)[where].square().mean().sqrt().item()


def iterative_pca(x: Tensor, penalty: float) -> Tensor:
    """Return the table with its missing entries filled in by a PCA with singular values shrunk by a penalty."""
    filled = x.nan_to_num()
    for _ in range(100):
        mean = filled.mean(0)
        left, scale, right = torch.linalg.svd(filled - mean, full_matrices=False)
        fitted = mean + left * (scale - penalty).clamp(min=0) @ right
        filled = torch.where(x.isnan(), fitted, x)
    return filled


def best_penalty(x: Tensor) -> float:
    """Return the penalty with the smallest error on a tenth of the observed entries, which are hidden for that."""
    held_out = ~x.isnan() & (torch.rand(x.shape) < 0.1)
    without = x.masked_fill(held_out, torch.nan)
    errors = {}
    for penalty in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
        errors[penalty] = rmse(iterative_pca(without, penalty), x, held_out)
    return min(errors, key=errors.get)


def trained(x: Tensor, num_epochs: int) -> pv.Incomplete:
    """Return a VAE that was trained on a table with missing entries."""
    filled = x.nan_to_num()
    seen = (~x.isnan()).float()
    covariance = filled.T @ filled / (seen.T @ seen)  # of each pair of columns, where both are observed
    vae = pv.Incomplete(pv.presets.ppca_vae(data_shape=(30,), latent_dim=8, data_covariance=covariance))
    miwae = pv.objectives.IWAE(num_particles=10, gradient="dreg")
    pv.fit(vae, x, objective=miwae, num_epochs=num_epochs, batch_size=64, learning_rate=1e-3, schedule="cosine")
    return vae


def plot_errors(ax: Axes, errors: Tensor) -> None:
    """Plot the errors ``[method, mask]``."""
    num_masks = errors.shape[1]
    ax.plot(range(len(METHODS)), errors, "o", color="C0", alpha=0.5)
    names = [name.replace(" r", "\nr") for name in METHODS]
    ax.set(xticks=range(len(METHODS)), xticklabels=names, xlim=(-0.5, 3.5), ylim=(0, None))
    ax.set_ylabel("RMSE, standard deviations")
    ax.set_title(f"hidden entries, {num_masks} times half of the table", fontsize=10)


def plot_intervals(ax: Axes, imputed: pv.Imputation, truth: Tensor, missing: Tensor) -> None:
    """Plot imputed values of the first measurement with their intervals, and the truth."""
    rows = missing[:, 0].nonzero()[:80, 0]
    rows = rows[imputed.mean[rows, 0].argsort()]
    mean = imputed.mean[rows, 0]
    lower = imputed.lower[rows, 0]
    upper = imputed.upper[rows, 0]
    truth = truth[rows, 0]

    place = torch.arange(len(rows))
    reach = torch.stack([mean - lower, upper - mean]).clamp(min=0)
    ax.errorbar(place, mean, reach, fmt="o", color="0.7", ms=3, label="imputed, with 90% interval")
    inside = (lower <= truth) & (truth <= upper)
    for kind, colour, at in (("inside", "C0", inside), ("outside", "C3", ~inside)):
        ax.plot(place[at], truth[at], "x", color=colour, ms=5, label=f"truth, {kind} ({at.sum()})")
    ax.set(xlabel="tumour, ordered by what was imputed", ylabel="mean radius, standardised")
    ax.legend(frameon=False, fontsize=8)


def main() -> None:
    args = parse_arguments()
    num_epochs, num_masks, num_particles = (1, 1, 20) if args.smoke else (200, 5, 2000)

    table = torch.from_numpy(load_breast_cancer().data).float()
    if args.smoke:
        table = table[::8]
    errors = {name: [] for name in METHODS}
    for seed in range(300, 300 + num_masks):
        # Hide half of the entries, and standardise by what is left.
        torch.manual_seed(seed)
        missing = torch.rand(table.shape) < 0.5
        observed = table.masked_fill(missing, torch.nan)
        mean = observed.nanmean(0)
        scale = (observed - mean).square().nanmean(0).sqrt()
        x = (observed - mean) / scale
        truth = (table - mean) / scale

        # Four answers; the first is zero, which is the mean of the standardised columns.
        vae = trained(x, num_epochs)
        imputed = pv.impute(vae, x, num_particles=num_particles)
        chained = IterativeImputer(tol=0.1, random_state=0).fit_transform(x.double().numpy())
        errors["mean"].append(rmse(x.nan_to_num(), truth, missing))
        errors["iterative PCA"].append(rmse(iterative_pca(x, best_penalty(x)), truth, missing))
        errors["chained regressions"].append(rmse(torch.from_numpy(chained), truth, missing))
        errors["VAE"].append(rmse(imputed.mean, truth, missing))

        inside = (imputed.lower <= truth) & (truth <= imputed.upper)
        scores = ", ".join(f"{name} {found[-1]:.3f}" for name, found in errors.items())
        print(f"mask {seed}: RMSE {scores}; 90% intervals hold {inside[missing].double().mean():.1%}")

    # Differences between methods, mask by mask.
    errors = torch.tensor([errors[name] for name in METHODS])
    for place, name in enumerate(METHODS[:-1]):
        gap = errors[-1] - errors[place]
        print(f"VAE - {name}: {gap.mean():+.3f}, between {gap.min():+.3f} and {gap.max():+.3f}")

    left, right = Figure(figsize=(11, 3.8), layout="constrained").subplots(1, 2, width_ratios=[1, 1.6])
    plot_errors(left, errors)
    plot_intervals(right, imputed, truth, missing)  # of the last mask
    left.figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("missing_data.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
