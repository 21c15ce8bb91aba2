"""The options of each command, as argparse reads them; words that are not understood become one line.

An option sets the keyword argument of the same name.
"""

from __future__ import annotations

__all__ = ["parse"]

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from .. import __version__
from ..errors import ConfigError, require_one_of
from ..ops.choices import EstimatorName, Proposal, ViewName
from .config import TrainConfig, alternatives, unknown


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and its options; ``--help`` and ``--version`` print and exit.

    Errors:
        ConfigError: for words that are not understood, with the nearest spelling where there is one.
    """
    if not words or words[0].startswith("-"):
        _overview().parse_args(words[:1])
        raise ConfigError(f"expected a command, one of {', '.join(_COMMANDS)}: see `pyro-vae --help`")
    command, *rest = words
    if command not in _COMMANDS:
        raise unknown("command", command, _COMMANDS, "see `pyro-vae --help`")
    parser = _Parser(prog=f"pyro-vae {command}", description=_COMMANDS[command].__doc__)
    _COMMANDS[command](parser)
    return command, parser.options(rest)


class _Parser(argparse.ArgumentParser):
    """A parser that raises :class:`~pyro_vae.errors.ConfigError` where argparse prints its usage and exits."""

    def add(self, name: str, about: str, *, default: Any = None, **settings: Any) -> None:
        """Add an option with its help, which names the default."""
        if default is not None and "(default: " not in about:
            about += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
        self.add_argument(name, help=about.replace("%", "%%"), default=default, **settings)

    def add_shared(self, *names: str) -> None:
        """Add options that several commands share."""
        for name in names:
            self.add(name, **_SHARED[name])

    def options(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the value of each option; in the name of one, ``_`` is the same as ``-``."""
        words = [re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in words]
        for word in takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                raise unknown("option", option, self._option_string_actions, f"see `{self.prog} --help`")
        return vars(self.parse_intermixed_args(words))

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}: see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        sys.stdout.write(message)  # argparse would drop an error of the stream

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and isinstance(value, str):
            require_one_of(action.dest, value, action.choices)


