"""Missing data: half of a table is gone; what was it, and how sure can one be?

Thirty measurements of 569 tumours (scikit-learn's breast cancer data), half of them hidden at random. A VAE that starts
as probabilistic PCA is trained on what is left by the MIWAE bound, the importance-weighted bound of the observed
entries, and imputes the rest with intervals, beside the mean, iterative PCA (singular values shrunk by what is best on
some observed entries) and chained regressions. The VAE's options were chosen on other masks than these.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

import pyro_vae as pv


def iterative_pca(x: torch.Tensor, penalty: float) -> torch.Tensor:
    filled = x.nan_to_num()
    for _ in range(100):
        mean = filled.mean(0)
        left, scale, right = torch.linalg.svd(filled - mean, full_matrices=False)
        filled = torch.where(x.isnan(), mean + left * (scale - penalty).clamp(min=0) @ right, x)
    return filled


def best_penalty(x: torch.Tensor) -> float:
    held_out = ~x.isnan() & (torch.rand(x.shape) < 0.1)
    without, penalties = x.masked_fill(held_out, torch.nan), (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    return min(penalties, key=lambda it: (iterative_pca(without, it) - x)[held_out].square().mean().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("missing_data.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, num_masks, num_particles = (1, 1, 20) if args.smoke else (200, 5, 2000)

    measured = torch.from_numpy(load_breast_cancer().data).float()[:: 8 if args.smoke else 1]
    found = {"mean": [], "iterative PCA": [], "chained regressions": [], "VAE": []}
    for seed in range(300, 300 + num_masks):
        torch.manual_seed(seed)
        missing = torch.rand(measured.shape) < 0.5
        x = measured.masked_fill(missing, torch.nan)
        mean, scale = x.nanmean(0), (x - x.nanmean(0)).square().nanmean(0).sqrt()
        x, truth = (x - mean) / scale, (measured - mean) / scale
        filled, seen = x.nan_to_num(), (~x.isnan()).float()
        of_pairs = filled.T @ filled / (seen.T @ seen)
        vae = pv.Incomplete(pv.presets.ppca_vae(data_shape=(30,), latent_dim=8, data_covariance=of_pairs))
        miwae = pv.objectives.IWAE(num_particles=10, gradient="dreg")
        pv.fit(vae, x, objective=miwae, num_epochs=num_epochs, batch_size=64, learning_rate=1e-3, schedule="cosine")
        imputed = pv.impute(vae, x, num_particles=num_particles)
        chained = torch.from_numpy(IterativeImputer(tol=0.1, random_state=0).fit_transform(x.double().numpy()))
        answers = x.nan_to_num(), iterative_pca(x, best_penalty(x)), chained, imputed.mean
        for errors, answer in zip(found.values(), answers, strict=True):
            errors.append((answer - truth)[missing].square().mean().sqrt())
        inside = (imputed.lower <= truth) & (truth <= imputed.upper)
        scores = ", ".join(f"{name} {errors[-1]:.3f}" for name, errors in found.items())
        print(f"mask {seed}: RMSE {scores}; 90% intervals hold {inside[missing].double().mean():.1%}")

    errors = torch.tensor([*found.values()])
    for name, gap in zip(found, errors[-1] - errors[:-1], strict=False):  # of the same masks
        print(f"VAE - {name}: {gap.mean():+.3f}, between {gap.min():+.3f} and {gap.max():+.3f}")

    left, right = Figure(figsize=(11, 3.8), layout="constrained").subplots(1, 2, width_ratios=[1, 1.6])
    left.plot(range(4), errors, "o", color="C0", alpha=0.5)
    names = [name.replace(" r", "\nr") for name in found]
    left.set(xticks=range(4), xticklabels=names, xlim=(-0.5, 3.5), ylim=(0, None), ylabel="RMSE, standard deviations")
    left.set_title(f"hidden entries, {num_masks} times half of the table", fontsize=10)
    rows = missing[:, 0].nonzero()[:80, 0]
    rows = rows[imputed.mean[rows, 0].argsort()]
    middle, place = imputed.mean[rows, 0], torch.arange(len(rows))
    reach = torch.stack([middle - imputed.lower[rows, 0], imputed.upper[rows, 0] - middle]).clamp(min=0)
    right.errorbar(place, middle, reach, fmt="o", color="0.7", ms=3, label="imputed, with 90% interval")
    for kind, colour, at in (("inside", "C0", inside[rows, 0]), ("outside", "C3", ~inside[rows, 0])):
        right.plot(place[at], truth[rows, 0][at], "x", color=colour, ms=5, label=f"truth, {kind} ({at.sum()})")
    right.set(xlabel="tumour, ordered by what was imputed", ylabel="mean radius, standardised")
    right.legend(frameon=False, fontsize=8)
    left.figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
