"""Two ways to differentiate an expectation, and their noise: through the draws z = m + s eps, or by the score of q.

What is differentiated is the ELBO of one held-out digit, under a trained decoder, by the first coordinate of m, the
mean of q, which is moved one standard deviation from where the encoder has it. Each histogram holds 3,000 estimates
from L draws each, and the line is the exact gradient, by a sum over a grid. Both are right on average; but the score
function needs an axis so wide that all of the other's fits into the grey band. On the right, the variance against L
falls as 1/L (dotted), as it does for means of independent draws, from heights that are factors apart. Leaving each draw
out of its own baseline mends most of the score function, the more so the more draws there are; the path alone is best.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import plate, sample
from pyro.distributions import Normal
from torch import Tensor

import pyro_vae as pv

NAMES = {"reinforce": "score function", "total": "through z", "rloo": "score, leave-one-out", "path": "path only"}
NUMBERS, SHOWN = (1, 2, 4, 8, 16, 32, 64), (1, 8, 64)


def estimates(vae: pv.VAE, x: Tensor, m: Tensor, s: Tensor, gradient: str, num: int) -> Tensor:
    """dELBO/dm_1 for each row of x, which are all the same, by draws of its own."""
    m = m.expand(len(x), 2).clone().requires_grad_()

    def guide(x: Tensor) -> None:
        with plate("data", len(x)):
            sample("z", Normal(m, s).to_event(1))

    objective = pv.objectives.ELBO(num_particles=num, gradient=gradient)
    return -torch.autograd.grad(objective.differentiable_loss(vae.model, guide, x), m)[0][:, 0]


def exact(vae: pv.VAE, x: Tensor, m: Tensor, s: Tensor) -> float:
    m, axis = m.clone().requires_grad_(), torch.linspace(-6, 6, 121)
    z = m + s * (eps := torch.cartesian_prod(axis, axis))
    log_w = vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - Normal(m, s).to_event(1).log_prob(z)
    return torch.autograd.grad(torch.softmax(-eps.square().sum(1) / 2, 0) @ log_w, m)[0][0, 0].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reparameterisation.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, repeats = (1, 50) if args.smoke else (50, 3000)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:1].expand(repeats, 8, 8)
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3)
    q = vae.encode(x[:1])
    m, s = (q.mean + q.stddev * torch.tensor([1.0, 0.0])).detach(), q.stddev.detach()
    found = {g: {n: estimates(vae, x, m, s, g, n) for n in NUMBERS[g == "rloo" :]} for g in NAMES}
    truth = exact(vae, x[:1], m, s)

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplot_mosaic([[f"{n}, {g}" for g in ("reinforce", "total")] + ["variance"] for n in SHOWN])
    for place, gradient in enumerate(("reinforce", "total")):
        ends = [truth + side * 4 * found[gradient][1].std().item() for side in (-1, 1)]
        for n in SHOWN:
            ax = axes[f"{n}, {gradient}"]
            ax.hist(found[gradient][n], 81, range=ends, color=f"C{place}")
            ax.axvline(truth, color="0.1", linewidth=1)
            ax.set(title=f"{NAMES[gradient]}, L = {n}", yticks=[], xlim=ends, xlabel="dELBO / d$m_1$, nats" * (n == 64))
            axes[f"{n}, reinforce"].axvspan(*ends, color="0.7" if place else "none", zorder=0)

    print(f"dELBO/dm_1 is {truth:.4f} by a grid; of {repeats} estimates the mean, and L times the variance:\n")
    for place, (gradient, by_number) in enumerate(found.items()):
        numbers, variance = torch.tensor(list(by_number)), torch.stack([found.var() for found in by_number.values()])
        last, height = by_number[SHOWN[-1]], (numbers * variance).mean()
        print(f"{NAMES[gradient]:20} {last.mean():8.4f} ± {last.std() / repeats**0.5:.4f} at L = 64, {height:10.4g}")
        axes["variance"].loglog(numbers, variance, "o", color=f"C{place}", label=NAMES[gradient])
        axes["variance"].loglog(numbers, height / numbers, ":", color=f"C{place}")
    axes["variance"].set(xlabel="L, draws per estimate", xticks=NUMBERS, xticklabels=NUMBERS, title="variance, nats²")
    axes["variance"].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
