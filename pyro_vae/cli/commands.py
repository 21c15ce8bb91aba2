"""The commands: the result on stdout, progress and errors on stderr. The only file that prints.

A command takes the options that :mod:`.parser` declares for it and returns an exit status. Everything heavy is imported
inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

__all__ = ["main"]

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NonFiniteLossError, PyroVaeError
from .config import TrainConfig
from .parser import parse

if TYPE_CHECKING:
    from ..workflows.evaluation import Evaluation
    from .runs import Run

INTERRUPTED = 130


def train(*, json: bool, **options: Any) -> int:
    from . import runs

    return _print_run(runs.train(TrainConfig.from_dict(options)), json)


def resume(run: Path, *, json: bool, **options: Any) -> int:
    from . import runs

    return _print_run(runs.resume(run, **options), json)


def evaluate(run: Path, *, json: bool, **options: Any) -> int:
    from . import runs

    evaluation, test_set = runs.evaluate_run(run, **options)
    _print_evaluation(evaluation, test_set, {"run": str(run)}, json)
    return 0


def compare(run: Path, *, json: bool, **options: Any) -> int:
    from . import runs

    comparison, test_set = runs.compare_run(run, **options)
    if json:
        _print_json({"run": str(run), "protocol": test_set, **comparison.to_dict()})
    else:
        print(f"{test_set}\nmean per image; `in 95%` is the share of intervals that hold the truth\n\n{comparison}")
    return 0


def sample(run: Path, *, json: bool, **options: Any) -> int:
    from . import runs

    _print_paths(runs.sample_run(run, **options), json)
    return 0


def impute(run: Path, *, file: Path | None, json: bool, **options: Any) -> int:
    from .impute import impute_file, impute_test_images

    if file is not None:
        options = {name: value for name, value in options.items() if name not in ("num_images", "data_dir")}
        _print_paths([impute_file(run, file, **options)], json)
        return 0
    score, test_set, picture = impute_test_images(run, **options)
    if json:
        _print_json({"run": str(run), "protocol": test_set, **score._asdict(), "pictures": [str(picture)]})
    else:
        print(f"{test_set}\n{score}\npictures: {picture}")
    return 0


def plot(run: Path, *, json: bool, **options: Any) -> int:
    from . import runs

    _print_paths(runs.plot_run(run, **options), json)
    return 0


COMMANDS = {command.__name__: command for command in (train, resume, evaluate, compare, sample, impute, plot)}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; exit 2 for input that cannot be used, 1 for a run that failed, 130 after Ctrl-C."""
    try:
        status = _run(sys.argv[1:] if words is None else words)
    except PyroVaeError as error:
        status = _fail(error, 1 if isinstance(error, NonFiniteLossError) else 2)
    except KeyboardInterrupt:
        status = _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        status = 0
    except OSError as error:
        status = _fail(f"{error.filename or 'the result'} cannot be read or written ({error.strerror})", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error).lower():
            raise
        status = _fail("out of memory: use fewer or smaller layers, latents, particles or samples", 1)
    sys.exit(status)


def _run(words: Sequence[str]) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_note
            command, options = parse(words)
            return COMMANDS[command](**options)
    except SystemExit:  # --help and --version, which have printed
        return 0
    finally:
        _flush()


def _flush() -> None:
    """Write what is waiting for stdout while a failure can still be reported; Python would try once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: object, status: int) -> int:
    print(f"pyro-vae: {message}", file=sys.stderr)
    return status


def _print_note(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-vae: note: {message}", file=sys.stderr)


def _print_run(run: Run, as_json: bool) -> int:
    if run.evaluation is None:
        done = f"interrupted after {len(run.history.epochs)} epochs"
        print(f"{done}: go on with `pyro-vae resume {run.folder}`", file=sys.stderr)
        return INTERRUPTED
    notes = {"run": str(run.folder), "pictures": list(map(str, run.pictures))}
    if not as_json and run.evaluation.log_evidence.share("ok") < 1:
        notes = {"log p(x) to rely on": f"pyro-vae evaluate {run.folder}", **notes}
    _print_evaluation(run.evaluation, run.test_set, notes, as_json)
    return 0


_SIDES = {"lower": "lower bounds", "point": "bounds from below, and a point estimate of log p(x)"}


def _print_evaluation(evaluation: Evaluation, test_set: str, notes: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json({**notes, "protocol": test_set, **evaluation.to_dict()})
        return
    side = _SIDES[evaluation.log_evidence.side]
    print(test_set)
    print(f"mean per image; {side}; the first error bar is Monte-Carlo, the second the choice of test images")
    print(f"\n{evaluation}\n")
    for name, value in notes.items():
        print(f"{name}: {value if isinstance(value, str) else ' '.join(value)}")


def _print_paths(paths: list[Path], as_json: bool) -> None:
    if as_json:
        _print_json(list(map(str, paths)))
    else:
        print("\n".join(map(str, paths)))


def _print_json(content: Any) -> None:
    print(json.dumps(content))
