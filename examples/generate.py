"""New digits from a VAE: where to draw z from, whether the draws are copies, and what lies between two digits.

Ten latent dimensions learn scikit-learn's digits, black or white. The upper row has means E[x | z] for z from three
places: the prior; the aggregate posterior, which is q(z | x) of a random training digit; and 20 Gaussians fitted to
draws of the latter (Ghosh et al., 2020, https://arxiv.org/abs/1903.12436). Over them stands how far draws of x are from
held-out digits, in energy distance (training digits: about zero). Below, draws of x stand over the training digits
nearest to them, with the distance: a copy would have 0, and usual is the mean of held-out digits. The last picture goes
in straight lines from one held-out digit to another. Great circles would keep the length of z, but leave the places
where the data are: the density halfway is lower there.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import pyro_vae as pv


def fitted(z: Tensor, components: int) -> MixtureSameFamily:
    """A mixture of Gaussians fitted to latents ``[n, latent]``."""
    found = GaussianMixture(components, random_state=0).fit(z.double().numpy())
    parts = (torch.from_numpy(part).float() for part in (found.weights_, found.means_, found.covariances_))
    return MixtureSameFamily(Categorical(next(parts)), MultivariateNormal(*parts))


def told(values: list[Tensor], places: int) -> str:
    """Their mean and its standard error."""
    return f"{torch.stack(values).mean():.{places}f} ± {torch.stack(values).std() / len(values) ** 0.5:.{places}f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("generate.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    num_epochs, repeats, draws = (1, 2, 1) if args.smoke else (150, 20, 10)
    digits = pv.data.load("digits")
    train, test = (pv.data.Pixels(x, "threshold", max_value=16)[:] for x in (digits.x_train, digits.x_test))
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=10, data_mean=train.mean(0))
    with torch.enable_grad():
        pv.fit(vae, train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

    aggregate = MixtureSameFamily(Categorical(torch.ones(len(train))), vae.encode(train))
    mixture = fitted(aggregate.sample((draws * len(train),)), components=20)
    nearest, energy = pv.diagnostics.nearest_neighbours, pv.diagnostics.energy_distance
    usual = nearest(test, train).distance.mean()
    print(f"From a held-out digit it is {usual:.3f} to the nearest of {len(train)} training digits. In % of that: from")
    print("draws of x to the nearest training digit, and from held-out digits to the nearest of as many draws.\n")
    print(f"{'z from':20}{'draws to train':>18}{'test to draws':>18}{'energy distance':>20}{'ELBO, test':>14}")
    parts = train[torch.randperm(len(train))].chunk(4)
    print(f"{'(training digits)':20}{0:18}{100:18}{told([energy(part, test) for part in parts], 4):>20}")
    elbo, z = pv.evidence.elbo(vae.model, vae.guide, test, num_particles=100).mean, vae.encode(test).sample((draws,))

    above, below = (figure := Figure(figsize=(11, 7), layout="constrained")).subfigures(2, 1, height_ratios=[2, 3])
    left, right = below.subfigures(1, 2)
    places = {"the prior": vae.prior(), "the aggregate": aggregate, "20 Gaussians": mixture}
    for (name, place), ax, under in zip(places.items(), above.subplots(1, 3), left.subplots(3), strict=True):
        sets = [vae.decode(place.sample((len(train),))).sample() for _ in range(repeats)]
        copied = told([100 * nearest(x, train).distance.mean() / usual for x in sets], 1)
        covered = told([100 * nearest(test, x).distance.mean() / usual for x in sets], 1)
        apart = told([energy(x, test) for x in sets], 4)
        found = elbo + (place.log_prob(z) - vae.prior().log_prob(z)).mean()  # with this place as the prior
        print(f"{name:20}{copied:>18}{covered:>18}{apart:>20}{found:14.2f}")
        pv.plot.images(vae.decode(place.sample((48,))).mean, ax, columns=8, title=f"{name}: energy distance {apart}")
        near, title = nearest(x := sets[0][:12], train), f"draws, z from {name}: {copied}% of the usual distance"
        pv.plot.neighbours(x, train[near.place], near.distance, under, title=title)
    start, end = vae.encode(test).mean.chunk(2)
    paths = torch.lerp(start[:8, None], end[:8, None], torch.linspace(0, 1, 9)[:, None])
    title = "held-out digits, and E[x | z] on straight lines between them"
    pv.plot.interpolations(test[:8], vae.decode(paths).mean, test[len(start) :][:8], right.subplots(), title=title)
    middle = torch.nn.functional.normalize(start + end) * (start.norm(dim=1) + end.norm(dim=1))[:, None] / 2
    halfway = (mixture.log_prob(at).mean() for at in ((start + end) / 2, middle))
    print(
        "\nlog density of the Gaussians halfway between two digits: {:.2f}, on a great circle {:.2f}".format(*halfway)
    )
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
