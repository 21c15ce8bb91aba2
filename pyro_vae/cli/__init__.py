"""The command line."""

__all__ = ["main"]

from .commands import main
