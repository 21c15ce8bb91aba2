r"""Can log p(x) of a VAE with 50 latents on MNIST be trusted: both sides, chains against draws, what 0.1 nat costs.

The benchmark reads a run of ``pyro-vae train mnist --preset burda`` and answers three questions. Each answer is saved
as soon as it is there:

- sandwich: on images simulated from the model, is the lower bound below the upper one, and how wide is the gap?
- chains: on the first test images, does annealed importance sampling from the encoder find a tighter lower bound than
  100,000 importance samples, and in what time? Does a Gaussian refined for each image?
- budget: how many evaluations does a standard error of 0.1 nats take, if each image gets the number that it needs, and
  if all images get the same number?
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.cli.runs import load_run
from pyro_vae.evidence import LogEvidence
from pyro_vae.ops.streaming import LogMoments
from pyro_vae.pairs.pair import Pair
from pyro_vae.samplers.fitted_proposal import FIT_EVALUATIONS, fitted_proposal

from .provenance import Clock, origin, write

QUESTIONS = ("sandwich", "chains", "budget")
_TARGET = 0.1  # the standard error to reach, in nats
_LADDER = 2**0.25  # the factor between numbers of draws that are tried
_MOST = 65_536  # draws for each image


def summary(found: LogEvidence, seconds: float) -> dict[str, Any]:
    """Return the parts of an estimate that go into the record."""
    k = found.pareto_k
    return {
        "side": found.side,
        "mean": found.mean,
        "monte_carlo_error": found.monte_carlo_error,
        "test_set_error": found.test_set_error,
        "largest_stderr": found.stderr.max().item(),
        "evaluations": found.num_evaluations.double().mean().item(),
        "k_above_0.7": None if k.isnan().all() else (k > 0.7).double().mean().item(),
        **{verdict: found.share(verdict) for verdict in ("ok", "doubtful", "unreliable")},
        "seconds": seconds,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a piece of work, and the seconds it took."""
    start = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - start, 2)


def sandwich(vae: pv.VAE, x: Tensor, num_temperatures: int) -> dict[str, Any]:
    """Enclose log p(x) of simulated images, one for each row of ``x``."""
    x, z = pv.simulation.simulate(vae.model, x, seed=0)
    methods: dict[str, dict[str, Any]] = {
        "BDMC": {"method": "ais", "num_temperatures": num_temperatures},
        "IWAE, K = 1000": {"method": "iwae", "num_particles": 1000},
    }
    found = {}
    for name, options in methods.items():
        enclosed, seconds = timed(partial(pv.evidence.sandwich, vae.model, vae.guide, x, z, **options))
        lower, upper = enclosed
        gap = upper.value - lower.value
        found[name] = {
            **options,
            "images": len(x),
            "lower": summary(lower, seconds),
            "upper": summary(upper, seconds),
            "gap": gap.mean().item(),
            "gap_error": gap.std().item() / len(gap) ** 0.5,
            "largest_gap": gap.max().item(),
        }
        print(f"{name:16}{lower.mean:10.3f} <= log p(x) <= {upper.mean:.3f}, gap {found[name]['gap']:.3f}", flush=True)
    return found


def chains(vae: pv.VAE, x: Tensor, num_temperatures: int) -> dict[str, Any]:
    """Compare chains and refined draws with importance sampling from the guide, on the same images."""
    importance, ais, smc = pv.evidence.importance, pv.evidence.ais, pv.evidence.smc
    contenders = {
        "IS, 100,000 draws": partial(importance, num_particles=100_000),
        f"AIS, T = {num_temperatures}, 16 chains": partial(ais, num_temperatures=num_temperatures),
        "SMC, T = 100, 16 x 16": smc,
        "IS, refined, to 0.05": partial(importance, proposal="refined", target_stderr=0.05),
    }
    found = {}
    first = None
    for name, estimate in contenders.items():
        evidence, seconds = timed(partial(estimate, vae.model, vae.guide, x))
        if first is None:
            first = evidence
        gain = evidence.value - first.value
        error = torch.hypot(evidence.stderr, first.stderr).square().sum().sqrt().item() / len(x)
        found[name] = {**summary(evidence, seconds), "above_IS": gain.mean().item(), "above_IS_error": error}
        print(f"{name:28}{evidence.mean:10.3f} ± {evidence.monte_carlo_error:.3f}{seconds:10.1f} s", flush=True)
    return found


