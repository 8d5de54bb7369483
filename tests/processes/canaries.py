"""The search for canaries: what must not leave a site, in every spelling, wherever somebody else can read.

A canary is a secret of one site: a key, a seed, a share, a row, an update, a number of examples. They are looked for in
bytes, not in parsed messages: nothing that a field is called, and no format that was forgotten, can hide them.
"""

import base64
import bz2
import lzma
import os
import re
import sqlite3
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Secret = bytes | str | int | NDArray[np.floating]

SHORTEST = 8
"""Bytes that a spelling has at least: a shorter one is found where it was not written."""
PIECE = 24
"""Bytes of a long secret that are looked for by themselves, so that a part of it is found too."""
DIGITS = 7
"""Digits of a number that make it a canary."""
PACKED = 1 << 20
"""The longest packed text that is unpacked."""

_OPENERS = {
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(31),
    b"\x78\x01": zlib.decompressobj,
    b"\x78\x5e": zlib.decompressobj,
    b"\x78\x9c": zlib.decompressobj,
    b"\x78\xda": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
}
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")


def spellings(secret: Secret) -> Iterator[bytes]:
    """The ways in which a secret gets into bytes; each at least ``SHORTEST`` long."""
    if isinstance(secret, str):
        secret = secret.encode()
    if isinstance(secret, int):  # with what stands before a number, since the digits alone are met by chance
        yield from (f"{before}{secret}".encode() for before in " :=[(,\t\"'")
        return
    if isinstance(secret, np.ndarray):
        for number in secret.flat:
            texts = {repr(float(number)), str(number), f"{number:.8f}"}
            yield from (text.encode() for text in texts if significant(text))
        yield from spellings(secret.tobytes())
        if secret.dtype == np.float32:
            yield from spellings(secret.astype(np.float64).tobytes())
        return
    for start in range(0, max(len(secret) - PIECE, 0) + 1, PIECE):
        piece = secret[start:] if len(secret) - start < 2 * PIECE else secret[start : start + PIECE]
        if len(piece) >= SHORTEST and len(set(piece)) >= SHORTEST // 2:
            yield from _spelled(piece)


def _spelled(piece: bytes) -> Iterator[bytes]:
    yield piece
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
    yield repr(piece)[2:-1].encode()
    yield str(list(piece))[1:-1].encode()
    yield str(list(piece))[1:-1].replace(" ", "").encode()
    yield str(int.from_bytes(piece, "little")).encode()
    yield str(int.from_bytes(piece, "big")).encode()
    for before in range(3):  # bytes that stand before it in the same text
        whole = slice((before * 8 + 5) // 6, (before + len(piece)) * 8 // 6)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + piece)[whole]


def significant(number: str) -> bool:
    """Whether a number in a text has enough digits to be a canary."""
    return len(number.partition("e")[0].replace(".", "").lstrip("-0")) >= DIGITS and "." in number


class Search:
    """Looks for many canaries at once.

    Args:
        canaries: secrets by name.
    """

    def __init__(self, canaries: Mapping[str, Secret]) -> None:
        self._spelled: dict[int, list[tuple[bytes, str]]] = defaultdict(list)
        for name, secret in canaries.items():
            for spelling in set(spellings(secret)):
                self._spelled[int.from_bytes(spelling[:SHORTEST], "little")].append((spelling, name))
        self._beginnings = np.array(sorted(self._spelled), "<u8")

    def __call__(self, content: bytes) -> set[str]:
        """The names of the canaries in a content, packed or not."""
        return set().union(*(self._plain(reading) for reading in readings(content)))

    def _plain(self, content: bytes) -> set[str]:
        """Compare every eight bytes with the beginnings of all spellings, and the rest where one fits."""
        found = set()
        for offset in range(min(SHORTEST, max(len(content) - SHORTEST + 1, 0))):
            words = np.frombuffer(content, "<u8", (len(content) - offset) // SHORTEST, offset)
            places = np.minimum(np.searchsorted(self._beginnings, words), len(self._beginnings) - 1)
            for word in np.flatnonzero(self._beginnings[places] == words):
                start = offset + SHORTEST * int(word)
                found |= {name for text, name in self._spelled[int(words[word])] if content.startswith(text, start)}
        return found


def readings(content: bytes) -> Iterator[bytes]:
    """A content as it is, without line breaks and escapes, and what is packed in it, also behind base64."""
    yield content
    joined = content.replace(b"\\\\", b"\\").replace(b"\\n", b"").replace(b"\n", b"")
    if joined != content:
        yield joined
    yield from unpacked(content)
    for match in _BASE64.finditer(joined):
        text = match[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        decoded = base64.b64decode(text[: len(text) // 4 * 4])
        if decoded.startswith(tuple(_OPENERS)):
            yield from unpacked(decoded)


def unpacked(content: bytes) -> Iterator[bytes]:
    """Whatever gzip, zlib, bz2 or xz give from any place of a content."""
    for magic, opener in _OPENERS.items():
        start = content.find(magic)
        while start >= 0:
            with suppress(zlib.error, lzma.LZMAError, OSError, EOFError):
                yield opener().decompress(content[start : start + PACKED])
            start = content.find(magic, start + 1)


def rows(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every cell of every table, one content a table."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            name = table.decode()
            cells = (cell for row in db.execute(f'SELECT * FROM "{name}"') for cell in row)  # noqa: S608
            yield name, b"\0".join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)


def places(home: Path, seen: Path) -> Iterator[tuple[str, bytes]]:
    """What others than the sites can read of a consortium: each place with its content.

    Args:
        home: the consortium's folder, of processes that have ended.
        seen: what a test has put aside while they ran: copies of the server's files and the exchange's objects, and
            what the relay has heard.
    """
    for table, content in rows(home / "server" / "prefect.db"):
        yield f"table {table}", content
    folders = [home / "server", home / "exchange", home / "coordinator", *sorted(seen.iterdir())]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "vault" not in path.relative_to(folder).parts:  # the coordinator's own keys
                yield f"{folder.name}/{path.relative_to(folder)}", path.read_bytes()


@contextmanager
def kept(exchange: Path, aside: Path, pause_s: float = 0.01) -> Iterator[None]:
    """Keep every object that is ever on an exchange: by a second name of the same file, which outlives the first."""
    aside.mkdir()
    over = threading.Event()

    def keep() -> None:
        while not over.wait(pause_s):
            for path in exchange.rglob("*"):
                with suppress(OSError):  # it is gone already, or was kept before
                    os.link(path, aside / f"{path.parent.name}-{path.name}")

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
