"""How a command ends before its time: by a signal, a closed pipe, or what nobody foresaw. One line, and nothing stays.

A process of fedseal can be ended at any instant, since what it keeps is journaled. So a signal does not unwind it,
which could wait for a local training: it ends once others were told what they must be, in some seconds at most.
"""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from deploy import home
from deploy.shadows import hidden
from protocols.files import is_full, open_log

TELL_S = 4.0
"""Seconds that a command which is ended has to tell others so."""
LONGEST = 300
MEMORY = ("can't start new thread", "Cannot allocate memory")

_told: list[tuple[str, Callable[[], None]]] = []
_ending = threading.Event()


def listen() -> None:
    """Have SIGINT, SIGTERM and SIGHUP end this process: with one line, and without one where they come twice."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if _ending.is_set():
        os._exit(128 + number)
    _ending.set()
    line, tell = _told[-1] if _told else ("nothing was begun", lambda: None)
    # Not print: a signal may have come in the middle of another.
    with suppress(OSError):
        os.write(2, f"\nfedseal: ended by {signal.Signals(number).name}: {line}\n".encode())
    telling = threading.Thread(target=_quietly, args=(tell,), daemon=True)
    telling.start()
    telling.join(TELL_S)
    os._exit(128 + number)


def _quietly(do: Callable[[], None]) -> None:
    with suppress(Exception):
        do()


@contextmanager
def if_ended(line: str, tell: Callable[[], None]) -> Iterator[None]:
    """Say what a signal says during the block, and whom it tells of the end.

    Args:
        line: what is left and how to go on.
        tell: told before the end, for some seconds at most; what fails in it is not said.
    """
    _told.append((line, tell))
    try:
        yield
    finally:
        _told.pop()


class Heard:
    """A stream that goes on when nobody hears it any more: a pipe that was closed is no error, nor is a full disk.

    Attributes:
        lost: why something that was written has not arrived.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, if it can be."""
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if it can be."""
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        if self.lost is not None:
            return (yield)
        try:
            yield
        except OSError as error:
            self.lost = error
            with suppress(OSError, ValueError):  # what is still in the buffer would fail once more at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def one_line_at_most() -> Iterator[None]:
    """Run a command: whatever it has not foreseen is one line, and whole in a file; streams may close."""
    sys.stdout, sys.stderr = out, _ = Heard(sys.stdout), Heard(sys.stderr)
    try:
        yield
    except Exception as error:
        raise SystemExit(_say(unforeseen(error), 1)) from None
    finally:
        out.flush()
        if out.lost is not None and out.lost.errno != errno.EPIPE:
            _say(f"standard output cannot be written ({out.lost.strerror}): what it should have said is lost", 1)


def _say(line: str, code: int) -> int:
    print(f"fedseal: {line}", file=sys.stderr)
    return code


def unforeseen(error: Exception) -> str:
    """Say in one line what nobody has foreseen, and keep it whole for those who mend it."""
    if isinstance(error, ImportError | AttributeError) and (shadow := hidden()) is not None:
        return shadow
    first = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
    if is_full(error):
        return f"a disk is full ({first}): make room, and try again"
    if isinstance(error, MemoryError) or any(words in first for words in MEMORY):
        return f"too little memory, or too few processes, are allowed here ({first}): see ulimit -v and -u"
    try:
        place = home() / "errors.log"
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open_log(place) as log:
            log.write("".join(traceback.format_exception(error)).encode())
    except (OSError, RuntimeError):
        return first
    return f"{first}: this was not foreseen; all of it is in {place}"
