"""From words on the command line to a call; what cannot be understood becomes one line."""

from __future__ import annotations

__all__ = ["parse"]

import difflib
import functools
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr

import tyro

from .errors import ConfigError

Command = Callable[..., int]


def parse(commands: dict[str, Command], args: Sequence[str] | None, *, prog: str, about: str) -> Callable[[], int]:
    """The command that the words ask for, with its arguments, ready to be called; ``--help`` prints and exits.

    Errors:
        ConfigError: for words that are not understood, with the nearest spelling where there is one.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in commands.items()},
                prog=prog,
                args=args,
                config=(tyro.conf.OmitArgPrefixes,),
                description=about,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_one_line(said.getvalue(), prog)) from None


def _later(command: Command) -> Callable[..., Callable[[], int]]:
    """The command as something that the parser may call, without anything happening yet."""

    @functools.wraps(command)
    def remember(*args: object, **kwargs: object) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return remember


def _one_line(frame: str, prog: str) -> str:
    """What stands in the parser's frame: its first part, and the spelling that may have been meant."""
    text = "\n".join(line.strip("│╭╮╰╯ ") for line in frame.splitlines()[1:])  # without the title
    first, *rest = (" ".join(part.split()) for part in re.split(r"[─-]{5,}", text) if part.strip())
    first = first.split(" Got errors")[0].rstrip(".")
    first = re.sub(r"config\.|\{None\}\||, 'None'|'None', ", "", first)  # how options are kept is nobody's business
    rest = " ".join(rest)
    wrong = re.search(r"(?:invalid choice '|Unrecognized options: )([^\s',]+)", first)
    choices = re.findall(r"'([^']+)'", first.partition("Expected one of")[2])
    choices += re.findall(r"[\w-]+", rest.partition("Available subcommands: ")[2].partition(" For ")[0])
    near = difflib.get_close_matches(wrong[1], choices, n=1) if wrong else []
    near = near or re.findall(r"Perhaps you meant: (--[\w-]+)", rest)
    return f"{first}: did you mean {near[0]}?" if near else f"{first}: see {_help(frame, prog)}"


def _help(frame: str, prog: str) -> str:
    """The command whose help the parser points to."""
    found = re.search(rf"({prog}[\w -]*--help)", " ".join(frame.replace("│", " ").split()))
    return f"`{found[1] if found else f'{prog} --help'}`"
