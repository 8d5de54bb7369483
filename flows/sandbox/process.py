"""What a locked child is besides its files and calls: limits, no privileges, a short environment (SPEC 8.1)."""

import ctypes
import os
import platform
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.sandbox.landlock import NotConfined

FILE_BYTES = 64 * 2**20
"""The longest file that a task may write into its own temporary folder."""
SCRATCH_BYTES = 256 * 2**20
"""What may lie in that folder in all."""
MOST_FILES = 256
"""Files that are open at once."""

PASSED = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TZ",
)
"""The only variables of the site's environment that a task's process gets."""

PARENT_DEATH, DUMPABLE = 1, 4
"""``prctl``'s numbers."""
CAPABILITIES_VERSION = 0x20080522
READ_ALL = 2
"""The one capability that stays where it is held: a site run by root reads data of other owners."""


def environment(given: Mapping[str, str], *, scratch: Path, imports: str) -> dict[str, str]:
    """The environment of a task's process.

    Args:
        given: the site's.
        scratch: the only folder that it may write into.
        imports: what ``PYTHONPATH`` is.
    """
    kept = {name: given[name] for name in PASSED if name in given}
    return kept | {
        "HOME": str(scratch),
        "LOGNAME": "task",
        "MALLOC_ARENA_MAX": "4",  # each reserves memory that the limit would count
        "MPLCONFIGDIR": str(scratch),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": imports,
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
        "USER": "task",
    }


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, and let nobody look into it or dump it.

    Raises:
        NotConfined: the parent has ended already.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        libc.prctl(DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:
        raise NotConfined("the parent has ended")


def limit(*, memory: int | None) -> None:
    """Limit this process for good: memory, the size and number of files, and no dump of its memory.

    Args:
        memory: bytes beyond what it has mapped now; ``None`` where a GPU's driver reserves address space at will.
    """
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_NOFILE, MOST_FILES)]
    if memory is not None:
        limits.append((resource.RLIMIT_AS, mapped() + memory))
    for kind, most in limits:
        highest = resource.getrlimit(kind)[1]
        most = most if highest == resource.RLIM_INFINITY else min(most, highest)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":  # others know no limit of the address space
                raise NotConfined("the limits cannot be set") from None


def mapped() -> int:
    """Bytes of address space that this process has; 0 where that is not told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def resident(process: int) -> int:
    """Bytes of memory that a process takes; 0 where that is not told."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def drop_privileges() -> None:
    """Give up every capability but that of reading; a site that is not run by root has none.

    Raises:
        NotConfined: the kernel does not take it.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    if libc.capget(header, sets) != 0:
        raise NotConfined("capabilities: the kernel does not tell them")
    kept = sets[1] & 1 << READ_ALL
    if libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)) != 0:
        raise NotConfined("capabilities: the kernel does not take them")
