"""A deterministic autoencoder against a VAE: the same networks, data and epochs; a feature vector against q(z|x).

The autoencoder is a VAE whose q(z|x) is a point, trained on reconstruction alone. In the picture, left: how far images
drawn from the decoder are from the nearest training image, while the code walks through another digit's code and on, or
in a random direction: the autoencoder, no worse between two codes, leaves the data sooner. Below: the codes of a digit,
of a blend and of its lower half, as numbers (crosses) and as q(z|x) with two standard deviations. Middle: such walks.
Right: held-out digits, blends of two, and lower halves; what the autoencoder makes of them, and the VAE of five draws
from q(z|x); twice the standard deviation of 500, and its average: somewhat larger for a blend, and more so for a half.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import pyro_vae as pv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("autoencoder_vs_vae.png"))
    parser.add_argument("--smoke", action="store_true", help="a budget of seconds")
    args = parser.parse_args()
    num_epochs, lengths = (2, np.arange(7)) if args.smoke else (150, np.arange(0, 6.05, 0.1))
    stops, digits, vaes = (0, 0.5, 1, 1.5, 2, 3, 4), pv.data.load("digits"), {}
    x_train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    known = pv.data.Pixels(digits.x_train, "static", max_value=digits.max_value)[:].flatten(1)
    x, grey = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:], digits.x_test / digits.max_value
    for name, beta in {"AE": 0.0, "VAE": 1.0}.items():
        torch.manual_seed(0)
        vaes[name] = vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=8, data_mean=x_train.mean)
        if name == "AE":
            vae.posterior = pv.posteriors.DiagonalNormal(8, min_scale=1e-6, max_scale=1e-6)
        run = {"num_epochs": num_epochs, "batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine"}
        pv.fit(vae, x_train, objective=pv.objectives.BetaVAE(beta=beta), **run)
        vae.requires_grad_(False)

    def distance(images: torch.Tensor) -> float:
        return torch.cdist(images.flatten(1), known, p=1).amin(1).mean().item()

    axes = Figure(figsize=(15, 6), layout="constrained").subplot_mosaic("ABC;DBC", height_ratios=[3, 2])
    left, middle, right, code = axes.values()
    other = torch.multinomial((digits.y_test[:, None] != digits.y_test).float(), 1)[:, 0]  # of another class
    independent = torch.bernoulli(x_train.mean.expand(len(x), 8, 8))
    levels, walks = {"held-out digits": distance(x), "independent pixels": distance(independent)}, []
    print("pixels off the nearest training image:", {name: round(level, 2) for name, level in levels.items()})
    for (name, vae), colour in zip(vaes.items(), ("C1", "C0"), strict=True):
        line = (codes := vae.encode(x).mean)[other] - codes
        aside = torch.nn.functional.normalize(torch.randn_like(codes)) * line.norm(dim=1, keepdim=True)
        for where, way, style in (("through another code", line, "-"), ("in a random direction", aside, ":")):
            found = np.array([distance(vae.decode(codes + t * way).sample()) for t in lengths.tolist()])
            left.plot(lengths, found, style, color=colour, label=f"{name}, {where}")
            near, far = found[lengths <= 1].max(), lengths[(found > sum(levels.values()) / 2).argmax()]
            print(f"{name} {where}: up to {near:.2f} at lengths up to 1, half-way to independent pixels at {far:.1f}")
        walks.append(torch.stack([vae.decode(codes[:4] + t * line[:4]).mean for t in stops], 1))
    for (name, level), style in zip(levels.items(), ("--", "-."), strict=True):
        left.axhline(level, color="0.4", ls=style, lw=1, label=name)
    left.set(xlabel="length of the walk / distance of the codes", ylabel="pixels off the nearest training image")
    left.legend(fontsize=8)
    walks = torch.stack(walks, 1).flatten(0, 1)
    pv.plot.traversals(walks, middle, names=[*vaes] * 4, title="E[x|z] through another code")
    middle.set_xticks(9 * np.arange(len(stops)) + 3.5, [*map(str, stops)])
    greys = {"blends": (grey + grey[other]) / 2, "half hidden": grey * (torch.arange(8) > 3)[:, None]}
    kinds, rows, shown = {"held-out": x} | {kind: torch.bernoulli(level) for kind, level in greys.items()}, [], []
    for place, (kind, images) in enumerate(kinds.items()):
        draws = pv.draw_particles(vae.model, vae.guide, images, num_particles=500)
        decoded, w = vae.decode(draws.z["z"]).mean, draws.log_w.softmax(0)[:, :, None, None]
        variances = decoded.var(0), (w * decoded**2).sum(0) - (w * decoded).sum(0) ** 2
        sd, exact = (each.mean((1, 2)).sqrt().mean() for each in variances)
        q, dims = vae.encode(images), np.arange(1, 9) + 0.25 * (place - 1)
        code.errorbar(dims, q.mean[0], 2 * q.stddev[0], fmt="_", color=f"C{place + 2}", label=f"q(z|x), {kind}")
        code.plot(dims, vaes["AE"].encode(images).mean[0], "x", color=f"C{place + 2}")
        print(
            f"{kind}: entropy of q {q.entropy().mean():.2f}, decoded pixels ± {sd:.3f}, by the posterior ± {exact:.3f}"
        )
        parts = images[None], vaes["AE"].reconstruct(images)[None], decoded[:5], 2 * variances[0].sqrt()[None]
        shown.append(torch.cat(parts)[:, :3].transpose(0, 1))
        rows += ["", f"{kind}\n± {sd:.3f}", ""]
    pv.plot.traversals(torch.cat(shown), right, names=rows, title="clear and ambiguous digits")
    right.set_xticks(9 * np.arange(8) + 3.5, ["x", "AE", "", "", "VAE", "", "", "2 sd"])
    code.set(xlabel="latent dimension", ylabel="z (crosses: AE)", ylim=(-6, 4.5))
    code.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    pv.plot.save(left, args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
