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

from ..errors import ConfigError

Command = Callable[..., int]


def parse(commands: dict[str, Command], args: Sequence[str], *, prog: str, about: str) -> Callable[[], int]:
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
        command = args[0] if args and args[0] in commands else None
        raise ConfigError(_one_line(said.getvalue(), prog, command)) from None


def _later(command: Command) -> Callable[..., Callable[[], int]]:
    """The command as something that the parser may call, without anything happening yet."""

    @functools.wraps(command)
    def remember(*args: object, **kwargs: object) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return remember


def _one_line(frame: str, prog: str, command: str | None) -> str:
    """What stands in the parser's frame: its first part, and the spelling that may have been meant."""
    text = "\n".join(line.strip("│╭╮╰╯ ") for line in frame.splitlines()[1:])  # without the title
    first, *rest = [" ".join(part.split()) for part in re.split(r"[─-]{5,}", text) if part.strip()] or [frame.strip()]
    first = re.split(r" Got errors| Arguments are applied", first)[0].rstrip(".")
    first = re.sub(r" \(applied to [^)]*\)|\{None\}\||, 'None'|'None', ", "", first).replace("'config.", "'")
    rest = " ".join(rest)
    wrong = re.search(r"(?:invalid choice '|options: )([^\s',]+)", first)
    choices = re.findall(r"'([^']+)'", first.partition("Expected one of")[2])
    choices += re.findall(r"[\w-]+", rest.partition("Available subcommands: ")[2].partition(" For ")[0])
    near = difflib.get_close_matches(wrong[1], choices, n=1) if wrong else []
    # The parser looks for spellings among the options of all commands, and knows which of them each belongs to.
    meant = rest.partition(" meant: ")[2]
    for option, owners in re.findall(r"(--[\w-]+)(?:(?! --).)*? in ((?:(?!--).)*?)--help", meant):
        if command in owners.split() and option != (wrong and wrong[1]):
            near.append(option)
    of = f"{prog} {command}" if command else prog
    return f"{first}: did you mean {near[0]}?" if near else f"{first}: see `{of} --help`"
