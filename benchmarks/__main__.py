r"""The command for all benchmarks: ``python -m benchmarks NAME ...``; without a name it lists them."""

from __future__ import annotations

__all__ = ["main"]

import argparse
import sys
from collections.abc import Sequence

from pyro_vae.errors import PyroVaeError

from . import (
    bounds,
    digits_truth,
    evidence_cost,
    fifty_latents,
    gradient_cost,
    inpainting,
    layers,
    prior_vae,
    refinement,
)

BENCHMARKS = {
    "bounds": bounds,
    "digits_truth": digits_truth,
    "evidence_cost": evidence_cost,
    "fifty_latents": fifty_latents,
    "gradient_cost": gradient_cost,
    "inpainting": inpainting,
    "layers": layers,
    "prior_vae": prior_vae,
    "refinement": refinement,
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    if args.benchmark is None:
        for name in BENCHMARKS:
            print(f"{name:16}{_first_line(name)}")
        return 0
    try:
        BENCHMARKS[args.benchmark].run(args, argv)
    except PyroVaeError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="benchmark", metavar="NAME")
    for name, module in BENCHMARKS.items():
        command = names.add_parser(
            name,
            help=_first_line(name),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return parser


def _first_line(name: str) -> str:
    return (BENCHMARKS[name].__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
