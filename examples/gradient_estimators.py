"""Why VAEs are trained by the reparameterisation trick: the same tiny VAE, its gradient estimated in four ways.

One cannot back-propagate through a sampling operator. The score-function estimator goes around it: the draws are
constants, and those that turned out well are made more likely. It needs no gradient of the decoder, but it is noisy;
leaving each particle out of its own baseline (RLOO) takes much of the noise away. Written as z = m + s eps, a draw can
be back-propagated through. The noise that is then left near the posterior is that of the score of q, which is zero on
average; the "path" gradient drops it. All four have the same expectation.

In the picture, left: the ELBO of held-out digits while training by each gradient. Right: the variance of each gradient
over its squared length, before training (plain bars) and after it (hatched).
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
    """Return an untrained VAE, always the same."""
    torch.manual_seed(0)
    return pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=2, hidden=(50,), data_mean=x_train.mean)


def noise_to_signal(vae: pv.VAE, gradient: str, x: torch.Tensor, repeats: int) -> float:
    """Return the total variance of the encoder's gradient over its squared length; no weight is changed."""
    torch.manual_seed(1)
    objective = pv.objectives.ELBO(num_particles=PARTICLES, gradient=gradient)
    loss = objective(vae.model, vae.guide)
    parameters = list(vae.encoder.parameters())
    gradients = []
    for _ in range(repeats):
        found = torch.autograd.grad(loss(x), parameters)
        gradients.append(torch.cat([part.flatten() for part in found]))
    gradients = torch.stack(gradients)

    variance = gradients.var(0).sum()
    squared_length = gradients.mean(0).square().sum() - variance / repeats  # less what the noise of the mean adds
    return (variance / squared_length.clamp(min=1e-12)).item()


def main() -> None:
    args = parse_arguments()
    num_epochs, repeats = (1, 5) if args.smoke else (60, 1000)

    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]

    trained = {}
    histories = {}
    for gradient in GRADIENTS:
        trained[gradient] = tiny_vae(x_train)
        histories[gradient] = pv.fit(
            trained[gradient],
            x_train,
            objective=pv.objectives.ELBO(num_particles=PARTICLES, gradient=gradient),
            num_epochs=num_epochs,
            batch_size=64,
            learning_rate=3e-3,
            validation=x_test,
        )

    untrained = tiny_vae(x_train)
    before = {}
    after = {}
    for gradient in GRADIENTS:
        before[gradient] = noise_to_signal(untrained, gradient, x_test[:64], repeats)
        after[gradient] = noise_to_signal(trained["path"], gradient, x_test[:64], repeats)

    print(f"ELBO on held-out digits after {num_epochs} epochs, and variance over squared length of its gradient")
    print(f"for the encoder from 64 digits, {PARTICLES} particles each, {repeats} repeats:\n")
    print(f"{'':32}{'ELBO':>10}{'before training':>26}{'after training by path':>26}")
    for gradient, name in GRADIENTS.items():
        elbo = histories[gradient].epochs[-1].validation_elbo
        print(f"{name:32}{elbo:10.2f}{before[gradient]:26.4g}{after[gradient]:26.4g}")

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (gradient, name) in enumerate(GRADIENTS.items()):
        rows = histories[gradient].epochs
        left.plot([row.epoch for row in rows], [row.validation_elbo for row in rows], label=name)
        colour = f"C{place}"
        right.bar(place, before[gradient], 0.38, color=colour, edgecolor="white")
        right.bar(place + 0.4, after[gradient], 0.38, color=colour, edgecolor="white", hatch="///")
    left.set(xlabel="epoch", ylabel="ELBO, nats per digit", title="held-out digits while training")
    left.legend(frameon=False, fontsize=8)
    names = [name.replace(", ", ",\n") for name in GRADIENTS.values()]
    right.set_xticks([place + 0.2 for place in range(len(names))], names, fontsize=8)
    right.set(yscale="log", ylabel="variance / squared length")
    right.set_title("noise before (plain) and after training (hatched)")
    figure.savefig(args.out, dpi=100)
    print(f"\n{args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gradient_estimators.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
