"""Files that are on disk whole or not at all (SPEC 7), and TOML files that anybody may have written."""

import errno
import os
import secrets
import sqlite3
import tomllib
from pathlib import Path
from typing import IO, Any

MOST_DOTS = 100
"""In a line of TOML: what ``tomllib`` needs grows with the square of a key's parts, and takes gigabytes for 64 KiB."""

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


def claim(path: Path, owner: bytes) -> bool:
    """Claim a place for good by a file that says whose it is: it comes to be whole and once, whoever comes at once.

    Returns:
        Whether it is the owner's, by this claim or by one of the same owner before.
    """
    whole = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_whole(whole, owner)
    try:
        os.link(whole, path)
    except FileExistsError:
        return path.read_bytes() == owner
    finally:
        whole.unlink()
    return True


class NotToml(Exception):
    """A file that does not read as TOML; one line that says why."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: it cannot be read.
        NotToml: it is not TOML in UTF-8 (with a byte-order mark or without), names something twice, or is nested too
            deep or a number too long for Python.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
            raise NotToml(f"a line has more than {MOST_DOTS} dots")
        return tomllib.loads(text)
    except UnicodeDecodeError:
        raise NotToml("it is not UTF-8: save it as that") from None
    except (ValueError, RecursionError) as error:
        raise NotToml(" ".join(str(error).split())[:200]) from None


def private(path: str, flags: int) -> int:
    """Open a file that nobody but its owner can read."""
    return os.open(path, flags, 0o600)


def open_log(path: Path) -> IO[bytes]:
    """Open a log, to write behind what is in it, that nobody but its owner reads: a task may print anything.

    One that was made before, for others to read too, is closed to them.
    """
    file = open(path, "ab", opener=private)
    os.fchmod(file.fileno(), 0o600)
    return file


def is_full(error: BaseException) -> bool:
    """Whether a file or a database could not be written because there is no room."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL
