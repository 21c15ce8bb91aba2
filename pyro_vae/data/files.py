"""Files that are replaced whole or not at all."""

from __future__ import annotations

__all__ = ["replace_file"]

import os
import tempfile
from pathlib import Path

from ..errors import CheckpointError


def replace_file(path: str | Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace the file at ``path`` by ``content`` in one step; if anything fails, the old file stays as it was.

    Arguments:
        path: The file; its folder is created if necessary.
        content: The whole new content.
        previous: The path to which the old file moves, once the new one is complete.

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
            if previous is not None and path.exists():  # only now that the new file is complete
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); the old file is untouched"
        raise CheckpointError(path, reason) from error


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
