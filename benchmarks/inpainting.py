r"""In-painting: what is the lower half of a held-out digit, given the upper one?

Three answers are compared on binarised digits: that of the pair, :math:`p(x_{\mathrm{low}} \mid x_{\mathrm{up}})`, by
importance weights; that of the encoder alone, which takes hidden pixels as zeros and draws z from that q; and the mean
image, which does not look. Each answer is judged by the log-density of the hidden pixels in nats per image (for the
pair it is a difference of two estimates of log p(x)); by the distance of its mean from the pixels; and by how often 90%
intervals for the ink of the hidden half hold the truth. The intervals lie between quantiles of draws, with ties broken
at random, so that those of exact draws hold it 90% of the time.
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli

import pyro_vae as pv

from .provenance import Clock, add_arguments, origin, write

_DRAWS = 2000


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Write ``inpainting.json``."""
    torch.set_num_threads(args.threads)
    clock = Clock()
    num_epochs, num_images, num_draws = (1, 20, 100) if args.smoke else (300, None, _DRAWS)
    digits = pv.data.load("digits")
    train = pv.data.Pixels(digits.x_train, "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:num_images]
    torch.manual_seed(args.seed)
    # The latent dimensions and the objective were chosen on a fifth of the training images, held out for that.
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
    seen = (torch.arange(8) < 4)[:, None].expand(8, 8)
    hidden = x[:, 4:]
    answers = {
        "the pair": _by_pair(vae, x, seen, num_draws, args.seed),
        "the encoder alone": _by_encoder(vae, x, seen, num_draws),
        "the mean image": _by_mean_image(torch.as_tensor(train.mean), hidden, num_draws),
    }

    record = {**origin(argv, seed=args.seed), "images": len(x), "epochs": num_epochs, "draws": num_draws, "answers": {}}
    for name, answer in answers.items():
        found = _judged(answer, hidden)
        record["answers"][name] = found
        print(name, {key: round(value, 3) for key, value in found.items()})
    gain = answers["the pair"].log_p - answers["the encoder alone"].log_p
    record["pair_minus_encoder"] = {"mean": gain.mean().item(), "stderr": (gain.std() / math.sqrt(len(x))).item()}
    write(args.out / "inpainting.json", {**record, **clock.read()})


class Answer(NamedTuple):
    """An answer for the lower halves of n images."""

    log_p: Float[Tensor, " n"]
    """The log-density of the hidden pixels, in nats."""
    monte_carlo_error: float
    """The Monte-Carlo error of the mean of ``log_p``."""
    draws: Float[Tensor, "draws n 4 8"]


def _judged(answer: Answer, hidden: Tensor) -> dict[str, float]:
    """Return the scores of an answer."""
    ink = hidden.sum((-2, -1))
    return {
        "log_p": answer.log_p.mean().item(),
        "monte_carlo_error": answer.monte_carlo_error,
        "test_set_error": (answer.log_p.std() / math.sqrt(len(hidden))).item(),
        "rmse": (answer.draws.mean(0) - hidden).square().mean().sqrt().item(),
        "ink_within_90": _within(answer.draws.sum((-2, -1)), ink).mean().item(),
    }


def _by_pair(vae: Any, x: Tensor, seen: Tensor, num_draws: int, seed: int) -> Answer:
    """Condition on the upper half by importance weights."""
    pair = pv.Incomplete(vae)
    upper = x.masked_fill(~seen, torch.nan)
    options = {"num_particles": num_draws, "proposal": "refined", "seed": seed}
    log_p_whole = pv.evidence.importance(pair.model, pair.guide, x, **options)
    log_p_upper = pv.evidence.importance(pair.model, pair.guide, upper, **options)
    imputed = pv.impute(vae, x, mask=seen, num_particles=2 * num_draws, num_imputations=num_draws // 2, seed=seed)
    error = math.hypot(log_p_whole.monte_carlo_error, log_p_upper.monte_carlo_error)
    return Answer(log_p_whole.value - log_p_upper.value, error, imputed.draws[:, :, 4:])


@torch.no_grad()
def _by_encoder(vae: Any, x: Tensor, seen: Tensor, num_draws: int) -> Answer:
    """Take the encoder's q given the upper half as the posterior."""
    z = vae.encode(x, mask=seen).sample((num_draws,))
    p = vae.decode(z)
    p_hidden = Bernoulli(p.mean[..., 4:, :].clamp(1e-6, 1 - 1e-6))
    log_p = p_hidden.log_prob(x[:, 4:]).sum((-2, -1))
    error = pv.weights.log_mean_exp_stderr(log_p).square().sum().sqrt().item() / len(x)
    draws = p.sample()[: num_draws // 2, :, 4:]
    return Answer(pv.weights.log_mean_exp(log_p), error, draws)


def _by_mean_image(mean: Tensor, hidden: Tensor, num_draws: int) -> Answer:
    """Take the mean of the training images as the probabilities of the pixels."""
    p = Bernoulli(mean.reshape(8, 8)[4:].clamp(1e-3, 1 - 1e-3))
    log_p = p.log_prob(hidden).sum((-2, -1))
    return Answer(log_p, 0.0, p.sample((num_draws // 2, len(hidden))))


def _within(draws: Tensor, value: Tensor) -> Tensor:
    """Return whether each value is within the central 90% of draws; its rank among draws that equal it is random."""
    below = (draws < value).sum(0)
    ties = (draws == value).sum(0)
    rank = (below + torch.rand(value.shape) * (ties + 1)) / (len(draws) + 1)
    return ((rank > 0.05) & (rank < 0.95)).double()
