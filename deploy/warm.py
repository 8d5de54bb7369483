"""The warm parent of a party's programs: it has one loaded, and forks it for each flow run (SPEC 6.9, ADR 0013).

Loading Prefect, and at the coordinator PyTorch, takes a new process three to six seconds of processor time; a fork
takes milliseconds, and what is loaded is in memory once. The warm parent is itself forked from the worker's process,
before that has a thread, an open vault or a connection, and never gets any. It ends with the worker, and every program
with either of them.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self
from uuid import UUID

import anyio

from deploy.child import end_with
from protocols.files import open_log

WATCH_S = 0.1
"""Seconds between two looks at whether programs have ended."""
RUN_BYTES = 36
"""A flow run's number as text."""
LINE = 64


class Loaded(Protocol):
    """What the module of a program has."""

    def main(self, folder: Path, run_id: UUID) -> None:
        """Run the program for a flow run."""

    def ready(self, folder: Path) -> None:
        """Called in the warm parent, at first and when a program has ended: load what takes time beside it."""

    def started(self) -> None:
        """Called in the warm parent when a program was forked: what was loaded beside it is that program's."""


class Program:
    """A program that was started, as its worker sees it.

    Its socket carries the process number, then the exit code, a line each; shutting it down kills the program.
    """

    def __init__(self, words: socket.socket) -> None:
        self._words = words
        self._text = b""

    async def started(self) -> int:
        """Its process number; 0 where the warm parent has ended."""
        return int(await self._line() or 0)

    async def ended(self) -> int:
        """Wait for its end; gives its exit code, negative for a signal, 1 where the warm parent has ended."""
        code = int(await self._line() or 1)
        self._words.close()
        return code

    def kill(self) -> None:
        """Have it killed."""
        self._words.shutdown(socket.SHUT_WR)

    async def _line(self) -> bytes:
        while b"\n" not in self._text:
            await anyio.wait_readable(self._words)
            if not (more := self._words.recv(LINE)):
                return b""
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line


class Programs:
    """The worker's handle on its warm parent."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    @classmethod
    def load(cls, module: str, folder: Path) -> Self:
        """Fork the warm parent, which loads a program and waits.

        Args:
            module: the program's, with ``main(folder, run_id)``.
            folder: the party's, where its programs run and add what they print to ``processes.log``.
        """
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            ours.close()
            sys.exit(_WarmParent(theirs, module, folder).serve())
        theirs.close()
        return cls(ours)

    def start(self, run_id: UUID) -> Program:
        """Start the program for a flow run.

        Raises:
            OSError: the warm parent has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [str(run_id).encode()], [theirs.fileno()])
        return Program(ours)

    async def gone(self) -> None:
        """Wait until the warm parent has ended, which nobody has asked it to."""
        await anyio.wait_readable(self._control)


class _WarmParent:
    def __init__(self, control: socket.socket, module: str, folder: Path) -> None:
        self._control = control
        self._module = module
        self._folder = folder
        self._running: dict[int, socket.socket] = {}
        self._killed: set[int] = set()

    def serve(self) -> int:
        """Start what the worker asks for until it has gone; gives the exit code, in a program that of the program."""
        os.setsid()  # a signal from the worker's terminal is the worker's, which then goes
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if not sys.flags.safe_path:
            del sys.path[0]  # where the worker was started from, or its script lies
        program: Loaded = importlib.import_module(self._module)
        gc.freeze()  # what is loaded stays one copy in memory
        program.ready(self._folder)
        while True:
            words = [one for process, one in self._running.items() if process not in self._killed]
            ready, _, _ = select.select([self._control, *words], [], [], WATCH_S if self._running else None)
            if self._control in ready:
                run, given, _, _ = socket.recv_fds(self._control, RUN_BYTES, 1)
                if not run:
                    return self._end()
                if self._fork(socket.socket(fileno=given[0])):
                    return _code_of(program.main, self._folder, UUID(run.decode()))
                program.started()
            for process, one in tuple(self._running.items()):
                if one in ready:
                    os.kill(process, signal.SIGKILL)
                    self._killed.add(process)
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    self._forget(process, status)
                    program.ready(self._folder)

    def _fork(self, words: socket.socket) -> bool:
        """Fork a program; true in the program."""
        parent = os.getpid()
        process = os.fork()
        if process == 0:
            self._become_program(words)
            end_with(parent)
            return True
        self._running[process] = words
        _say(words, process)
        return False

    def _become_program(self, words: socket.socket) -> None:
        """Leave behind what is the warm parent's and the terminal's."""
        for held in (self._control, words, *self._running.values()):
            held.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(self._folder)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        with open(os.devnull, "rb") as nothing, open_log(self._folder / "processes.log") as log:
            for descriptor, file in ((0, nothing), (1, log), (2, log)):
                os.dup2(file.fileno(), descriptor)

    def _forget(self, process: int, status: int) -> None:
        """Tell the worker how a program has ended."""
        self._killed.discard(process)
        with self._running.pop(process) as words:
            _say(words, os.waitstatus_to_exitcode(status))

    def _end(self) -> int:
        for process in tuple(self._running):
            os.kill(process, signal.SIGKILL)
            self._forget(process, os.waitpid(process, 0)[1])
        return 0


def _code_of(main: Callable[[Path, UUID], None], folder: Path, run: UUID) -> int:
    try:
        main(folder, run)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _say(words: socket.socket, number: int) -> None:
    """Tell the worker a number, if it is still there."""
    with suppress(OSError):
        words.sendall(f"{number}\n".encode())
