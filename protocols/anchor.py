"""Files by which a vault tells that it was restored from a copy (SPEC 7).

A vault that was put back to an earlier state has forgotten what it has answered since. Its own database cannot show
that; files that change with it can, since the time of a file's last change (ctime) is set by the system alone:

- ``place`` is written once. A folder that was copied, unpacked or moved to another disk has another one.
- ``count.0`` and ``count.1`` are written in turns, one after each commit, with the number of changes so far. A commit
  keeps the inode and the time of the one that is not its turn. What puts back an earlier database finds that file
  written since, whether it is then put back, too, or skipped as unchanged.
- the inode of ``vault.sqlite``: whoever puts a new file in its place gives it another.
- an ``epoch``, where one is named: a file outside of the folder with the number of changes, for a disk that is not put
  back together with the vault's.

What restores all of these below the file system, such as a snapshot of the whole machine, is not noticed here: the
adverts tell it to the peers (SPEC 12.8).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.files import private

_DIGITS = 20


class Anchor:
    """The files in the vault's folder, and the epoch outside.

    Args:
        folder: the vault's.
        epoch: where the epoch is kept, if anywhere.
    """

    def __init__(self, folder: Path, epoch: Path | None = None) -> None:
        self._place, self._database = folder / "place", folder / "vault.sqlite"
        self._counts = (folder / "count.0", folder / "count.1")
        self._earlier, self._epoch = folder / "count", epoch
        self._turn = private(str(folder / "turn"), os.O_CREAT | os.O_RDWR)

    def close(self) -> None:
        """Close what is open."""
        if self._turn >= 0:
            os.close(self._turn)
        self._turn = -1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from a commit until this one's count is written."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self._turn >= 0:
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    @property
    def place(self) -> str:
        """What changes when the folder is not the one that it was; the file is made if it is not there."""
        os.close(private(str(self._place), os.O_CREAT | os.O_RDONLY))
        return _identity(self._place)

    def renew_place(self) -> str:
        """Change the place, so that a vault of an earlier version that is put back here finds another one."""
        os.utime(self._place)
        return self.place

    @property
    def database(self) -> str:
        """The inode of the database."""
        return str(self._database.stat().st_ino)

    def kept(self, changes: int) -> str:
        """What the commit of so many changes keeps: of the file that was written after the one before it."""
        return _identity(self._counts[(changes - 1) % 2])

    @property
    def changes(self) -> int:
        """How many changes were committed, as far as the files know; 0 where they say nothing."""
        return max(map(_number, self._counts))

    @property
    def answers(self) -> int:
        """How many answers were journaled, as far as an earlier version's file knows."""
        return _number(self._earlier)

    def advance(self, changes: int, name: str | None) -> None:
        """Write a new count durably. In place, over the old one: that needs no room on a full disk.

        Args:
            changes: how many there were.
            name: the vault's, where it has an epoch.
        """
        _write(self._counts[changes % 2], b"%0*d" % (_DIGITS, changes))
        if self._epoch is not None and name is not None:
            _write(self._epoch, b"%0*d %s\n" % (_DIGITS, changes, name.encode()))

    def epoch(self, name: str | None) -> int:
        """How many changes were committed, as far as the epoch knows.

        Raises:
            OSError: the file is not there, or is another vault's: nobody but the data steward can tell why.
        """
        if self._epoch is None:
            return 0
        found = self._epoch.read_bytes().split() if name or self._epoch.exists() else []
        if name is None and not found:
            return 0
        if name is None or len(found) != 2 or found[1] != name.encode():
            raise OSError(f"{self._epoch}: the epoch is another vault's, or this vault is older than it")
        return int(found[0])

    @property
    def has_epoch(self) -> bool:
        """Whether one is named."""
        return self._epoch is not None


def _identity(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_ino}.{found.st_ctime_ns}"


def _number(path: Path) -> int:
    text = path.read_bytes() if path.exists() else b""
    return int(text) if text.isdigit() else 0


def _write(path: Path, content: bytes) -> None:
    file = private(str(path), os.O_CREAT | os.O_WRONLY)
    try:
        os.pwrite(file, content, 0)
        os.fdatasync(file)
    finally:
        os.close(file)
