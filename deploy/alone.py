"""One process a folder: who comes second is told so before it has written anything."""

import errno
import fcntl
from pathlib import Path
from typing import IO

from flows.settings import SettingsError


def alone(folder: Path, lock: str, program: str) -> IO[str]:
    """Hold a folder for one process; keep what this gives open.

    Args:
        folder: it is there.
        lock: the name of the file that is locked; nothing is written to it.
        program: what runs in the folder, for the line.

    Raises:
        SettingsError: another process holds the folder, or its file system has no locks.
        OSError: the folder cannot be written.
    """
    file = (folder / lock).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SettingsError(f"{folder}: another {program} is running for it: end that one first") from None
    except OSError as error:
        file.close()
        why = errno.errorcode.get(error.errno or 0, "no locks")
        raise SettingsError(f"{folder}: its file system has no locks ({why}): take a folder on another") from None
    return file
