"""The site's handle on the warm parent and its children: start, pause, kill, and what they print (SPEC 8.1)."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flows.sandbox import view
from flows.sandbox.host import Setting, bubblewrap_command, layers, missing
from flows.sandbox.process import SCRATCH_BYTES, environment
from flows.workshop import WorkFailed

START_S = 120.0
"""Seconds that the warm parent may take to load PyTorch, and a child to import its task: no part of a work's limit."""
ANSWER_S = 10.0
"""Seconds for one word of the warm parent."""
LOG_BYTES = 2**20
"""What one child may print into the site's log."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a site's sandbox is made of.

    Attributes:
        tasks: import paths of the tasks that may run.
        data: the folder of each data set by name.
        setting: ``required`` or ``strongest``.
        memory_mib: that each child may take.
        log: the file that what tasks print is added to; ``None`` throws it away.
        bubblewrap: whether to use it where it works.
    """

    tasks: Sequence[str]
    data: Mapping[str, Path]
    setting: Setting = "strongest"
    memory_mib: int = 8192
    log: Path | None = None
    bubblewrap: bool = True


class WarmParent:
    """The warm parent (``flows.sandbox.starter``): it starts at once, and is waited for at the first child.

    Args:
        rules: the site's.
        tasks: that it may be asked for; all of the rules' where Landlock narrows each child's view.
        data: the data sets likewise.

    Raises:
        WorkFailed: the host cannot hold what the site requires.
    """

    def __init__(self, rules: Rules, tasks: Sequence[str], data: Sequence[Path]) -> None:
        self.rules = rules
        found_here = layers()
        if rules.setting == "required" and (lacks := missing(found_here)):
            raise WorkFailed(f"the policy requires the sandbox, and this host lacks {lacks}")
        self.holds = {layer.name for layer in found_here if layer.holds}
        self._shown = tuple(tasks), tuple(data)
        self.view = _view(*self._shown)
        self._places = view.places(self.view)
        self._scratch = Path(tempfile.mkdtemp(prefix="fedseal-task-"))
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._ready = False
        words = [sys.executable, "-P", "-m", "flows.sandbox.starter"]
        words += [str(theirs.fileno()), str(self._scratch), str(rules.memory_mib * MEBIBYTE)]
        command = bubblewrap_command() if rules.bubblewrap else None
        if command is not None:
            words = [*view.bubblewrap(command, self.view, scratch=self._scratch, scratch_bytes=SCRATCH_BYTES), *words]
        with theirs, open_log(rules.log) as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                words,
                env=environment(os.environ, scratch=self._scratch, imports=view.imports()),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it cannot start another child."""
        try:
            return not self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def current(self) -> bool:
        """Whether it shows what is there now, and no package or data set that another has taken the place of."""
        now = _view(*self._shown)
        return now == self.view and view.places(now) == self._places

    def let_go(self) -> None:
        """Leave it to a process that was forked from this one, with which it then ends."""
        self._control.close()

    def start(self, orders: int, answers: int, output: int) -> int:
        """Start a child with these descriptors; gives the number that it is told by.

        Raises:
            WorkFailed: there is no answer.
        """
        with self._lock:
            if not self._ready:
                self._line(START_S)
                self._ready = True
            socket.send_fds(self._control, [b"start\n"], [orders, answers, output])
            return int(self._line(ANSWER_S))

    def tell(self, word: str, child: int) -> None:
        """Say ``go`` or ``pause``."""
        with self._lock, contextlib.suppress(OSError):
            self._control.sendall(f"{word} {child}\n".encode())

    def kill(self, child: int) -> str:
        """Kill a child; gives one line that says how it ended. Where nobody answers, all of them are killed."""
        try:
            with self._lock:
                self._control.sendall(f"kill {child}\n".encode())
                return self._line(ANSWER_S)
        except (OSError, WorkFailed):
            self.close()
            return "its parent has ended"

    def close(self) -> None:
        """Kill the warm parent and all that it has started, and wait for their end."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._control.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _line(self, limit_s: float) -> str:
        ends, text = time.monotonic() + limit_s, b""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while not text.endswith(b"\n"):
            if not poll.poll(max(0.0, ends - time.monotonic()) * 1000):
                raise WorkFailed("the parent of task processes does not answer")
            if not (more := self._control.recv(1)):
                raise WorkFailed("the parent of task processes has ended: the log of processes says why")
            text += more
        return text.decode().strip()


def _view(tasks: Sequence[str], data: Sequence[Path]) -> view.View:
    packages = [found for task in tasks if (found := view.find_package(task)) is not None]
    return view.view(packages, [path for path in data if path.exists()])


@dataclass(frozen=True, slots=True)
class Child:
    """A running child: its number at its parent, its pipes, and the parent."""

    number: int
    orders: int
    answers: int
    parent: WarmParent

    def end(self) -> str:
        """Kill it and close its pipes; gives how it ended."""
        said = self.parent.kill(self.number)
        for descriptor in (self.orders, self.answers):
            os.close(descriptor)
        return said


def open_log(path: Path | None) -> BinaryIO:
    """A log to add to, that its owner alone reads."""
    return open(os.devnull, "ab") if path is None else os.fdopen(private(path), "ab")


def private(path: Path) -> int:
    """Open a file to add to, readable by its owner alone."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def keep_output(said: int, log: Path | None) -> None:
    """Add what a child prints to the log, up to ``LOG_BYTES``, and read on so that it does not wait."""
    left = LOG_BYTES
    with open(said, "rb", buffering=0) as pipe, open_log(log) as kept:
        while piece := pipe.read(2**16):
            kept.write(piece[:left])
            kept.flush()
            left = max(0, left - len(piece))
