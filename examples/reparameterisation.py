"""Two ways to differentiate an expectation, and their noise: through the draws z = m + s eps, or by the score of q.

The ELBO of one held-out digit, under a trained decoder, is differentiated with respect to the first coordinate of m,
the mean of q, which is moved one standard deviation away from where the encoder has it.

In the picture, each histogram holds 3,000 estimates from L draws each, and the line is the exact gradient, by a sum
over a grid. Both estimators are right on average, but the score function needs an axis so wide that the whole axis of
the other fits into the grey band. Right: the variance falls as 1/L (dotted), as it does for means of independent draws,
from heights that are factors apart. Leaving each draw out of its own baseline removes most of the noise of the score
function, the more so the more draws there are; the path alone is best.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import plate, sample
from pyro.distributions import Normal
from torch import Tensor

import pyro_vae as pv

GRADIENTS = {"reinforce": "score function", "total": "through z", "rloo": "score, leave-one-out", "path": "path only"}
NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # of draws per estimate
SHOWN = (1, 8, 64)  # those with a histogram


def estimates(vae: pv.VAE, x: Tensor, m: Tensor, s: Tensor, gradient: str, num_draws: int) -> Tensor:
    """Return estimates of dELBO/dm_1, one from each row of x; all rows are the same digit, with draws of their own."""
    m = m.expand(len(x), 2).clone().requires_grad_()

    def guide(x: Tensor) -> None:
        with plate("data", len(x)):
            sample("z", Normal(m, s).to_event(1))

    objective = pv.objectives.ELBO(num_particles=num_draws, gradient=gradient)
    loss = objective.differentiable_loss(vae.model, guide, x)
    (gradient_of_loss,) = torch.autograd.grad(loss, m)
    return -gradient_of_loss[:, 0]


def exact_gradient(vae: pv.VAE, x: Tensor, m: Tensor, s: Tensor) -> float:
    """Return dELBO/dm_1, with the expectation over eps as a sum over a grid."""
    m = m.clone().requires_grad_()
    axis = torch.linspace(-6, 6, 121)
    eps = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(-eps.square().sum(1) / 2, 0)
    z = m + s * eps
    q = Normal(m, s).to_event(1)
    elbo = weights @ (vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - q.log_prob(z))
    (gradient,) = torch.autograd.grad(elbo, m)
    return gradient[0, 0].item()


def plot_histograms(axes: dict[str, Axes], found: dict[str, dict[int, Tensor]], truth: float) -> None:
    """Plot estimates by the score function and through z, each on an axis of its own width."""
    for gradient, colour in (("reinforce", "C0"), ("total", "C1")):
        reach = 4 * found[gradient][1].std().item()
        ends = [truth - reach, truth + reach]
        for num_draws in SHOWN:
            ax = axes[f"{num_draws}, {gradient}"]
            ax.hist(found[gradient][num_draws], 81, range=ends, color=colour)
            ax.axvline(truth, color="0.1", linewidth=1)
            ax.set(title=f"{GRADIENTS[gradient]}, L = {num_draws}", yticks=[], xlim=ends)
            if gradient == "total":  # the whole of this axis, as a band in the other histogram
                axes[f"{num_draws}, reinforce"].axvspan(*ends, color="0.7", zorder=0)
        axes[f"64, {gradient}"].set_xlabel("dELBO / d$m_1$, nats")


def plot_variances(ax: Axes, found: dict[str, dict[int, Tensor]]) -> None:
    """Plot the variance of every estimator against L, and print it."""
    for place, (gradient, by_number) in enumerate(found.items()):
        numbers = torch.tensor(list(by_number))
        variance = torch.stack([values.var() for values in by_number.values()])
        height = (numbers * variance).mean()
        ax.loglog(numbers, variance, "o", color=f"C{place}", label=GRADIENTS[gradient])
        ax.loglog(numbers, height / numbers, ":", color=f"C{place}")

        last = by_number[64]
        error = last.std() / len(last) ** 0.5
        print(f"{GRADIENTS[gradient]:20} {last.mean():8.4f} ± {error:.4f} at L = 64, {height:10.4g}")
    ax.set(xlabel="L, draws per estimate", xticks=NUMBERS, xticklabels=NUMBERS, title="variance, nats²")
    ax.legend(frameon=False, fontsize=8)


def main() -> None:
    args = parse_arguments()
    num_epochs, repeats = (1, 50) if args.smoke else (50, 3000)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:1]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3)

    q = vae.encode(x)
    s = q.stddev.detach()
    m = q.mean.detach() + s * torch.tensor([1.0, 0.0])
    same_digit = x.expand(repeats, 8, 8)
    found = {}
    for gradient in GRADIENTS:
        numbers = NUMBERS[1:] if gradient == "rloo" else NUMBERS  # leaving one out takes two draws
        found[gradient] = {number: estimates(vae, same_digit, m, s, gradient, number) for number in numbers}
    truth = exact_gradient(vae, x, m, s)

    figure = Figure(figsize=(11, 5), layout="constrained")
    layout = [[f"{number}, reinforce", f"{number}, total", "variance"] for number in SHOWN]
    axes = figure.subplot_mosaic(layout)
    plot_histograms(axes, found, truth)
    print(f"dELBO/dm_1 is {truth:.4f} by a grid; of {repeats} estimates the mean, and L times the variance:\n")
    plot_variances(axes["variance"], found)
    figure.savefig(args.out, dpi=100)
    print(f"\n{args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reparameterisation.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
