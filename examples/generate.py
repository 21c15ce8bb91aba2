"""New digits from a VAE: where to draw z from, whether the draws are copies, and what lies between two digits.

Ten latent dimensions learn scikit-learn's digits, black or white.

In the picture, the upper row shows means E[x | z] for z from three distributions: the prior; the aggregate posterior,
which is q(z | x) of a random training digit; and 20 Gaussians fitted to draws of the latter (Ghosh et al., 2020,
https://arxiv.org/abs/1903.12436). The titles say how far draws of x are from held-out digits, in energy distance
(training digits: about zero).

Below on the left, draws of x stand over the training digits nearest to them, with the distance: a copy would have 0,
and the usual distance is the mean of held-out digits. On the right, straight lines lead from one held-out digit to
another. Great circles would keep the length of z, but they leave the region where the data are: the density halfway is
lower there.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

import pyro_vae as pv


def gaussian_mixture(z: Tensor, components: int) -> MixtureSameFamily:
    """Return a mixture of Gaussians fitted to latents ``[n, latent]``."""
    found = GaussianMixture(components, random_state=0).fit(z.double().numpy())
    weights = torch.from_numpy(found.weights_).float()
    means = torch.from_numpy(found.means_).float()
    covariances = torch.from_numpy(found.covariances_).float()
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def with_error(values: list[Tensor], places: int) -> str:
    """Return the mean of values and its standard error, as text."""
    values = torch.stack(values)
    return f"{values.mean():.{places}f} ± {values.std() / len(values) ** 0.5:.{places}f}"


def draw_sets(vae: pv.VAE, source: Distribution, num: int, repeats: int) -> list[Tensor]:
    """Return several sets of digits, each drawn from the decoder at z from the source."""
    sets = []
    for _ in range(repeats):
        z = source.sample((num,))
        sets.append(vae.decode(z).sample())
    return sets


@torch.no_grad()
def main() -> None:
    args = parse_arguments()
    num_epochs, repeats, draws = (1, 2, 1) if args.smoke else (150, 20, 10)

    digits = pv.data.load("digits")
    train = pv.data.Pixels(digits.x_train, "threshold", max_value=16)[:]
    test = pv.data.Pixels(digits.x_test, "threshold", max_value=16)[:]
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=10, data_mean=train.mean(0))
    with torch.enable_grad():
        pv.fit(vae, train, num_epochs=num_epochs, batch_size=64, learning_rate=3e-3, schedule="cosine")

    # Three distributions of z.
    prior = vae.prior()
    aggregate = MixtureSameFamily(Categorical(torch.ones(len(train))), vae.encode(train))
    mixture = gaussian_mixture(aggregate.sample((draws * len(train),)), components=20)
    sources = {"the prior": prior, "the aggregate": aggregate, "20 Gaussians": mixture}

    usual = pv.diagnostics.nearest_neighbours(test, train).distance.mean()
    print(f"From a held-out digit it is {usual:.3f} to the nearest of {len(train)} training digits. In % of that: from")
    print("draws of x to the nearest training digit, and from held-out digits to the nearest of equally many draws.\n")
    print(f"{'z from':20}{'draws to train':>18}{'test to draws':>18}{'energy distance':>20}{'ELBO, test':>14}")
    quarters = train[torch.randperm(len(train))].chunk(4)
    energy_of_train = [pv.diagnostics.energy_distance(quarter, test) for quarter in quarters]
    print(f"{'(training digits)':20}{0:18}{100:18}{with_error(energy_of_train, 4):>20}")
    elbo = pv.evidence.elbo(vae.model, vae.guide, test, num_particles=100).mean
    z_test = vae.encode(test).sample((draws,))

    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2, 3])
    left, right = below.subfigures(1, 2)
    for (name, source), ax, under in zip(sources.items(), above.subplots(1, 3), left.subplots(3), strict=True):
        sets = draw_sets(vae, source, len(train), repeats)
        to_train = []
        to_draws = []
        energies = []
        for x in sets:
            to_train.append(100 * pv.diagnostics.nearest_neighbours(x, train).distance.mean() / usual)
            to_draws.append(100 * pv.diagnostics.nearest_neighbours(test, x).distance.mean() / usual)
            energies.append(pv.diagnostics.energy_distance(x, test))
        copied = with_error(to_train, 1)
        energy = with_error(energies, 4)
        elbo_of_source = elbo + (source.log_prob(z_test) - prior.log_prob(z_test)).mean()  # with it as the prior
        print(f"{name:20}{copied:>18}{with_error(to_draws, 1):>18}{energy:>20}{elbo_of_source:14.2f}")

        means = vae.decode(source.sample((48,))).mean
        pv.plot.images(means, ax, columns=8, title=f"{name}: energy distance {energy}")
        x = sets[0][:12]
        nearest = pv.diagnostics.nearest_neighbours(x, train)
        title = f"draws, z from {name}: {copied}% of the usual distance"
        pv.plot.neighbours(x, train[nearest.place], nearest.distance, under, title=title)

    # Straight lines from digits of the first half of the test set to digits of the second.
    x_start, x_end = test.chunk(2)
    start, end = vae.encode(test).mean.chunk(2)
    lines = torch.lerp(start[:8, None], end[:8, None], torch.linspace(0, 1, 9)[:, None])
    title = "held-out digits, and E[x | z] on straight lines between them"
    pv.plot.interpolations(x_start[:8], vae.decode(lines).mean, x_end[:8], right.subplots(), title=title)

    on_line = (start + end) / 2
    length = (start.norm(dim=1) + end.norm(dim=1)) / 2
    on_circle = torch.nn.functional.normalize(start + end) * length[:, None]
    print(
        f"\nlog density of the Gaussians halfway between two digits: {mixture.log_prob(on_line).mean():.2f}, "
        f"on a great circle {mixture.log_prob(on_circle).mean():.2f}"
    )
    figure.savefig(args.out, dpi=100)
    print(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("generate.png"), help="the picture to write")
    parser.add_argument("--smoke", action="store_true", help="run in seconds, to check that the script works")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
