"""Your own Pyro pair with our objective and our evidence: nothing here is a ``pv.VAE``.

The model is a factor analysis with a nonlinear twist, written by hand: a network with residual connections, and a
Student-t likelihood that shrugs off outliers. The guide is an amortised Gaussian. A pair needs only one data plate at
dim -1 with the latent sites inside it. We train it on the importance-weighted bound and estimate log p(x) of held-out
data, with an error bar per datapoint, and see which of them the model finds surprising.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_wine
from torch import nn

import pyro_vae as pv

LATENT = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    num_epochs, num_particles = (3, 20) if args.smoke else (300, 5000)

    # 178 wines with 13 chemical measurements, standardised by the 140 that are trained on.
    torch.manual_seed(0)
    x = torch.from_numpy(load_wine().data).float()
    x = x[torch.randperm(len(x))]
    x = (x - x[:140].mean(0)) / x[:140].std(0)
    x_train, x_test = x[:140], x[140:]

    encoder = nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 32), nn.Tanh(), nn.Linear(32, 13))
    linear = nn.Linear(LATENT, 13)
    log_scale = nn.ParameterDict({"x": nn.Parameter(torch.zeros(13))})

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        pyro.module("linear", linear)
        pyro.module("log_scale", log_scale)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            loc = linear(z) + decoder(z)
            scale = log_scale["x"].exp()
            pyro.sample("x", dist.StudentT(5.0, loc, scale).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_width = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_width.exp()).to_event(1))

    history = pv.fit(
        (model, guide),
        x_train,
        objective=pv.objectives.IWAE(num_particles=8),
        num_epochs=num_epochs,
        batch_size=35,
        learning_rate=3e-3,
        schedule="cosine",
    )
    print(f"importance-weighted bound on the training wines: {history.epochs[-1].train_bound:.2f} nats per wine")

    evidence = pv.evidence.importance(model, guide, x_test, num_particles=num_particles)
    print(
        f"log p(x) of {len(x_test)} held-out wines: {evidence.mean:.2f} nats per wine, "
        f"± {evidence.monte_carlo_error:.2f} (Monte-Carlo) ± {evidence.test_set_error:.2f} (which wines)"
    )
    most_surprising = evidence.value.argsort()[:3].tolist()
    for wine in most_surprising:
        value = evidence.value[wine]
        error = evidence.stderr[wine]
        ess = evidence.ess[wine]
        print(f"most surprising: wine {wine:2}, log p(x) = {value:7.2f} ± {error:.2f}, effective draws {ess:.0f}")


if __name__ == "__main__":
    main()
