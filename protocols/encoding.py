"""Floats to ring elements and back (SPEC 3): segments, headroom, stochastic rounding.

One masked vector carries everything a site contributes to a round as *segments*, each with a ring, a scale and a range
of its own. On the wire it is the segments' elements one after another, little-endian, with nothing in between.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from protocols.errors import BadInput, Refused, RingTooSmall
from protocols.masks import keystream

CLAMPED = "clamped"
"""The segment that every table ends with: how many of the site's values were clamped to their range."""

_CHUNK = 1 << 16  # elements encoded at a time: the float64 work space stays in the cache


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Segment:
    """A named stretch of the vector (SPEC 3.1).

    Attributes:
        name: what it holds.
        length: number of elements.
        bits: the ring Z_2^bits, 16, 32 or 64.
        scale: grid steps per unit; a value x becomes an integer next to x * scale.
        max_abs: a site clamps its values to [-max_abs, max_abs].
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]
    length: Annotated[int, Field(ge=1, le=2**40)]
    bits: Literal[16, 32, 64]
    scale: Annotated[float, Field(gt=0, le=2.0**62)]
    max_abs: Annotated[float, Field(gt=0, le=2.0**62)]

    @property
    def bound(self) -> int:
        """No encoded element of a site exceeds this magnitude: ceil(max_abs * scale) + 1."""
        return math.ceil(self.max_abs * self.scale) + 1

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return self.length * self.bits // 8


def check_headroom(segments: Sequence[Segment], sites: int) -> None:
    """Prove that no sum over ``sites`` can overflow: sites * (ceil(max_abs * scale) + 1) < 2^(bits - 1) (SPEC 3.2).

    Raises:
        RingTooSmall: with the numbers, for the first segment that could.
    """
    for segment in segments:
        if sites * segment.bound >= 2 ** (segment.bits - 1):
            raise RingTooSmall(
                "plan",
                f"segment {segment.name}",
                f"{sites} sites x (ceil({segment.max_abs:g} x {segment.scale:g}) + 1) = {sites * segment.bound} does "
                f"not stay below 2^{segment.bits - 1}: take a larger ring, a smaller range or a smaller scale",
            )


def vector_bytes(segments: Sequence[Segment]) -> int:
    """The length in bytes of a vector with these segments."""
    return sum(segment.size for segment in segments)


def elements(vector: NDArray[np.uint8], segments: Sequence[Segment]) -> Iterator[tuple[Segment, NDArray[np.integer]]]:
    """View each segment of a wire vector as its unsigned ring elements, without copying.

    Raises:
        ValueError: if the vector's length is not that of the segments.
    """
    if vector.shape != (vector_bytes(segments),):
        raise ValueError("the vector's length is not that of its segments")
    start = 0
    for segment in segments:
        yield segment, vector[start : start + segment.size].view(f"<u{segment.bits // 8}")
        start += segment.size


def encode(
    site: str,
    values: Mapping[str, NDArray[np.floating]],
    segments: Sequence[Segment],
    rounding_key: bytes,
    *,
    count_clamped: bool = True,
) -> NDArray[np.uint8]:
    """Clamp, scale and round a site's values into one vector of ring elements (SPEC 3.3).

    Rounding is stochastic, floor(x * scale + u) with u uniform on the multiples of 2^-32 in [0, 1), so that the sum is
    unbiased; an integer stays what it is. The last segment, ``clamped``, is filled in here.

    Args:
        site: whose values these are, for the error.
        values: one array for each segment but ``clamped``, shape (length,).
        segments: the table; the last is named ``clamped``.
        rounding_key: 32 bytes, the AES-256-CTR key that u is drawn with.
        count_clamped: false where the sum is noised: then this count says nothing, for no noise is sized to hide it.

    Returns:
        The vector on the wire, shape (vector_bytes(segments),).

    Raises:
        Refused: a segment's values are missing, or there are others: work was not done, and no data are at fault.
        BadInput: NaN, infinity or a wrong shape; names the site.
    """
    expected = {segment.name for segment in segments} - {CLAMPED}
    if set(values) != expected or segments[-1].name != CLAMPED:
        raise Refused(site, "encode", "this site has not done its local work for this attempt")
    for segment in segments[:-1]:
        if (shape := values[segment.name].shape) != (segment.length,):
            raise BadInput(site, "encode", f"segment {segment.name} has shape {shape}, not ({segment.length},)")
    vector = np.empty(vector_bytes(segments), np.uint8)
    uniform = keystream(rounding_key)
    clamped = 0
    for segment, ring in elements(vector, segments):
        if segment.name == CLAMPED:
            ring[:] = min(clamped, int(segment.max_abs)) if count_clamped else 0
            continue
        floats = values[segment.name]
        for start in range(0, segment.length, _CHUNK):
            chunk = floats[start : start + _CHUNK].astype(np.float64)
            if not np.isfinite(chunk).all():
                raise BadInput(site, "encode", f"segment {segment.name} holds NaN or infinity")
            clamped += int(np.count_nonzero(np.abs(chunk) > segment.max_abs))
            np.clip(chunk, -segment.max_abs, segment.max_abs, out=chunk)
            chunk *= segment.scale
            whole = np.floor(chunk)
            chunk -= whole  # u is added to the fraction alone: beside a large number it would lose bits and round up
            chunk += np.frombuffer(uniform(4 * len(chunk)), "<u4") * 2.0**-32
            whole += np.floor(chunk, out=chunk)
            ring[start : start + _CHUNK] = whole.astype(np.int64).astype(ring.dtype)
    return vector


def add(total: NDArray[np.uint8], vector: NDArray[np.uint8], segments: Sequence[Segment]) -> None:
    """Add ``vector`` to ``total`` in place, each segment in its ring."""
    for (_, left), (_, right) in zip(elements(total, segments), elements(vector, segments), strict=True):
        np.add(left, right, out=left)


def decode(total: NDArray[np.uint8], segments: Sequence[Segment]) -> dict[str, NDArray[np.float64]]:
    """Read a sum back as floats: each element as a signed integer, divided by its scale (SPEC 3.4)."""
    return {name: integers / scale for name, integers, scale in _signed(total, segments)}


def integers(total: NDArray[np.uint8], segments: Sequence[Segment]) -> dict[str, NDArray[np.int64]]:
    """Read a sum as the signed integers that it holds: what the vectors and tests compare bit for bit."""
    return {name: signed for name, signed, _ in _signed(total, segments)}


def _signed(total: NDArray[np.uint8], segments: Sequence[Segment]) -> Iterator[tuple[str, NDArray[np.int64], float]]:
    for segment, ring in elements(total, segments):
        yield segment.name, ring.view(f"<i{segment.bits // 8}").astype(np.int64), segment.scale