def budget(vae: pv.VAE, x: Tensor) -> dict[str, Any]:
    """Compare numbers of refined draws that adapt to each image with the same number for all, and with the guide's."""
    importance = partial(pv.evidence.importance, vae.model, vae.guide, target_stderr=_TARGET)
    adaptive, seconds = timed(partial(importance, x, proposal="refined"))
    met = (adaptive.stderr <= _TARGET).double().mean().item()
    draws = adaptive.num_particles.double().mean().item()
    shares = uniform_shares(vae, x)
    few = x[:100]
    guide, guide_seconds = timed(partial(importance, few, num_particles=100_000))
    found = {
        "target": _TARGET,
        "images": len(x),
        "adaptive": {**summary(adaptive, seconds), "met": met, "draws": draws},
        "refinement_evaluations": FIT_EVALUATIONS,
        "uniform_share_met": {str(k): share for k, share in shares.items()},
        "uniform": {
            "that meets it for as many": against(shares, met, draws),
            "that meets it for 95%": against(shares, 0.95, draws),
        },
        "from_the_guide": {
            **summary(guide, guide_seconds),
            "images": len(few),
            "met": (guide.stderr <= _TARGET).double().mean().item(),
        },
    }
    print(f"met by {met:.1%} with {draws:.0f} draws on average; with the same number for all: {found['uniform']}")
    print(f"from the guide, at most 100,000 draws: met by {found['from_the_guide']['met']:.1%}", flush=True)
    return found


def against(shares: dict[int, float], met: float, draws: float) -> dict[str, Any]:
    """Return the smallest number of draws that meets the target for this share of images, beside the adaptive one."""
    enough = [number for number, share in shares.items() if share >= met]
    if not enough:
        return {"draws": None, "more_than": max(shares)}
    smallest = enough[0]
    return {
        "draws": smallest,
        "adaptive / uniform draws": draws / smallest,
        "evaluations": (draws + FIT_EVALUATIONS) / (smallest + FIT_EVALUATIONS),
    }


def uniform_shares(vae: pv.VAE, x: Tensor) -> dict[int, float]:
    """Return, for each number of refined draws, the share of images with a standard error that meets the target."""
    counts = sorted({round(64 * _LADDER**step) for step in range(41)})
    met = dict.fromkeys(counts, 0.0)
    pair = Pair.of(vae.model, vae.guide, x)
    with pair.evaluation(1, "uniform"):
        for rows in torch.arange(len(x)).split(100):
            proposal = fitted_proposal(pair, rows, max_bytes=2**26, on_progress=lambda _: None)
            log_w = torch.cat([part for _, part in proposal(rows, _MOST)])
            for k in counts:
                met[k] += (LogMoments.of(log_w[:k]).stderr <= _TARGET).sum().item()
    return {k: number / len(x) for k, number in met.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a finished run of pyro-vae train")
    parser.add_argument("--data-dir", type=Path, required=True, help="torchvision's data folder")
    parser.add_argument("--out", type=Path, default=Path("fifty_latents.json"), help="the record to write")
    parser.add_argument("--images", type=int, default=100, help="images for the sandwich and the chains")
    parser.add_argument("--budget-images", type=int, default=1000, help="images for the budget")
    parser.add_argument("--temperatures", type=int, default=200, help="of the annealed chains")
    parser.add_argument("--threads", type=int, default=2, help="the number of processor threads")
    parser.add_argument(
        "--only", nargs="*", default=list(QUESTIONS), choices=QUESTIONS, metavar="QUESTION", help="only these questions"
    )


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(args.threads)
    words = ["RUN" if word == str(args.run) else word for word in argv]  # a path on one machine is of no use on another
    provenance, clock = origin(words, seed=0), Clock()
    config, vae = load_run(args.run)
    source = pv.data.load("mnist", data_dir=str(args.data_dir))
    x = pv.data.Pixels(source.x_test, "static", max_value=source.max_value, seed=config.binarise_seed)
    x = x[: max(args.images, args.budget_images)]
    answers: dict[str, Callable[[], dict[str, Any]]] = {
        "sandwich": lambda: sandwich(vae, x[: args.images], args.temperatures),
        "chains": lambda: chains(vae, x[: args.images], args.temperatures),
        "budget": lambda: budget(vae, x[: args.budget_images]),
    }
    record: dict[str, Any] = {"trained_by": {**config.to_dict(), "data_dir": "DATA"}}
    for question in args.only:
        record[question] = answers[question]()
        write(args.out, {**record, "provenance": provenance | clock.read()})
