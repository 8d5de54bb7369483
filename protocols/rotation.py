"""Random rotation of a vector: spreads its length evenly, so that a small ring holds it unclamped (SPEC 12.3).

Each block of 4,096 coordinates gets random signs and is multiplied by a Hadamard matrix (Ailon, Chazelle 2006; before
secure aggregation: Kairouz, Liu, Steinke 2021). Norms stay, and the sum of rotated vectors is the rotated sum: sites
rotate with the round's public seed, the coordinator turns the sum back. The seed hides nothing, and privacy does not
depend on it.

There is no padding. A rest that fills no block is covered by a last block that reaches back into the one before: two
rotations one after the other are a rotation.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocols.masks import keystream

MAX_SIDE = 64
ERROR = 2.0**-40
"""A rotated or turned-back vector is within ERROR times its norm of the exact one (derived in SPEC 12.3)."""

_CHUNK = 16  # blocks at a time: half a megabyte of float64


def rotate(vector: NDArray[np.float64], seed: bytes) -> None:
    """Rotate ``vector`` in place (SPEC 12.3).

    Args:
        vector: shape (d,), float64, contiguous, all values finite.
        seed: 32 bytes, the same for all sites of a sum.

    Raises:
        ValueError: for another shape, type or layout, or a seed that is not 32 bytes.
    """
    for blocks, signs in _blocks(vector, seed):
        blocks *= signs
        _transform(blocks)


def turn_back(vector: NDArray[np.float64], seed: bytes) -> None:
    """Undo ``rotate`` in place, up to rounding.

    Args:
        vector: as in ``rotate``.
        seed: that of ``rotate``.

    Raises:
        ValueError: as in ``rotate``.
    """
    for blocks, signs in reversed(list(_blocks(vector, seed))):
        _transform(blocks)
        blocks *= signs


def reach(norm: float, length: int, probability: float) -> float:
    """Bound the largest coordinate of a rotated vector; above it lies one with at most ``probability`` (SPEC 12.3).

    What a plan takes for ``max_abs``. Holds for every vector that does not depend on the seed, by Hoeffding's
    inequality for the random signs and the union over the coordinates.

    Args:
        norm: L2 norm of the vector.
        length: its number of coordinates.
        probability: in (0, 1).

    Raises:
        ValueError: if an argument is out of range.
    """
    if not (0 <= norm < math.inf and length >= 1 and 0 < probability < 1):
        raise ValueError("the norm must be finite, the length at least 1, the probability strictly between 0 and 1")
    return min(norm, norm / _side(length) * math.sqrt(2 * math.log(2 * length / probability)))


def _side(length: int) -> int:
    """The largest power of two up to 64 whose square, the size of a block, is at most ``length``."""
    return min(MAX_SIDE, 1 << (math.isqrt(length).bit_length() - 1))


def _blocks(vector: NDArray[np.float64], seed: bytes) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int8]]]:
    """View the vector as square blocks, a chunk at a time, with their signs: shapes (blocks, side, side)."""
    if vector.ndim != 1 or vector.dtype != np.float64 or not vector.flags.c_contiguous or not len(vector):
        raise ValueError("only a contiguous vector of float64 can be rotated in place")
    side = _side(len(vector))
    whole = len(vector) - len(vector) % side**2
    parts = [vector[start : min(start + _CHUNK * side**2, whole)] for start in range(0, whole, _CHUNK * side**2)]
    if whole < len(vector):
        parts.append(vector[-(side**2) :])
    stream = keystream(seed)
    for part in parts:
        bits = np.unpackbits(np.frombuffer(stream(-(-len(part) // 8)), np.uint8), count=len(part), bitorder="little")
        yield part.reshape(-1, side, side), (1 - 2 * bits.astype(np.int8)).reshape(-1, side, side)


def _transform(blocks: NDArray[np.float64]) -> None:
    """Multiply each block, as one long column, by the Hadamard matrix of its size over its square root.

    That matrix is the Kronecker product of the one of the side with itself, so that a block X becomes H X H / side.
    """
    hadamard = _hadamard(blocks.shape[-1])
    np.matmul(hadamard @ blocks, hadamard / len(hadamard), out=blocks)


@lru_cache
def _hadamard(side: int) -> NDArray[np.float64]:
    """Sylvester's matrix of 1 and -1."""
    if side == 1:
        return np.ones((1, 1))
    half = _hadamard(side // 2)
    return np.block([[half, half], [half, -half]])
