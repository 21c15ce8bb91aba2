"""The command line: the result on stdout, progress and errors on stderr. The only file that prints.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

__all__ = ["main"]

import json
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from ..errors import NonFiniteLossError, PyroVaeError, require_count
from .config import TrainConfig
from .parsing import parse

if TYPE_CHECKING:
    from ..workflows.evaluation import Evaluation
    from .runs import Run

INTERRUPTED = 130
Particles = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the estimator's)")]
Target = Annotated[float | None, tyro.conf.arg(metavar="NATS", help_behavior_hint="(default: none)")]
ProposalName = Annotated[
    Literal["guide", "inflated", "defensive", "refined"] | None,
    tyro.conf.arg(metavar="{guide,inflated,defensive,refined}", help_behavior_hint="(default: guide)"),
]
Images = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")]
DataFile = Annotated[
    Positional[Path | None], tyro.conf.arg(metavar="[FILE]", help_behavior_hint="(default: test images)")
]
RunFolder = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
Views = Annotated[
    Positional[
        tuple[
            Literal[
                "history",
                "reconstructions",
                "samples",
                "manifold",
                "latents",
                "interpolations",
                "neighbours",
                "traversals",
            ],
            ...,
        ]
    ],
    tyro.conf.arg(metavar="[VIEW ...]", help_behavior_hint="(default: those of `train`)"),
]
DataDir = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the run's, $PYRO_VAE_DATA or data)")
]


def train(config: Annotated[TrainConfig, tyro.conf.arg(name="")], json: bool = False) -> int:
    """Train a VAE, evaluate it on the test images, and draw what there is to see.

    Args:
        json: Print the result as JSON.
    """
    from . import runs

    return _report(runs.train(config), json)


def resume(run: RunFolder, data_dir: DataDir = None, json: bool = False) -> int:
    """Go on with an interrupted run.

    Args:
        run: The run folder.
        data_dir: torchvision's data folder.
        json: Print the result as JSON.
    """
    from . import runs

    return _report(runs.resume(run, data_dir=data_dir), json)


def evaluate(
    run: RunFolder,
    estimator: Literal["auto", "is", "psis", "ais", "smc", "grid"] = "auto",
    num_particles: Particles = None,
    target_stderr: Target = None,
    proposal: ProposalName = None,
    num_images: Images = None,
    seed: int = 0,
    data_dir: DataDir = None,
    json: bool = False,
) -> int:
    """Estimate a run's ELBO, IWAE bound and log p(x) on the test images.

    Args:
        run: The run folder.
        estimator: Of log p(x): importance sampling, plain or Pareto-smoothed; annealed importance sampling; sequential
            Monte Carlo; a grid for at most 2 latent dimensions; or what suits this run.
        num_particles: Draws or chains per image for log p(x).
        target_stderr: Draw until the standard error of each image is as small as this, in nats (is, psis).
        proposal: What is and psis draw from: the guide; the guide inflated; the guide with a tenth of the prior; or a
            Gaussian refined for each image.
        num_images: Only the first so many test images.
        seed: Of the draws.
        data_dir: torchvision's data folder.
        json: Print the result as JSON.
    """
    from . import runs

    found, protocol = runs.evaluate_run(
        run,
        estimator=estimator,
        num_particles=num_particles,
        target_stderr=target_stderr,
        proposal=proposal,
        num_images=num_images,
        seed=seed,
        data_dir=data_dir,
    )
    _print_evaluation(found, protocol, {"run": str(run)}, json)
    return 0


def compare(
    run: RunFolder,
    estimators: tuple[Literal["is", "psis", "ais", "smc", "grid"], ...] | None = None,
    num_images: int = 100,
    repeats: int = 1,
    seed: int = 0,
    data_dir: DataDir = None,
    json: bool = False,
) -> int:
    """Estimators of log p(x) side by side on the test images: what each says and what it costs.

    With at most 2 latent dimensions the grid is the truth that the others are compared with.

    Args:
        run: The run folder.
        estimators: Which; by default all but the grid.
        num_images: Only the first so many test images.
        repeats: How many times each, with seeds of their own.
        seed: Of the first repeat.
        data_dir: torchvision's data folder.
        json: Print the result as JSON.
    """
    from . import runs

    found, protocol = runs.compare_run(
        run, estimators=estimators, num_images=num_images, repeats=repeats, seed=seed, data_dir=data_dir
    )
    if json:
        _print_json({"run": str(run), "protocol": protocol, **found.to_dict()})
    else:
        print(f"{protocol}\nmean per image; `in 95%` is the share of intervals that hold the truth\n\n{found}")
    return 0


def sample(run: RunFolder, num: int = 100, seed: int = 0, json: bool = False) -> int:
    """Draw from a run's model: z, x and the mean E[x | z] as an .npz file, and a picture of the first 100 means.

    Args:
        run: The run folder.
        num: How many.
        seed: Of the draws.
        json: Print the paths as JSON.
    """
    from . import runs

    require_count("num", num)
    _print_paths(runs.sample_run(run, num=num, seed=seed), json)
    return 0


def impute(
    run: RunFolder,
    file: DataFile = None,
    num_particles: int = 1000,
    num_imputations: int = 20,
    num_images: Images = None,
    seed: int = 0,
    data_dir: DataDir = None,
    json: bool = False,
) -> int:
    """Impute what is missing, NaN in FILE, with 90% intervals; without FILE, the hidden lower half of the test images.

    Args:
        run: The run folder.
        file: An array as .npy or .csv, without a header; the result is a new file NAME-imputed.npz beside it.
        num_particles: Weighted draws per datapoint.
        num_imputations: How many of them to keep as imputations.
        num_images: Only the first so many test images.
        seed: Of the draws.
        data_dir: torchvision's data folder.
        json: Print the result as JSON.
    """
    from . import impute as filling

    options = {"num_particles": num_particles, "num_imputations": num_imputations, "seed": seed}
    if file is not None:
        _print_paths(filling.fill_file(run, file, **options), json)
        return 0
    found, what, paths = filling.fill_test_images(run, num_images=num_images, data_dir=data_dir, **options)
    if json:
        _print_json({"run": str(run), "protocol": what, **found._asdict(), "pictures": [str(path) for path in paths]})
    else:
        print(f"{what}\n{found}\npictures: {' '.join(map(str, paths))}")
    return 0


def plot(run: RunFolder, views: Views = (), data_dir: DataDir = None, json: bool = False) -> int:
    """Draw a run's pictures again, or other views of it.

    Args:
        run: The run folder.
        views: Which pictures.
        data_dir: torchvision's data folder.
        json: Print the paths as JSON.
    """
    from . import runs

    _print_paths(runs.plot_run(run, views=views, data_dir=data_dir), json)
    return 0


def main(args: list[str] | None = None) -> None:
    """Run a command; exit 2 for input that cannot be used, 1 for a run that failed, 130 after Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        print(version("pyro-vae"))
        sys.exit(0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            status = parse(_COMMANDS, args, prog="pyro-vae", about=_ABOUT)()
        sys.stdout.flush()  # while what goes wrong with it can still be said
    except PyroVaeError as error:
        status = _say(error, 1 if isinstance(error, NonFiniteLossError) else 2)
    except KeyboardInterrupt:
        status = _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        status = _say(f"{error.filename or 'the result'} cannot be read or written ({error.strerror})", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error).lower():
            raise
        status = _say("out of memory: use fewer or smaller layers, latents, particles or samples", 1)
    sys.exit(status)


def _say(message: object, status: int) -> int:
    print(f"pyro-vae: {message}", file=sys.stderr)
    return status


_COMMANDS = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "compare": compare,
    "sample": sample,
    "impute": impute,
    "plot": plot,
}
_ABOUT = "Variational autoencoders as Pyro programs: train one, get its ELBO, IWAE bound and log p(x), and look at it."


