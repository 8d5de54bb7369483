"""Two small files by which a vault tells that it was restored from a copy (SPEC 7).

A vault that was put back to an earlier state has forgotten what it has answered since. Its own database cannot show
that; two files beside it can. ``place`` is written once, and the database keeps its inode and the time of its last
change, which no user can set back: a folder that was copied, unpacked or synchronised has another. ``count`` holds how
many answers were journaled: a database that was put back alone has fewer. What restores both below the file system,
such as a snapshot of the whole disk, is not noticed here.
"""

import os
from pathlib import Path

from protocols.files import private

_DIGITS = 20


class Anchor:
    """The two files, in the vault's folder."""

    def __init__(self, folder: Path) -> None:
        self._place, self._count = folder / "place", folder / "count"

    @property
    def place(self) -> str:
        """What changes when the folder is not the one that it was; the file is made if it is not there."""
        os.close(private(str(self._place), os.O_CREAT | os.O_RDONLY))
        found = self._place.stat()
        return f"{found.st_ino}.{found.st_ctime_ns}"

    @property
    def count(self) -> int:
        """How many answers were journaled, as far as this file knows; 0 where it says nothing."""
        text = self._count.read_bytes() if self._count.exists() else b""
        return int(text) if text.isdigit() else 0

    def advance(self, count: int) -> None:
        """Write a new count durably. In place, over the old one: that needs no room on a full disk."""
        file = private(str(self._count), os.O_CREAT | os.O_WRONLY)
        try:
            os.pwrite(file, b"%0*d" % (_DIGITS, count), 0)
            os.fdatasync(file)
        finally:
            os.close(file)
