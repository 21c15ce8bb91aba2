r"""Importance sampling beside a hand-written loop and pythae's get_nll: time on the same weights, and peak memory.

Burda's one-layer network (784-200-200-50) on binary images, K = 5000, one thread. The three are run in turn, so that
other work on the machine slows all of them alike, and compared by the median ratio. pythae need not be installed; the
record says if it was not. Peak memory is that of a process of its own, for K = 1,000 and for K = 100,000.
"""

from __future__ import annotations

__all__ = ["add_arguments", "run"]

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import pyro_vae as pv

from .provenance import ROOT, Clock, origin, write

Nll = Callable[[Tensor], Any]
_MEMORY = """
import resource, sys, torch, pyro_vae as pv
torch.set_num_threads(1)
torch.manual_seed(0)
vae = pv.presets.burda_vae(data_shape=(1, 28, 28))
x = (torch.rand(64, 1, 28, 28) < 0.3).float()
pv.evidence.importance(vae.model, vae.guide, x[:2], num_particles=100)
pv.evidence.importance(vae.model, vae.guide, x[:8], num_particles=int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def hand_written(vae: pv.VAE, num_particles: int, chunk: int) -> Nll:
    """Return log p(x) as one writes it without a library: a loop over images and chunks of draws."""

    @torch.no_grad()
    def log_p(x: Tensor) -> Tensor:
        q = vae.encode(x).base_dist
        found = torch.full((len(x),), -math.inf, dtype=torch.float64)
        for i, (image, loc, scale) in enumerate(zip(x.flatten(1), q.loc, q.scale, strict=True)):
            for _ in range(0, num_particles, chunk):
                noise = torch.randn(chunk, len(loc))
                z = loc + scale * noise
                logits = vae.decoder(z).flatten(1)
                target = image.expand_as(logits)
                error = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
                log_w = -error - 0.5 * z.square().sum(1) + 0.5 * noise.square().sum(1) + scale.log().sum()
                found[i] = torch.logaddexp(found[i], log_w.double().logsumexp(0))
        return found - math.log(num_particles)

    return log_p


def by_pythae(vae: pv.VAE, num_particles: int) -> Nll | None:
    """Return pythae's ``get_nll`` on the same weights, called as in its documentation; ``None`` without pythae."""
    try:
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
    except ImportError:
        return None

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = vae.latent_dim
            self.net = vae.encoder

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = vae.encoder(x).reshape(len(x), 2, -1).unbind(1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=vae.decoder(z).sigmoid())

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=vae.latent_dim, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).eval()
    return lambda x: model.get_nll(x, n_samples=num_particles)


def peak_memory(num_particles: int) -> int:
    """Return the peak memory of a process that estimates log p(x) of eight images, in KiB."""
    command = [sys.executable, "-c", _MEMORY, str(num_particles)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("evidence_cost.json"), help="the record to write")
    parser.add_argument("--rounds", type=int, default=15, help="how often each contender is timed")
    parser.add_argument("--images", type=int, default=10, help="the number of images")
    parser.add_argument("--particles", type=int, default=5000, help="draws per image")


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    torch.set_num_threads(1)
    provenance, clock = origin(argv, seed=0), Clock()
    torch.manual_seed(0)
    vae = pv.presets.burda_vae(data_shape=(1, 28, 28)).eval()
    x = (torch.rand(args.images, 1, 28, 28) < 0.3).float()

    def ours(x: Tensor) -> Tensor:
        return pv.evidence.importance(vae.model, vae.guide, x, num_particles=args.particles).value

    contenders: dict[str, Nll | None] = {
        "pyro_vae": ours,
        "hand-written, chunks of 500": hand_written(vae, args.particles, 500),
        "hand-written, chunks of 1000": hand_written(vae, args.particles, 1000),
        "pythae get_nll": by_pythae(vae, args.particles),
    }
    present = {name: nll for name, nll in contenders.items() if nll is not None}
    taken = _in_turn(present, x, args.rounds)
    rows = []
    for name, times in taken.items():
        ratios = [seconds / own for seconds, own in zip(times, taken["pyro_vae"], strict=True)]
        rows.append({"what": name, "time / pyro_vae": _median(ratios), "seconds per image": _median(times) / len(x)})
    memory = {str(k): peak_memory(k) for k in (1000, 100_000)}
    for row in rows:
        print(f"{row['what']:32}{row['time / pyro_vae']:8.2f}{row['seconds per image']:10.4f} s per image")
    print("peak memory, KiB:", ", ".join(f"K = {k}: {size}" for k, size in memory.items()))
    record = {
        "images": args.images,
        "particles": args.particles,
        "rounds": args.rounds,
        "pythae": _pythae_version(),
        "provenance": provenance | clock.read(),
        "rows": rows,
        "peak_memory_KiB": memory,
    }
    write(args.out, record)


def _in_turn(contenders: dict[str, Nll], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each contender takes in each round."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, nll in contenders.items():
            start = time.perf_counter()
            nll(x)
            if turn > 0:  # the first round warms up
                taken[name].append(time.perf_counter() - start)
    return taken


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def _pythae_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pythae")
    except PackageNotFoundError:
        return None
