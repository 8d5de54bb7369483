"""Files that are on disk whole or not at all (SPEC 7)."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file, mode 0600, so that it is on disk whole before this returns, whatever ends the process."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "wb", opener=private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def private(path: str, flags: int) -> int:
    """Open a file that nobody but its owner can read."""
    return os.open(path, flags, 0o600)
