"""Files that are on disk whole or not at all (SPEC 7)."""

import errno
import os
import sqlite3
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file, mode 0600, so that it is on disk whole before this returns, whatever ends the process."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb", opener=private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)  # a full disk must not be kept full by what is of no use
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def private(path: str, flags: int) -> int:
    """Open a file that nobody but its owner can read."""
    return os.open(path, flags, 0o600)


def is_full(error: Exception) -> bool:
    """Whether a file or a database could not be written because there is no room."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL
