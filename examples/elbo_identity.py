"""The ELBO falls short of log p(x) by KL(q(z|x) || p(z|x)): checked on every held-out digit, to a millionth of a nat.

Each term of a small VAE has nodes of its own: the ELBO twice, as reconstruction minus KL from the prior (Gauss-Hermite
quadrature, closed form) and as the mean of log p(x, z) - log q(z|x) (a grid for each digit); log p(x) by pv.evidence;
the KL from the posterior by a sum over the latent plane. In the picture, left: log p(x) and ELBO; their difference as
dots on bars, which are the KL by itself. Middle: how far dots and bars are apart, and the two forms of the ELBO. Right:
what averages over L draws make of either form, with two standard deviations of one draw over the root of L.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import pyro_vae as pv

TOLERANCE = 1e-6  # nats
FORMS = {"reconstruction − exact KL(q ‖ p(z))": ("low", "C0"), "log p(x, z) − log q(z|x)": ("high", "C2")}


def terms(vae: pv.VAE, x: torch.Tensor, num: int, step: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ELBO in its two forms, and KL(q(z|x) || p(z|x)), each ``[n]`` and from nodes of its own."""
    q, prior = vae.encode(x), vae.prior()
    t, w = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(num))
    z = q.mean + q.stddev * torch.cartesian_prod(t, t)[:, None]
    decomposed = (torch.cartesian_prod(w, w).prod(1) / w.sum() ** 2) @ vae.decode(z).log_prob(x)
    decomposed -= torch.distributions.kl_divergence(q, prior.expand(q.batch_shape))
    t = torch.linspace(-8.5, 8.5, num, dtype=x.dtype)
    z = q.mean + q.stddev * torch.cartesian_prod(t, t)[:, None]
    log_w = vae.decode(z).log_prob(x) + prior.log_prob(z) - q.log_prob(z)
    general = (q.log_prob(z).softmax(0) * log_w).sum(0)
    z = torch.cartesian_prod(*[torch.arange(-10, 10, step, dtype=x.dtype)] * 2)[:, None]
    log_p, log_q = vae.decode(z).log_prob(x) + prior.log_prob(z), q.log_prob(z)
    return decomposed, general, (log_q.softmax(0) * (log_q.log_softmax(0) - log_p.log_softmax(0))).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("elbo_identity.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, num, step, repeats = (2, 32, 0.25, 5) if args.smoke else (300, 96, 0.1, 100)
    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:].double()
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(100,), data_mean=x_train.mean)
    pv.fit(vae, x_train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")
    vae.double().requires_grad_(False)
    log_p, order = pv.evidence.quadrature(vae.model, vae.guide, x, tolerance=1e-9).value.sort()
    x, place = x[order], range(len(x))
    elbo, other, kl = map(torch.cat, zip(*(terms(vae, rows, num, step) for rows in x.split(20)), strict=True))
    left = {"|log p(x) − ELBO − KL|": (log_p - elbo - kl).abs(), "|one form of the ELBO − other|": (elbo - other).abs()}
    print(f"{len(x)} held-out digits: log p(x) {log_p.mean():.6f} = ELBO {elbo.mean():.6f} + KL {kl.mean():.6f} nats")
    axes = (figure := Figure(figsize=(15, 4.6), layout="constrained")).subplot_mosaic("ABC;DBC")
    axes["A"].plot(place, log_p, label="log p(x)")
    axes["A"].plot(place, elbo, "C3.", ms=3, label="ELBO")
    axes["A"].set(ylabel="nats", title="held-out digits, sorted by log p(x)")
    axes["D"].bar(place, kl.numpy(), 1, color="C1", label="KL(q(z|x) ‖ p(z|x))")
    axes["D"].plot(place, log_p - elbo, "k.", ms=3, label="log p(x) − ELBO")
    axes["D"].set(xlabel="digit", ylabel="nats", yscale="log", ylim=(0.01, 50))
    for name, deviation in left.items():
        axes["B"].plot(place, deviation.clamp(min=1e-16), "k." if "KL" in name else "C3.", ms=3, label=name)
        print(f"{name}: at most {deviation.max():.1e} nats at any digit")
    axes["B"].axhline(TOLERANCE, color="0.5", ls="--", label="tolerance")
    axes["B"].set(xlabel="digit", ylabel="nats", yscale="log", ylim=(None, 1e-3), title="what does not add up")
    draws, along = [1, 10, 100], np.linspace(0, 2.4)
    for form, (side, colour) in FORMS.items():
        losses = [pv.objectives.ELBO(num_particles=L, analytic_kl=side == "low")(vae.model, vae.guide) for L in draws]
        errors = [torch.stack([loss.bound(x) for _ in range(repeats)]) - elbo for loss in losses]
        spread = np.sqrt([each.var(0).mean() for each in errors])
        print(f"{form}: standard deviation times root L for L = {draws}: {spread * np.sqrt(draws)} nats")
        violins = axes["C"].violinplot([each.flatten() for each in errors], range(3), side=side, showextrema=False)
        for body in violins["bodies"]:
            body.set(color=colour, alpha=0.6)
        axes["C"].plot(along, np.outer(10 ** (along / -2), [2, -2]) * spread[0], color=colour, label=[form, None])
    axes["C"].set(xticks=range(3), xticklabels=draws, xlabel="L", title="mean of L draws − ELBO, nats", ylim=(-5, 5))
    for ax in axes.values():
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(args.out)
    if not torch.stack(list(left.values())).max() <= TOLERANCE:
        raise SystemExit(f"the terms do not add up to {TOLERANCE:g} nats at every digit")


if __name__ == "__main__":
    main()
