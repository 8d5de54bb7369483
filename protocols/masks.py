"""Masks: AES-256-CTR keystreams added to a vector of ring elements (SPEC 4.3; NIST SP 800-38A, 6.5).

Both sites of a pair expand the same seed; one adds the mask, the other subtracts it. A seed serves one vector only:
reuse would give away the difference of two updates. The streams are made and added chunk by chunk, so that the work
space stays in the cache whatever the model's size.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 18
_BLOCK_BYTES = 16


class Ring(Protocol):
    """What masking needs to know of a segment."""

    @property
    def bits(self) -> int:
        """The ring Z_2^bits."""

    @property
    def size(self) -> int:
        """Bytes on the wire."""


class Mask(NamedTuple):
    """A seed (32 bytes) and whether its mask is added (+1) or subtracted (-1)."""

    seed: bytes
    sign: Literal[1, -1]

    def __repr__(self) -> str:
        return f"Mask({self.sign:+d})"


def keystream(seed: bytes) -> Callable[[int], bytes]:
    """Stretch a 32-byte seed: each call gives the next so many bytes of AES-256-CTR from counter zero."""
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()
    return lambda length: encryptor.update(bytes(length))


def apply_masks(vector: NDArray[np.uint8], segments: Sequence[Ring], masks: Sequence[Mask]) -> None:
    """Add every mask to ``vector`` in place, each segment in its own ring (SPEC 4.3).

    One keystream a mask runs through all segments in wire order.

    Args:
        vector: the wire vector, shape (sum of segment sizes,).
        segments: the rings, in wire order.
        masks: the seeds and signs; a seed is 32 bytes.

    Raises:
        ValueError: if a seed is not 32 bytes or the vector is not as long as its segments.
    """
    if vector.shape != (sum(segment.size for segment in segments),):
        raise ValueError("the vector's length is not that of its segments")
    streams = [
        (Cipher(algorithms.AES256(seed), modes.CTR(bytes(_BLOCK_BYTES))).encryptor(), sign) for seed, sign in masks
    ]
    zeros = memoryview(bytes(CHUNK_BYTES))
    stretch = bytearray(CHUNK_BYTES + _BLOCK_BYTES - 1)  # update_into asks for one block less a byte of slack
    start = 0
    for segment in segments:
        ring = np.dtype(f"<u{segment.bits // 8}")
        for offset in range(start, start + segment.size, CHUNK_BYTES):
            size = min(CHUNK_BYTES, start + segment.size - offset)
            target = vector[offset : offset + size].view(ring)
            mask = np.frombuffer(stretch, ring, size // ring.itemsize)
            for encryptor, sign in streams:
                encryptor.update_into(zeros[:size], stretch)
                if sign > 0:
                    np.add(target, mask, out=target)
                else:
                    np.subtract(target, mask, out=target)
        start += segment.size
