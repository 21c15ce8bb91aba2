"""Why VAEs are trained by the reparameterisation trick: the same tiny VAE, its gradient estimated in four ways.

One cannot back-propagate through a sampling operator. The score-function estimator goes around it: the draws are
constants, and those that turned out well are made more likely. It needs no gradient of the decoder, but it is noisy;
leaving each particle out of its own baseline (RLOO) takes much of the noise away. Written as z = m + s eps, a draw can
be back-propagated through. What noise is then left near the posterior is that of the score of q, whose expectation is
zero: "path" drops it. All four have the same expectation.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

GRADIENTS = {
    "reinforce": "score function",
    "rloo": "score function, leave-one-out",
    "total": "reparameterisation",
    "path": "reparameterisation, path only",
}
PARTICLES = 4


def tiny_vae(x_train: pv.data.Pixels) -> pv.VAE:
    torch.manual_seed(0)
    return pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(50,), data_mean=x_train.mean)


def noise_to_signal(vae: pv.VAE, gradient: str, x: torch.Tensor, repeats: int) -> float:
    """Total variance of the encoder's gradient over its squared length, at weights that stay as they are."""
    torch.manual_seed(1)
    loss = pv.objectives.ELBO(num_particles=PARTICLES, gradient=gradient)(vae.model, vae.guide)
    parameters = list(vae.encoder.parameters())
    found = [torch.autograd.grad(loss(x), parameters) for _ in range(repeats)]
    gradients = torch.stack([torch.cat([part.flatten() for part in each]) for each in found])
    variance = gradients.var(0).sum()
    return (variance / (gradients.mean(0).square().sum() - variance / repeats).clamp(min=1e-12)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gradient_estimators.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]
    num_epochs, repeats = (1, 5) if args.smoke else (60, 1000)

    trained, histories = {}, {}
    for gradient in GRADIENTS:
        trained[gradient] = tiny_vae(x_train)
        objective = pv.objectives.ELBO(num_particles=PARTICLES, gradient=gradient)
        run = {"num_epochs": num_epochs, "batch_size": 64, "learning_rate": 3e-3, "validation": x_test}
        histories[gradient] = pv.fit(trained[gradient], x_train, objective=objective, **run)
    moments = {"before training": tiny_vae(x_train), "after training by path": trained["path"]}
    noise = {when: [noise_to_signal(vae, g, x_test[:64], repeats) for g in GRADIENTS] for when, vae in moments.items()}

    print(f"ELBO on held-out digits after {num_epochs} epochs, and variance over squared length of its gradient")
    print(f"for the encoder from 64 digits, {PARTICLES} particles each, {repeats} repeats:\n")
    print(f"{'':32}{'ELBO':>10}" + "".join(f"{when:>26}" for when in moments))
    for place, (gradient, name) in enumerate(GRADIENTS.items()):
        row = f"{name:32}{histories[gradient].epochs[-1].validation_elbo:10.2f}"
        print(row + "".join(f"{values[place]:26.4g}" for values in noise.values()))

    left, right = (figure := Figure(figsize=(12, 4), layout="constrained")).subplots(1, 2)
    for place, (gradient, name) in enumerate(GRADIENTS.items()):
        rows = histories[gradient].epochs
        left.plot([row.epoch for row in rows], [row.validation_elbo for row in rows], label=name)
        for offset, (values, hatch) in enumerate(zip(noise.values(), ("", "///"), strict=True)):
            right.bar(place + 0.4 * offset, values[place], 0.38, color=f"C{place}", hatch=hatch, edgecolor="white")
    left.set(xlabel="epoch", ylabel="ELBO, nats per digit", title="held-out digits while training")
    left.legend(frameon=False, fontsize=8)
    names = [name.replace(", ", ",\n") for name in GRADIENTS.values()]
    right.set_xticks([place + 0.2 for place in range(len(names))], names, fontsize=8)
    right.set(
        yscale="log", ylabel="variance / squared length", title="noise before (plain) and after training (hatched)"
    )
    figure.savefig(args.out, dpi=100)
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
