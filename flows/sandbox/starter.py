"""The warm parent of task processes: ``python -P -m flows.sandbox.starter CONTROL SCRATCH MEMORY`` (SPEC 8.1).

It has PyTorch loaded and nothing else: no vault, key or credential, and no task. Each task gets a process forked from
here, which takes milliseconds where a new one takes seconds, and begins with one thread, as Landlock asks. It watches
them, kills them when told, and ends, with all of them, when the site's process does.

Commands are lines on a socket: ``start`` (with the descriptors of orders, answers and output; answered by a number),
``go N``, ``pause N``, ``kill N`` (answered by one line that says how it ended).
"""

import os
import select
import shutil
import signal
import socket
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flows.sandbox import child
from flows.sandbox.process import SCRATCH_BYTES, resident

WATCH_S = 0.1
LINE = 256
DESCRIPTORS = 3


@dataclass(slots=True)
class Starter:
    """Task processes by number, and how those ended that were not asked to.

    Attributes:
        control: the site's socket.
        scratch: the folder in which each gets its temporary one.
        memory: bytes that each may take.
    """

    control: socket.socket
    scratch: Path
    memory: int
    running: set[int] = field(default_factory=set)
    ended: dict[int, str] = field(default_factory=dict)

    def serve(self) -> None:
        """Do what the site says until it has gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while True:
            if poll.poll(WATCH_S * 1000 if self.running else None):
                text, given, _, _ = socket.recv_fds(self.control, LINE, DESCRIPTORS)
                if not text:
                    return
                for line in text.decode().splitlines():
                    self.obey(line, given)
            for process in tuple(self.running):
                self.watch(process)

    def obey(self, line: str, given: list[int]) -> None:
        """Do what one line says."""
        word, _, number = line.partition(" ")
        if word == "start":
            self.answer(str(self.start(given)))
        elif word == "kill":
            self.end(int(number), "it was told to end")
            self.answer(self.ended.pop(int(number), "it has ended"))
        elif int(number) in self.running:
            os.kill(int(number), signal.SIGCONT if word == "go" else signal.SIGSTOP)

    def answer(self, line: str) -> None:
        """Send one line to the site; where it has gone, ``serve`` ends."""
        with suppress(OSError):
            self.control.sendall(f"{line}\n".encode())

    def start(self, given: list[int]) -> int:
        """Fork a process that locks itself and then takes orders; gives its number."""
        parent = os.getpid()
        process = os.fork()
        if process == 0:
            try:
                self.control.close()
                child.main(*given, parent=parent, scratch=self.scratch, memory=self.memory)
            finally:
                os._exit(1)
        for descriptor in given:
            os.close(descriptor)
        self.running.add(process)
        return process

    def watch(self, process: int) -> None:
        """See whether a process has ended, or takes more than it may; then it is killed."""
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            self.forget(process, f"it has ended by itself, with {how(status)}")
        elif resident(process) > self.memory:
            self.end(process, "it took more than the memory that the policy allows")
        elif size(self.scratch / str(process)) > SCRATCH_BYTES:
            self.end(process, "it filled its temporary folder")

    def end(self, process: int, why: str) -> None:
        """Kill a process and wait for its end; it has no children, since it can make none."""
        if process in self.running:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            self.forget(process, why if killed else f"it has ended by itself, with {how(status)}")

    def forget(self, process: int, why: str) -> None:
        """Keep how a process has ended, and delete what it has written."""
        self.running.discard(process)
        self.ended[process] = why
        shutil.rmtree(self.scratch / str(process), ignore_errors=True)


def how(status: int) -> str:
    """What a process has ended with."""
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"


def size(folder: Path) -> int:
    """Bytes on disk below a folder, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def main(control: int, scratch: Path, memory: int) -> None:
    """Load PyTorch, say so, and serve the site's process."""
    import flows.local_work  # noqa: F401 - the point of this process

    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    starter = Starter(socket.socket(fileno=control), scratch, memory)
    starter.answer("ready")
    try:
        starter.serve()
    finally:
        for process in tuple(starter.running):
            starter.end(process, "its site has ended")
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
