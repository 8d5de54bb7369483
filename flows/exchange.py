"""The exchange: where vectors too large for a message lie, by the digest of their content (SPEC 5.4).

Objects are named ``<owner>/<sha256>`` behind fsspec: a folder on one machine, a bucket for real. Nobody trusts it: size
and digest are checked on every read. It may be away for a moment: everything is tried again, after growing pauses. It
may hang: what it has not answered in time is given up, and said to be the exchange's fault.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from flows.pauses import pauses
from protocols.errors import BadMessage

PATIENCE_S = 30.0
"""Seconds for which an exchange that is away is tried again."""
QUIET_S, HANG_S = 10.0, 30.0
"""Seconds without an answer after which that is logged, and after which it is given up: within a step's deadline."""
SLOWEST_BYTES_S = 256 * 1024
"""Bytes a second that an exchange moves at least, once it answers."""
PROBE_BYTES = 32

Result = TypeVar("Result")

log = logging.getLogger("fedseal.exchange")


EXTRAS = {"s3": "'fedseal[s3]'"}
"""What to install for the exchanges that fedseal has an extra for."""


def missing_package(scheme: str) -> str:
    """What to install so that an exchange of a scheme can be used, whose package is not there."""
    known = known_implementations[scheme]
    package = known["class"].partition(".")[0]
    said = known.get("err", f"Install {package} to use {scheme}://")
    return f"{said}: pip install {EXTRAS.get(scheme, package)}"


class ExchangeAway(OSError):
    """The exchange cannot be reached, or not be written to; ``reason`` is one line without names or paths."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Exchange:
    """A store of objects at an fsspec URL, such as ``file:///path`` or ``s3://bucket/prefix``."""

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        quiet_s: float = QUIET_S,
        hang_s: float = HANG_S,
        **options: Any,
    ) -> None:
        self._files, self._root = fsspec.url_to_fs(url, **options)
        self._patience_s, self._quiet_s, self._hang_s = patience_s, quiet_s, hang_s
        self._away_since: float | None = None

    def put(self, owner: str, content: bytes | memoryview) -> str:
        """Store ``content`` for ``owner``; returns its SHA-256. Storing the same again changes nothing.

        Raises:
            ExchangeAway: it cannot be written to.
        """
        digest = hashlib.sha256(content).hexdigest()
        self._patiently(lambda: self._write(self._path(owner, digest), content), len(content))
        return digest

    def get(self, owner: str, digest: str, *, size: int) -> bytes:
        """Read an object of at most ``size`` bytes.

        Raises:
            BadMessage: naming ``owner``: the object is missing, too large, or not what its name says.
            ExchangeAway: it cannot be reached.
        """

        def read() -> bytes | None:
            path = self._path(owner, digest)
            with suppress(FileNotFoundError):
                if self._is_object(path):
                    with self._files.open(path, "rb") as file:
                        return bytes(file.read(size + 1))
            return None

        content = self._patiently(read, size)
        if content is None:
            raise BadMessage(owner, "exchange", "the object is missing from the exchange")
        if len(content) > size:
            raise BadMessage(owner, "exchange", "the object is larger than it may be")
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadMessage(owner, "exchange", "the object is not what its digest says")
        return content

    def delete(self, owner: str, digest: str) -> None:
        """Delete an object, if it is there.

        Raises:
            ExchangeAway: it cannot be reached.
        """

        def remove() -> None:
            path = self._path(owner, digest)
            with suppress(FileNotFoundError):
                if self._is_object(path):
                    self._files.rm(path)

        self._patiently(remove)

    def trouble(self, owner: str) -> str:
        """Write, read and delete an object of ``owner``; says what is wrong in one line, or ``""``."""
        if (failed := self.failing(owner)) is None:
            return ""
        error = failed[1]
        lost = "the exchange does not keep what is written to it: " if isinstance(error, BadMessage) else ""
        return f"{lost}{error.reason}"

    def failing(self, owner: str) -> tuple[str, ExchangeAway | BadMessage] | None:
        """Write, read and delete an object of ``owner``; gives which of these fails (``read from``), and with what."""
        content, step = secrets.token_bytes(PROBE_BYTES), "written to"
        try:
            digest = self.put(owner, content)
            step = "read from"
            self.get(owner, digest, size=PROBE_BYTES)
            step = "deleted from"
            self.delete(owner, digest)
        except (ExchangeAway, BadMessage) as error:
            return step, error
        return None

    def _write(self, path: str, content: bytes | memoryview) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        unfinished = f"{path}.{secrets.token_hex(8)}.unfinished"  # or a link could lie there, to another file of ours
        try:
            with self._files.open(unfinished, "wb") as file:
                file.write(content)
            self._files.mv(unfinished, path)
        except Exception:
            with suppress(Exception):  # what is half written is in nobody's way
                self._files.rm(unfinished)
            raise

    def _is_object(self, path: str) -> bool:
        """Whether a path is a file: anybody may have put a folder there, or a pipe, which would be waited for."""
        return bool(self._files.info(path)["type"] == "file")

    def _patiently(self, do: Callable[[], Result], size: int = 0) -> Result:
        """Do something with ``size`` bytes of the files, and once more after growing pauses while that fails."""
        deadline = time.monotonic() + self._patience_s
        for pause_s in pauses():
            try:
                result = self._within(do, self._hang_s + size / SLOWEST_BYTES_S)
                self._answers()
                return result
            except ExchangeAway:
                raise
            except Exception as error:  # each of fsspec's file systems raises what its library does
                self._away_since = self._away_since or time.monotonic()
                why = getattr(error, "strerror", None) or type(error).__name__
                if isinstance(error, PermissionError):
                    why += ": see its credentials, in [exchange]"
                if time.monotonic() + pause_s > deadline:
                    raise ExchangeAway(f"the exchange cannot be used ({why})") from None
                log.warning("the exchange cannot be used (%s); trying again in %g s", why, pause_s)
                time.sleep(pause_s)
        raise AssertionError("pauses never end")

    def _within(self, do: Callable[[], Result], limit_s: float) -> Result:
        """Do something in a thread of its own, which is left behind where the exchange hangs.

        Raises:
            ExchangeAway: it has not answered in time.
        """
        done: SimpleQueue[tuple[Result | None, Exception | None]] = SimpleQueue()

        def work() -> None:
            try:
                done.put((do(), None))
            except Exception as error:
                done.put((None, error))

        threading.Thread(target=work, daemon=True).start()
        began = time.monotonic()
        for wait_s in (min(self._quiet_s, limit_s), max(0.0, limit_s - self._quiet_s)):
            with suppress(Empty):
                result, error = done.get(timeout=wait_s)
                if error is not None:
                    raise error
                return result  # type: ignore[return-value]  # what ``do`` gives may be None
            self._away_since = self._away_since or began
            log.warning("the exchange has not answered for %.0f s", time.monotonic() - began)
        raise ExchangeAway(f"the exchange has not answered within {limit_s:.0f} s")

    def _answers(self) -> None:
        """Log that what was away is back."""
        since, self._away_since = self._away_since, None
        if since is not None:
            log.warning("the exchange answers again, after %.0f s", time.monotonic() - since)

    def _path(self, owner: str, digest: str) -> str:
        return f"{self._root}/{owner}/{digest}"
