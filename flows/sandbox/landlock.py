"""Landlock: a process gives up every file but those that it names, for itself and its children (SPEC 8.1).

By ctypes, since no kept binding covers network and scopes. It holds for root, too, and needs no privilege. Older
kernels know fewer rights: what they cannot restrict (TCP, signals, truncation) ``seccomp`` denies.
See https://docs.kernel.org/userspace-api/landlock.html.
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
NO_NEW_PRIVILEGES = 38
"""``prctl``'s number: without it no process may restrict itself."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
"""Making devices, sockets and FIFOs: never granted."""
MAKE_SYMLINK, REFER = 1 << 12, 1 << 13
READING = READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
"""The rights that a file can have; the others are those of a folder."""
TCP = 0b11
SCOPES = 0b11
"""Abstract unix sockets, and signals to processes outside."""
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights that a version of the interface knows."""


class NotConfined(Exception):
    """A layer could not be put on; the process must not go on to run a task's code."""


def version() -> int:
    """The version of the kernel's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    found = _libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    return max(0, int(found))


def restrict(*, readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]) -> None:
    """Give up all files but these, all TCP ports, and signals to others; for this thread and what it starts.

    Call it while there is one thread: others would keep their rights.

    Args:
        readable: files and folders, with all below; what is not there is left out.
        writable: folders in which files may also be made, changed and deleted, but no symbolic link made.
        devices: that may be read, written and controlled.

    Raises:
        NotConfined: the kernel does not take it.
    """
    known = version()
    if known == 0:
        raise NotConfined("this kernel has no Landlock")
    handled = RIGHTS[min(known, max(RIGHTS))]
    writing = handled & ~(EXECUTE | MAKE_SPECIAL | MAKE_SYMLINK | IOCTL_DEVICE)
    attributes = struct.pack("=QQQ", handled, TCP if known >= 4 else 0, SCOPES if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    ruleset = _call("ruleset", CREATE_RULESET, attributes[:size], ctypes.c_size_t(size), 0)
    try:
        for paths, rights in (
            (readable, READING),
            (writable, writing),
            (devices, READ_FILE | WRITE_FILE | IOCTL_DEVICE),
        ):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        if _libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise NotConfined("no_new_privs: the kernel does not take it")
        _call("restriction", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= OF_FILES
        _call(f"rule for {path}", ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)


def _call(what: str, number: int, *words: object) -> int:
    result = int(_libc().syscall(number, *words))
    if result < 0:
        raise NotConfined(f"Landlock's {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
