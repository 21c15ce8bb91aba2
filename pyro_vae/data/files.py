"""Files that are replaced whole or not at all."""

from __future__ import annotations

__all__ = ["replace_file"]

import os
import tempfile
from pathlib import Path

from ..errors import CheckpointError


def replace_file(path: str | Path, content: bytes, *, previous: Path | None = None) -> None:
    """Put ``content`` at ``path`` in one move; if anything fails the old file is as it was.

    Arguments:
        path: The file; its folder is made if need be.
        content: All of it.
        previous: Where the old file goes, once the new one is whole.

    Errors:
        CheckpointError: if the file cannot be written, with its path and the reason.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            if previous is not None and path.exists():  # only now that the new file is whole
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); what was there is untouched"
        raise CheckpointError(path, reason) from error


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
