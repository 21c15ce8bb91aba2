r"""In-painting: what is the lower half of a held-out digit, given the upper one?

Three answers for binarised digits: the pair's, :math:`p(x_{\mathrm{low}} \mid x_{\mathrm{up}})`, by importance weights;
the encoder's alone, which takes zeros for what it cannot see and draws z from that q; and the mean image, which does
not look. Of each, the log-density of the hidden pixels, nats per image, that of the pair as a difference of two
estimates of log p(x); how far its mean is from the pixels; and whether 90% intervals for the ink of the hidden half
hold it that often (between quantiles of draws, ties broken at random, so that exact ones hold it 90% of the time).
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.ops.weights import log_mean_exp

from .provenance import Clock, add_arguments, origin, write

_DRAWS = 2000


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Write ``inpainting.json``."""
    torch.set_num_threads(args.threads)
    clock = Clock()
    num_epochs, num_images, num = (1, 20, 100) if args.smoke else (300, None, _DRAWS)
    digits = pv.data.load("digits")
    train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:num_images]
    torch.manual_seed(args.seed)
    # Latent dimensions and objective were chosen on a fifth of the training images, held out for that.
    vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=16, data_mean=train.mean)
    pv.fit(
        vae,
        train,
        num_epochs=num_epochs,
        batch_size=64,
        schedule="cosine",
        learning_rate=3e-3,
        objective=pv.objectives.IWAE(num_particles=20),
        seed=args.seed,
    )
    mask = (torch.arange(8) < 4)[:, None].expand(8, 8)
    hidden, ink = x[:, 4:], x[:, 4:].sum((-2, -1))
    rows = {
        "the pair": _pair(vae, x, mask, num, args.seed),
        "the encoder alone": _encoder(vae, x, mask, num),
        "the mean image": _mean_image(torch.as_tensor(train.mean), hidden, num),
    }
    record = {**origin(argv, seed=args.seed), "images": len(x), "epochs": num_epochs, "draws": num, "answers": {}}
    for name, (log_p, error, draws) in rows.items():
        record["answers"][name] = found = {
            "log_p": log_p.mean().item(),
            "monte_carlo_error": error,
            "test_set_error": (log_p.std() / math.sqrt(len(x))).item(),
            "rmse": (draws.mean(0) - hidden).square().mean().sqrt().item(),
            "ink_within_90": _within(draws.sum((-2, -1)), ink).mean().item(),
        }
        print(name, {key: round(value, 3) for key, value in found.items()})
    gain = rows["the pair"][0] - rows["the encoder alone"][0]
    record["pair_minus_encoder"] = {"mean": gain.mean().item(), "stderr": (gain.std() / math.sqrt(len(x))).item()}
    write(args.out / "inpainting.json", {**record, **clock.read()})


def _pair(vae: Any, x: Tensor, mask: Tensor, num: int, seed: int) -> tuple[Tensor, float, Tensor]:
    """log p of the hidden pixels ``[n]``, the Monte-Carlo error of its mean, and draws of them ``[draws, n, 4, 8]``."""
    pair = pv.Incomplete(vae)
    whole, seen = (
        pv.evidence.importance(pair.model, pair.guide, given, num_particles=num, proposal="refined", seed=seed)
        for given in (x, x.masked_fill(~mask, torch.nan))
    )
    imputed = pv.impute(vae, x, mask=mask, num_particles=2 * num, num_imputations=num // 2, seed=seed)
    error = math.hypot(whole.monte_carlo_error, seen.monte_carlo_error)
    return whole.value - seen.value, error, imputed.draws[:, :, 4:]


@torch.no_grad()
def _encoder(vae: Any, x: Tensor, mask: Tensor, num: int) -> tuple[Tensor, float, Tensor]:
    p = vae.decode(vae.encode(x, mask=mask).sample((num,)))
    mean = p.mean[..., 4:, :]
    log_p = torch.distributions.Bernoulli(mean.clamp(1e-6, 1 - 1e-6)).log_prob(x[:, 4:]).sum((-2, -1))
    error = pv.weights.log_mean_exp_stderr(log_p).square().sum().sqrt().item() / len(x)
    return log_mean_exp(log_p), error, p.sample()[: num // 2, :, 4:]


def _mean_image(mean: Tensor, hidden: Tensor, num: int) -> tuple[Tensor, float, Tensor]:
    p = torch.distributions.Bernoulli(mean.reshape(8, 8)[4:].clamp(1e-3, 1 - 1e-3))
    return p.log_prob(hidden).sum((-2, -1)), 0.0, p.sample((num // 2, len(hidden)))


def _within(draws: Tensor, value: Tensor) -> Tensor:
    """Whether a value is within the central 90% of draws; where some equal it, its rank among them is random."""
    below, ties = (draws < value).sum(0), (draws == value).sum(0)
    rank = (below + torch.rand(value.shape) * (ties + 1)) / (len(draws) + 1)
    return ((rank > 0.05) & (rank < 0.95)).double()
