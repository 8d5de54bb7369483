"""A site's log for its data steward: what was asked, answered, refused and decided, and what it cost (SPEC 7.1).

One JSON object a line, mode 0600, in the vault's folder. Each line ends with a hash over the line before and itself:
a line that was changed or taken out of the middle shows. Whoever can write the file can write it anew from any line
on, so that a steward who wants to notice that keeps the head (``fedseal site log --verify``) somewhere else.

Several processes append: the site's worker, its participations, the command line. A process that is killed, or a full
disk, may leave half a line: the next line to be written takes its place and says so.

No line holds a secret or a record. Why local work failed may quote a record, since it is the task's own words: that
is kept in a second file, ``failures.jsonl``, which is not for showing around.
"""

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocols.contexts import SPEC_VERSION, canonical, sha256
from protocols.files import private

EMPTY_LOG = sha256(SPEC_VERSION, "empty site log")
"""The head of a log without lines."""
LONGEST_TEXT = 400
"""Characters of a field; a line thus stays below 2^16 bytes, also where each is written as an escape."""
MOST_FIELDS = 12
MOST_FAILURES = 100
"""Failures whose reasons are kept: the latest."""
LONGEST_REASON = 2000

_SHORT_TAIL_BYTES, _TAIL_BYTES = 2**11, 2**17
_EVENT = re.compile(r"^[a-z][a-z-]{0,31}$")
_OWN = ("number", "time", "event", "head")
_DURABLE = {"approved", "withdrawn", "returned", "restored", "renewed", "joined", "cut"}
"""What must outlive a crash of the machine; what a round does is in the vault's journal and ledger anyway."""

Value = str | int | float | bool | None

log = logging.getLogger("fedseal.log")


class LogChanged(Exception):
    """A log that is not as it was written; one line that names the place."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log.

    Attributes:
        number: counted from 1.
        time: when it was written, in UTC.
        event: what happened, such as ``answered``.
        fields: what else is known of it.
        head: the chain's value after this line.
    """

    number: int
    time: datetime
    event: str
    fields: dict[str, Value]
    head: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Local work that failed here: when, what was known of it, and why in the task's own words."""

    time: datetime
    fields: dict[str, Value]
    reason: str


