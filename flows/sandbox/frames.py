"""What passes between a site and its locked child: JSON and raw arrays with a length before them (SPEC 8.1).

Nothing is pickled. The site reads no more than it allows and waits no longer than its deadline, whatever the other end
sends; what it has read is checked before it is used, since the child runs a task's code.
"""

import json
import os
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD = struct.Struct(">IQ")
"""The lengths of the JSON part and of the arrays."""
MOST_JSON = 2**23
"""Bytes of JSON in one frame; a plan of many sites is the longest."""
MOST_ARRAYS = 64
TYPES = ("|u1", "<f4", "<f8", "<i8")
PIECE = 2**20


class FrameError(Exception):
    """The other end has closed, is too slow, or sends what is no frame; one line without any of its content."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A message: a JSON object, and arrays by name."""

    words: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def send(descriptor: int, frame: Frame, *, ends: float | None = None) -> None:
    """Write a frame.

    Args:
        descriptor: of a pipe; with ``ends`` it must not block.
        frame: its arrays are of ``TYPES``.
        ends: the latest time by ``time.monotonic``; ``None`` for as long as it takes.

    Raises:
        FrameError: the other end has closed, or does not read in time.
        ValueError: an array is of another type.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in frame.arrays.items()}
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    if any(dtype not in TYPES for _, dtype, _ in table):
        raise ValueError(f"arrays must be of the types {', '.join(TYPES)}")
    text = json.dumps({"words": frame.words, "arrays": table}).encode()
    size = sum(array.nbytes for array in arrays.values())
    parts: list[bytes | memoryview] = [HEAD.pack(len(text), size) + text, *(_raw(array) for array in arrays.values())]
    for part in parts:
        rest = memoryview(part)
        while rest:
            _wait(descriptor, select.POLLOUT, ends)
            try:
                rest = rest[os.write(descriptor, rest[:PIECE]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise FrameError("the other end has closed") from None


def receive(descriptor: int, *, most: int, ends: float | None = None) -> Frame:
    """Read a frame.

    Args:
        descriptor: of a pipe.
        most: bytes that its arrays may have in all; of more, nothing is read.
        ends: the latest time by ``time.monotonic``; ``None`` for as long as it takes.

    Raises:
        FrameError: as ``send``, or this is no frame, or a larger one.
    """
    words, size = HEAD.unpack(_read(descriptor, HEAD.size, ends))
    if words > MOST_JSON or size > most:
        raise FrameError(f"more than the {most} bytes that were asked for")
    text = bytes(_read(descriptor, words, ends))
    try:
        read = json.loads(text)
        table = [(str(name), str(dtype), tuple(map(int, shape))) for name, dtype, shape in read["arrays"]]
        given = dict(read["words"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FrameError("what was sent is no frame") from None
    if len(table) > MOST_ARRAYS or any(not _is_good(dtype, shape) for _, dtype, shape in table):
        raise FrameError("arrays of another kind than asked for")
    sizes = [_bytes(dtype, shape) for _, dtype, shape in table]
    if sum(sizes) != size:
        raise FrameError("the arrays' sizes are not what was sent")
    arrays = {}
    for (name, dtype, shape), length in zip(table, sizes, strict=True):
        arrays[name] = np.frombuffer(_read(descriptor, length, ends), dtype).reshape(shape)
    return Frame(given, arrays)


def _raw(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _is_good(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype in TYPES and len(shape) <= 4 and all(length >= 0 for length in shape)


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = np.dtype(dtype).itemsize
    for length in shape:
        size *= length
    return size


def _read(descriptor: int, length: int, ends: float | None) -> bytearray:
    content = bytearray(length)
    rest = memoryview(content)
    while rest:
        _wait(descriptor, select.POLLIN, ends)
        try:
            count = os.readv(descriptor, [rest[:PIECE]])
        except BlockingIOError:
            continue
        except OSError:
            count = 0
        if count == 0:
            raise FrameError("the other end has closed")
        rest = rest[count:]
    return content


def _wait(descriptor: int, event: int, ends: float | None) -> None:
    """Wait until a pipe can be used; by ``poll``, which knows no highest descriptor."""
    if ends is None:
        return
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, ends - time.monotonic()) * 1000):
        raise FrameError("not done in time")