def _report(run: Run, as_json: bool) -> int:
    if run.evaluation is None:
        print(
            f"interrupted after {len(run.history.epochs)} epochs: go on with `pyro-vae resume {run.folder}`",
            file=sys.stderr,
        )
        return INTERRUPTED
    where = {"run": str(run.folder), "pictures": [str(path) for path in run.pictures]}
    if not as_json and run.evaluation.log_evidence.share("ok") < 1:
        where = {"log p(x) to rely on": f"pyro-vae evaluate {run.folder}", **where}
    _print_evaluation(run.evaluation, run.protocol, where, as_json)
    return 0


def _print_evaluation(found: Evaluation, protocol: str, where: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json({**where, "protocol": protocol, **found.to_dict()})
        return
    print(protocol)
    side = {"lower": "lower bounds", "point": "bounds from below, and a point estimate of log p(x)"}[
        found.log_evidence.side
    ]
    print(f"mean per image; {side}; the first error bar is Monte-Carlo, the second the choice of test images")
    print()
    print(found)
    print()
    for name, value in where.items():
        print(f"{name}: {value if isinstance(value, str) else ' '.join(value)}")


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content))


def _print_paths(paths: list[Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps([str(path) for path in paths]))
    else:
        print("\n".join(map(str, paths)))


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-vae: note: {message}", file=sys.stderr)
