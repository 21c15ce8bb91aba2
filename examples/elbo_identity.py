"""The ELBO falls short of log p(x) by KL(q(z|x) || p(z|x)): checked on every held-out digit, to a millionth of a nat.

Each term of a small VAE is computed by quadrature with nodes of its own. The ELBO is computed in both of its forms, as
reconstruction minus the KL divergence from the prior (Gauss-Hermite quadrature, and a closed form) and as the mean of
log p(x, z) - log q(z|x) (a grid for each digit); log p(x) comes from ``pv.evidence``; and the KL divergence from the
posterior is a sum over the latent plane.

In the picture, left: log p(x) and the ELBO above, and below their difference as dots, on bars that are the KL
divergence computed by itself. Middle: how far dots and bars are apart, and the two forms of the ELBO from each other.
Right: averages over L draws in either form, with lines at two standard deviations of one draw divided by the root of L.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_vae as pv

TOLERANCE = 1e-6  # nats
NUM_DRAWS = [1, 10, 100]


def elbo_decomposed(vae: pv.VAE, x: Tensor, num_nodes: int) -> Tensor:
    """Return E_q[log p(x|z)] - KL(q(z|x) || p(z)), by Gauss-Hermite quadrature and a closed form."""
    q = vae.encode(x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    nodes = torch.from_numpy(nodes)
    weights = torch.from_numpy(weights)
    z = q.mean + q.stddev * torch.cartesian_prod(nodes, nodes)[:, None]
    products = torch.cartesian_prod(weights, weights).prod(1) / weights.sum() ** 2
    reconstruction = products @ vae.decode(z).log_prob(x)
    return reconstruction - kl_divergence(q, vae.prior().expand(q.batch_shape))


def elbo_general(vae: pv.VAE, x: Tensor, num_nodes: int) -> Tensor:
    """Return E_q[log p(x, z) - log q(z|x)], by a grid around each q(z|x)."""
    q = vae.encode(x)
    axis = torch.linspace(-8.5, 8.5, num_nodes, dtype=x.dtype)
    z = q.mean + q.stddev * torch.cartesian_prod(axis, axis)[:, None]
    log_q = q.log_prob(z)
    log_w = vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - log_q
    return (log_q.softmax(0) * log_w).sum(0)


def kl_from_posterior(vae: pv.VAE, x: Tensor, step: float) -> Tensor:
    """Return KL(q(z|x) || p(z|x)), by a grid over the latent plane on which both are normalised."""
    q = vae.encode(x)
    axis = torch.arange(-10, 10, step, dtype=x.dtype)
    z = torch.cartesian_prod(axis, axis)[:, None]
    log_q = q.log_prob(z)
    log_joint = vae.decode(z).log_prob(x) + vae.prior().log_prob(z)
    return (log_q.softmax(0) * (log_q.log_softmax(0) - log_joint.log_softmax(0))).sum(0)


def plot_averages(ax: Axes, vae: pv.VAE, x: Tensor, elbo: Tensor, repeats: int) -> None:
    """Plot the errors of averages over L draws of either form of the ELBO."""
    forms = (
        ("reconstruction − exact KL(q ‖ p(z))", True, "low", "C0"),
        ("log p(x, z) − log q(z|x)", False, "high", "C2"),
    )
    for name, analytic_kl, side, colour in forms:
        errors = []
        for num_draws in NUM_DRAWS:
            objective = pv.objectives.ELBO(num_particles=num_draws, analytic_kl=analytic_kl)
            loss = objective(vae.model, vae.guide)
            estimates = torch.stack([loss.bound(x) for _ in range(repeats)])
            errors.append(estimates - elbo)
        spread = np.sqrt([error.var(0).mean() for error in errors])
        print(f"{name}: standard deviation times root L for L = {NUM_DRAWS}: {spread * np.sqrt(NUM_DRAWS)} nats")

        samples = [error.flatten() for error in errors]
        violins = ax.violinplot(samples, range(len(NUM_DRAWS)), side=side, showextrema=False)
        for body in violins["bodies"]:
            body.set(color=colour, alpha=0.6)
        position = np.linspace(0, 2.4)  # the logarithm of L
        root = 10 ** (position / -2)
        ax.plot(position, np.outer(root, [2, -2]) * spread[0], color=colour, label=[name, None])
    ax.set(xticks=range(len(NUM_DRAWS)), xticklabels=NUM_DRAWS, xlabel="L", ylim=(-5, 5))
    ax.set_title("mean of L draws − ELBO, nats")


def main() -> None:
    args = parse_arguments()
    num_epochs, num_nodes, step, repeats = (2, 32, 0.25, 5) if args.smoke else (300, 96, 0.1, 100)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:].double()
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(100,), data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    vae.double().requires_grad_(False)

    # The terms, for the digits in the order of log p(x), twenty at a time.
    evidence = pv.evidence.quadrature(vae.model, vae.guide, x, tolerance=1e-9)
    log_p, order = evidence.value.sort()
    x = x[order]
    chunks = x.split(20)
    elbo = torch.cat([elbo_decomposed(vae, chunk, num_nodes) for chunk in chunks])
    other = torch.cat([elbo_general(vae, chunk, num_nodes) for chunk in chunks])
    kl = torch.cat([kl_from_posterior(vae, chunk, step) for chunk in chunks])
    print(f"{len(x)} held-out digits: log p(x) {log_p.mean():.6f} = ELBO {elbo.mean():.6f} + KL {kl.mean():.6f} nats")

    identity_error = (log_p - elbo - kl).abs()
    form_error = (elbo - other).abs()
    print(f"|log p(x) − ELBO − KL|: at most {identity_error.max():.1e} nats at any digit")
    print(f"|one form of the ELBO − other|: at most {form_error.max():.1e} nats at any digit")

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplot_mosaic("ABC;DBC")
    place = range(len(x))
    axes["A"].plot(place, log_p, label="log p(x)")
    axes["A"].plot(place, elbo, "C3.", ms=3, label="ELBO")
    axes["A"].set(ylabel="nats", title="held-out digits, sorted by log p(x)")

    axes["D"].bar(place, kl.numpy(), 1, color="C1", label="KL(q(z|x) ‖ p(z|x))")
    axes["D"].plot(place, log_p - elbo, "k.", ms=3, label="log p(x) − ELBO")
    axes["D"].set(xlabel="digit", ylabel="nats", yscale="log", ylim=(0.01, 50))

    axes["B"].plot(place, identity_error.clamp(min=1e-16), "k.", ms=3, label="|log p(x) − ELBO − KL|")
    axes["B"].plot(place, form_error.clamp(min=1e-16), "C3.", ms=3, label="|one form of the ELBO − other|")
    axes["B"].axhline(TOLERANCE, color="0.5", ls="--", label="tolerance")
    axes["B"].set(xlabel="digit", ylabel="nats", yscale="log", ylim=(None, 1e-3), title="what does not add up")

    plot_averages(axes["C"], vae, x, elbo, repeats)
    for ax in axes.values():
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(args.out)

    if not torch.cat([identity_error, form_error]).max() <= TOLERANCE:  # also if it is NaN
        raise SystemExit(f"the terms do not add up to {TOLERANCE:g} nats at every digit")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elbo_identity.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
