"""Which layers of the sandbox hold on this host, and why others do not: for ``fedseal site status`` (SPEC 8.1)."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.sandbox import landlock, seccomp

Setting = Literal["required", "strongest", "none"]
"""``[policy] sandbox``: refuse to work unless files and network are shut off; whatever the host has; in the site."""
PROBE_S = 10.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the sandbox.

    Attributes:
        name: of the mechanism.
        holds: whether it does on this host.
        why: what it shuts off, or what is missing.
    """

    name: str
    holds: bool
    why: str


def layers() -> tuple[Layer, ...]:
    """Every layer that fedseal knows, as it is on this host."""
    known = landlock.version()
    linux = sys.platform == "linux"
    elsewhere = "" if linux else "needs Linux"
    return (
        Layer("process", True, "a process of its own: no key, credential or descriptor, a short environment"),
        Layer(
            "landlock",
            known > 0,
            f"no file but the task's (version {known})" if known else elsewhere or "this kernel has it not, or off",
        ),
        Layer(
            "seccomp",
            seccomp.available(),
            "no socket, no second process, no other process's memory or signals"
            if seccomp.available()
            else elsewhere or f"no filter is known for {platform.machine()}, or the kernel takes none",
        ),
        _bubblewrap(),
        Layer("limits", linux, "memory, files, temporary folder, time" if linux else "time and temporary folder only"),
    )


def missing(found: tuple[Layer, ...]) -> str:
    """What keeps a host from holding what ``sandbox = "required"`` asks; empty where it holds.

    Files must be shut off by Landlock or bubblewrap, calls (and with them the network) by seccomp.
    """
    holds = {layer.name for layer in found if layer.holds}
    lacks = [] if holds & {"landlock", "bubblewrap"} else ["landlock or bubblewrap"]
    lacks += [name for name in ("seccomp", "limits") if name not in holds]
    return ", ".join(lacks)


def bubblewrap_command() -> str | None:
    """bubblewrap's path, where it is installed and works."""
    found = shutil.which("bwrap")
    return found if found is not None and _works(found) == "" else None


def _bubblewrap() -> Layer:
    found = shutil.which("bwrap")
    if found is None:
        return Layer("bubblewrap", False, "not installed: apt install bubblewrap")
    why = _works(found)
    return Layer("bubblewrap", not why, why or "own view of files, network and processes")


@functools.cache
def _works(command: str) -> str:
    """Try bubblewrap once; gives what it says where it does not work."""
    words = [command, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--cap-drop", "ALL"]
    words += [] if os.geteuid() == 0 else ["--unshare-user"]
    words += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", str(Path("/bin/true"))]
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            words, capture_output=True, timeout=PROBE_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not start ({type(error).__name__})"
    said = done.stderr.decode(errors="replace").splitlines()
    return "" if done.returncode == 0 else (said[0][:200] if said else f"exit code {done.returncode}")
