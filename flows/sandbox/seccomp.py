"""seccomp: a filter in the kernel that lets a process make the calls of ``syscalls`` and no other (SPEC 8.1).

It needs no privilege, holds for all threads of the process and cannot be taken off. With it there is no socket of any
kind, whatever the kernel's Landlock knows, and no second process: ``clone`` makes threads only. A call that is not
allowed fails with EPERM; one that is newer than the list with ENOSYS, which libraries answer by an older one.
See https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

from flows.sandbox.landlock import NO_NEW_PRIVILEGES, NotConfined
from flows.sandbox.syscalls import ALWAYS, CHECKED, MACHINES, numbers

SET_FILTER, ALL_THREADS, ACTION_AVAILABLE = 1, 1, 2
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16
UNIFIED = 424
"""From here on all machines number their calls alike: those that are not listed are newer than it."""

LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
"""Instructions of the filter's machine: load a word, two jumps, mask, return."""

THREAD = 0x10000
NOT_THREAD = 0x7E020000 | 0x8000 | 0x2000
"""``clone``'s flags for new namespaces, for a sibling, and for being traced."""
ACCESS, TRUNCATE = os.O_ACCMODE, os.O_TRUNC
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""Copies, flags and locks of descriptors; not F_SETOWN, by which a process has signals sent to another."""
PRCTL = (3, 15, 16, 21, 39, 0x53564D41)
"""Reading own flags, and naming threads and memory; not PR_SET_PDEATHSIG, which outlives its parent."""
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Whether this is a terminal, its size, how much can be read, whether to block, and what an exec closes."""

Instruction = tuple[int, int, int, int]


def available() -> bool:
    """Whether this machine's filter is known here and its kernel takes filters."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    action = ctypes.c_uint32(ERRNO)
    number = numbers(CHECKED, platform.machine())["seccomp"]
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(number, ACTION_AVAILABLE, 0, ctypes.byref(action))) == 0


def install(*, gpu: bool) -> None:
    """Put the filter on this process, with all its threads; it cannot be taken off.

    Raises:
        NotConfined: the kernel does not take it.
    """
    machine = platform.machine()
    code = b"".join(struct.pack("=HBBI", *one) for one in program(machine, os.getpid(), gpu=gpu))
    text = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise NotConfined("no_new_privs: the kernel does not take it")
    number = numbers(CHECKED, machine)["seccomp"]
    if libc.syscall(number, SET_FILTER, ALL_THREADS, header) != 0:
        raise NotConfined(f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str, process: int, *, gpu: bool) -> list[Instruction]:
    """The filter as instructions (code, jump if true, jump if false, constant).

    Args:
        machine: ``x86_64`` or ``aarch64``.
        process: the number of the process itself, to which alone it may send signals.
        gpu: whether the device's own ioctls are needed.
    """
    checked = numbers(CHECKED, machine)
    filters: list[Instruction] = [
        (LOAD, 0, 0, MACHINE_AT),
        (EQUAL, 1, 0, MACHINES[machine][0]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    for number in numbers(ALWAYS, machine).values():
        filters += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for name, rule in (
        ("openat", _unless_truncated_by_reading(2)),
        ("open", _unless_truncated_by_reading(1)),
        ("clone", _masked(0, THREAD | NOT_THREAD, THREAD)),
        ("tgkill", _one_of(0, (process,))),
        ("kill", _one_of(0, (process,))),
        ("fcntl", _one_of(1, FCNTL)),
        ("prctl", _one_of(0, PRCTL)),
        ("prlimit64", _one_of(0, (0,))),
        ("ioctl", [(RETURN, 0, 0, ALLOW)] if gpu else _one_of(1, IOCTL)),
    ):
        if name in checked:
            filters += [(EQUAL, 0, len(rule), checked[name]), *rule]
    denied = [(RETURN, 0, 0, ERRNO | errno.ENOSYS), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    return [*filters, (AT_LEAST, 0, 1, UNIFIED), *denied]


def _one_of(argument: int, allowed: Sequence[int]) -> list[Instruction]:
    """Allow a call whose argument, of 32 bits, is one of these."""
    rule: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * argument)]
    for value in allowed:
        rule += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    return [*rule, (RETURN, 0, 0, ERRNO | errno.EPERM)]


def _masked(argument: int, mask: int, value: int) -> list[Instruction]:
    """Allow a call whose argument has exactly these of the mask's bits."""
    where = ARGUMENTS_AT + 8 * argument
    answers = [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    return [(LOAD, 0, 0, where), (AND, 0, 0, mask), (EQUAL, 0, 1, value), *answers]


def _unless_truncated_by_reading(argument: int) -> list[Instruction]:
    """Deny opening a file for reading that cuts it off, and the access mode 3, which asks for neither right.

    Landlock before its version 3 lets both pass where reading is allowed.
    """
    where = ARGUMENTS_AT + 8 * argument
    denied = (RETURN, 0, 0, ERRNO | errno.EPERM)
    return [
        (LOAD, 0, 0, where),
        (AND, 0, 0, ACCESS),
        (EQUAL, 0, 1, ACCESS),
        denied,
        (LOAD, 0, 0, where),
        (AND, 0, 0, ACCESS | TRUNCATE),
        (EQUAL, 0, 1, TRUNCATE),
        denied,
        (RETURN, 0, 0, ALLOW),
    ]
