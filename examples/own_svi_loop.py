"""Our pair in your own loop: stock ``pyro.infer.SVI``, ``Trace_ELBO`` and ``pyro.optim.Adam``, nothing else of ours.

The model and the guide are ordinary Pyro functions, so everything that Pyro can do with a model works on them:
here the posterior predictive distribution of a few held-out digits, in Pyro's two steps.
"""

import argparse

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam

import pyro_vae as pv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-epochs", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    num_epochs = 2 if args.smoke else args.num_epochs

    pyro.set_rng_seed(0)
    digits = pv.data.load("digits")
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:]

    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=8, data_mean=x_train.mean)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 3e-3}), loss=Trace_ELBO())
    for epoch in range(1, num_epochs + 1):
        loss = 0.0
        for batch in torch.randperm(len(x_train)).split(64):
            loss += svi.step(x_train[batch])
        if epoch % 10 == 0 or epoch == num_epochs:
            train_elbo = -loss / len(x_train)
            test_elbo = -svi.evaluate_loss(x_test) / len(x_test)
            print(f"epoch {epoch:3}   ELBO per image: training {train_elbo:7.2f}   test {test_elbo:7.2f}")

    # Predictive(model, guide=guide)(x) would hand the data back as "x"; so first z, then x given z.
    z = Predictive(vae.guide, num_samples=100)(x_test[:5])["z"]
    x = Predictive(vae.model, posterior_samples={"z": z})(None, 5)["x"]
    agreement = (x == x_test[:5]).float().mean((0, 2, 3))
    shares = " ".join(f"{share:.2f}" for share in agreement)
    print(f"share of pixels that the posterior predictive gets right: {shares}")


if __name__ == "__main__":
    main()