def _overview() -> argparse.ArgumentParser:
    """Return the parser of a line without a command, which has nothing to give but help."""
    parser = _Parser(
        prog="pyro-vae",
        description="Variational autoencoders as Pyro programs: train one, get its ELBO, IWAE bound and log p(x), and "
        "look at it.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, declare in _COMMANDS.items():
        commands.add_parser(name, help=(declare.__doc__ or "").replace("%", "%%"))
    return parser


def _number(kind: type, expected: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of an option that takes a number or one of these names."""

    def read(word: str) -> Any:
        if word in names:
            return word
        try:
            return kind(word)
        except ValueError:
            spelled = " or ".join([expected, *map(repr, names)])
            raise argparse.ArgumentTypeError(f"found {word!r}, expected {spelled}") from None

    return {"type": read, "metavar": "|".join([kind.__name__.upper(), *names])}


_INT, _FLOAT = _number(int, "a whole number"), _number(float, "a number")
_SHARED: dict[str, dict[str, Any]] = {
    "run": {"about": "The run folder.", "type": Path, "metavar": "RUN"},
    "--num-images": {"about": "Use only the first INT test images. (default: all)", **_INT},
    "--seed": {"about": "The seed of the draws.", "default": 0, **_INT},
    "--data-dir": {"about": "torchvision's data folder. (default: the run's, $PYRO_VAE_DATA or data)"},
    "--json": {"about": "Print the result as JSON.", "default": False, "action": argparse.BooleanOptionalAction},
}


def _train(parser: _Parser) -> None:
    """Train a VAE, evaluate it on the test images, and draw its pictures."""
    parser.usage = "%(prog)s [OPTIONS] [DATASET]"
    hints, helps = get_type_hints(TrainConfig), _docstrings_of_fields(TrainConfig)
    dataset, *options = dataclasses.fields(TrainConfig)
    parser.add("dataset", helps["dataset"], default=dataset.default, nargs="?", **_settings(hints["dataset"]))
    for option in options:
        flag = f"--{option.name.replace('_', '-')}"
        parser.add(flag, helps[option.name], default=option.default, **_settings(hints[option.name]))
    parser.add_shared("--json")


def _settings(hint: Any) -> dict[str, Any]:
    """Return how argparse reads a field of this type."""
    kinds = alternatives(hint)
    names = [kind for kind in kinds if isinstance(kind, str)]
    if names:
        return _number(float, "a number", names) if float in kinds else {"choices": names}
    if get_origin(hint) is tuple:
        return {"nargs": "*", **_INT}
    return {int: _INT, float: _FLOAT, bool: {"action": argparse.BooleanOptionalAction}}.get(kinds[0], {})


def _docstrings_of_fields(cls: type) -> dict[str, str]:
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): ast.literal_eval(below.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def _resume(parser: _Parser) -> None:
    """Continue an interrupted run."""
    parser.add_shared("run", "--data-dir", "--json")


def _evaluate(parser: _Parser) -> None:
    """Estimate a run's ELBO, IWAE bound and log p(x) on the test images."""
    parser.add_shared("run")
    parser.add(
        "--estimator",
        "The estimator of log p(x): importance sampling, plain or Pareto-smoothed; annealed importance sampling; "
        "sequential Monte Carlo; a grid for at most 2 latent dimensions; or the one that suits this run.",
        default="auto",
        choices=("auto", *get_args(EstimatorName)),
    )
    parser.add("--num-particles", "Draws or chains per image for log p(x). (default: the estimator's)", **_INT)
    parser.add(
        "--target-stderr", "The standard error per image to reach, in nats (is, psis). (default: none)", **_FLOAT
    )
    parser.add(
        "--proposal",
        "The proposal of is and psis: the guide; the guide with a tenth of the prior; or a Gaussian refined for each "
        "image. (default: guide)",
        metavar="{" + ",".join(get_args(Proposal)) + "}",
    )
    parser.add_shared("--num-images", "--seed", "--data-dir", "--json")


def _compare(parser: _Parser) -> None:
    """Compare estimators of log p(x) on the test images, beside the truth if there are at most 2 latent dimensions."""
    parser.add_shared("run")
    estimators = get_args(EstimatorName)
    parser.add("--estimators", "The estimators. (default: all but the grid)", choices=estimators, nargs="*")
    parser.add("--num-images", "Use only the first INT test images.", default=100, **_INT)
    parser.add("--repeats", "The number of repeats of each estimator, each with its own seed.", default=1, **_INT)
    parser.add("--seed", "The seed of the first repeat.", default=0, **_INT)
    parser.add_shared("--data-dir", "--json")


def _sample(parser: _Parser) -> None:
    """Draw from a run's model: z, x and the mean E[x | z] as an .npz file, and a picture of the first 100 means."""
    parser.add_shared("run")
    parser.add("--num", "The number of draws.", default=100, **_INT)
    parser.add_shared("--seed", "--json")


def _impute(parser: _Parser) -> None:
    """Impute the missing entries of an array, with 90% intervals; without a file, the lower half of the test images."""
    parser.add_shared("run")
    parser.add(
        "file",
        "An array as .npy or .csv, without a header, in which NaN is missing; the result is a new file "
        "NAME-imputed.npz beside it. (default: test images)",
        metavar="FILE",
        nargs="?",
        type=Path,
    )
    parser.add("--num-particles", "The number of weighted draws per datapoint.", default=1000, **_INT)
    parser.add("--num-imputations", "The number of draws to keep as imputations.", default=20, **_INT)
    parser.add_shared("--num-images", "--seed", "--data-dir", "--json")


def _plot(parser: _Parser) -> None:
    """Draw a run's pictures again, or other views of it."""
    parser.add_shared("run")
    parser.add(
        "views", "The views to draw. (default: those of `train`)", choices=get_args(ViewName), nargs="*", default=()
    )
    parser.add_shared("--data-dir", "--json")


_COMMANDS = {
    declare.__name__[1:]: declare for declare in (_train, _resume, _evaluate, _compare, _sample, _impute, _plot)
}