class SiteLog:
    """The log of the site whose vault is in ``folder``; safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        self._failures = folder / "failures.jsonl"

    def append(self, event: str, **fields: Value) -> None:
        """Write a line. A log that cannot be written stops nothing: that it cannot is said in ``site.log``.

        Args:
            event: what happened: a word of ``a-z`` and ``-``.
            fields: what is known of it, plain values; ``None`` is left out, and long text is cut.

        Raises:
            ValueError: for an event or a field that no line can have.
        """
        if not _EVENT.match(event) or len(fields) > MOST_FIELDS or not fields.keys().isdisjoint(_OWN):
            raise ValueError(f"no line of a site's log: {event} with {len(fields)} fields")
        kept = _plain(fields, LONGEST_TEXT)
        try:
            with open(self.path, "r+b", opener=_open) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                number, head, cut = _end(file.fileno())
                if cut:
                    file.truncate(os.fstat(file.fileno()).st_size - cut)
                    number, head = _write(file.fileno(), number, head, "cut", {"bytes": cut})
                _write(file.fileno(), number, head, event, kept)
                if cut or event in _DURABLE:
                    os.fdatasync(file.fileno())
        except (OSError, LogChanged) as error:
            log.error("the site's log %s cannot be written: %s", self.path, error)

    def fail(self, reason: str, **fields: Value) -> None:
        """Write that local work failed; why is kept apart, for the steward alone.

        Args:
            reason: what the task's code said; it may quote a record.
            fields: as in ``append``: step, training, round, attempt, kind of the error.
        """
        self.append("failed", **fields)
        line = {"time": _now(), "fields": _plain(fields, LONGEST_TEXT), "reason": reason[:LONGEST_REASON]}
        try:
            with open(self._failures, "r+b", opener=_open) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                kept = file.read().splitlines(keepends=True)[1 - MOST_FAILURES :]
                content = b"".join([*kept, canonical(line).encode() + b"\n"])
                file.seek(0)
                file.write(content)
                file.truncate()
        except OSError as error:
            log.error("why local work failed cannot be kept in %s: %s", self._failures, error)

    def failures(self) -> list[Failure]:
        """The latest failures of local work, oldest first."""
        found = []
        for raw in _lines(self._failures):
            try:
                line = json.loads(raw)
                found.append(Failure(datetime.fromisoformat(line["time"]), line["fields"], line["reason"]))
            except (ValueError, KeyError, TypeError):
                continue  # half a line, left by a crash
        return found

    def read(self, since: datetime | None = None) -> Iterator[LogLine]:
        """Every line from a time on, oldest first; half a line at the end is not one yet.

        Raises:
            LogChanged: a line is none.
        """
        for number, raw in enumerate(_lines(self.path), start=1):
            line = _parse(raw, number)
            if since is None or line.time >= since:
                yield line

    def verify(self) -> tuple[int, str]:
        """Check the chain; gives the number of lines and the head, to be compared with one kept elsewhere.

        Raises:
            LogChanged: naming the first line that is not as it was written.
        """
        number, head = 0, EMPTY_LOG
        for number, raw in enumerate(_lines(self.path), start=1):
            line = _parse(raw, number)
            body = canonical(_body(line.number, json.loads(raw)["time"], line.event, line.fields))
            if (line.number, line.head) != (number, next_head(head, body)):
                raise LogChanged(f"line {number} is not as it was written, or one before it is missing")
            head = line.head
        return number, head


def next_head(head: str, body: str) -> str:
    """The chain's value after a line; ``body`` is its canonical JSON without ``head``."""
    return sha256(SPEC_VERSION, "site log", head, body)


def _body(number: int, time: str, event: str, fields: dict[str, Value]) -> dict[str, Any]:
    return {**fields, "number": number, "time": time, "event": event}


def _write(file: int, number: int, head: str, event: str, fields: dict[str, Value]) -> tuple[int, str]:
    """Write the line after line ``number``; gives its number and head. In one write, so that a crash cuts one line."""
    body = _body(number + 1, _now(), event, fields)
    after = next_head(head, canonical(body))
    os.lseek(file, 0, os.SEEK_END)
    line = canonical(body | {"head": after}).encode() + b"\n"
    if os.write(file, line) != len(line):
        raise OSError("the disk is full")
    return number + 1, after


def _end(file: int) -> tuple[int, str, int]:
    """Number and head of the last whole line, and the bytes of half a line behind it."""
    size = os.fstat(file).st_size
    for tail_bytes in (_SHORT_TAIL_BYTES, _TAIL_BYTES):
        start = max(0, size - tail_bytes)
        tail = os.pread(file, size - start, start)
        end = tail.rfind(b"\n")
        begin = tail.rfind(b"\n", 0, max(end, 0)) + 1
        if start == 0 and end < 0:
            return 0, EMPTY_LOG, size
        if begin > 0 or start == 0:
            last = _parse(tail[begin:end], None)
            return last.number, last.head, len(tail) - end - 1
    raise LogChanged("its last line is longer than any that is written")


def _parse(raw: bytes, place: int | None) -> LogLine:
    try:
        line = json.loads(raw)
        number, time, event, head = (line.pop(name) for name in _OWN)
        if type(number) is int and isinstance(event, str) and isinstance(head, str):
            return LogLine(number, datetime.fromisoformat(time), event, line, head)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise LogChanged(f"{'the last line' if place is None else f'line {place}'} is no line of a site's log")


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file; none where it is not there."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield raw[:-1]


def _plain(fields: dict[str, Value], longest: int) -> dict[str, Value]:
    return {
        name: value[:longest] if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _open(path: str, flags: int) -> int:
    return private(path, flags | os.O_CREAT)
