"""Clipping, and how far one unit can move the encoded vector: the sensitivity (SPEC 12.4).

A bound that holds for real numbers only is no bound: in floating point the sums of neighbouring data sets differ by
more than the one unit (Casacuberta et al. 2022), and rounding to the grid moves every coordinate. Both are counted
here, in the worst case.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.errors import BadInput

MIN_BOUND, MAX_BOUND = 1e-100, 1e100


@dataclass(frozen=True, slots=True)
class Noised:
    """A segment under noise, one of those that are clipped together (SPEC 12.4).

    Attributes:
        length: number of coordinates.
        scale: grid steps per unit, as in the segment table.
        sigma: of the noise that is counted on in the sum, in grid steps.
    """

    length: int
    scale: float
    sigma: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a segment has at least 1 coordinate, not {self.length}")
        if not (0 < self.scale < math.inf and 0 < self.sigma < math.inf):
            raise ValueError("scale and sigma must be above 0 and finite: without noise there is no privacy to count")


def clip(party: str, vectors: NDArray[np.floating], bound: float) -> NDArray[np.float64]:
    """Shorten each vector whose L2 norm may exceed ``bound``; the exact norm of what is returned does not (SPEC 12.4).

    The computed norm and the shortening together err by less than (d + 8) 2^-53, so that vectors within that of the
    bound are shortened, too. A joint clip of several arrays is the clip of their concatenation.

    Args:
        party: whose vectors these are, for the error.
        vectors: shape (..., d): one vector, or a row for each record.
        bound: the largest norm, from 1e-100 to 1e100.

    Returns:
        A copy in float64.

    Raises:
        BadInput: NaN, infinity, or a number too large to square; names the party.
        ValueError: if the bound is out of range.
    """
    _check_bound(bound)
    clipped = vectors.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("...i,...i->...", clipped, clipped)
    if not np.isfinite(squares).all():
        raise BadInput(party, "clip", "a vector holds NaN, infinity or a number beyond 10^154: its training diverged")
    norms = np.sqrt(squares) * (1 + (clipped.shape[-1] + 8) * 2.0**-53)
    long = norms > bound
    factors = np.where(long, bound / np.where(long, norms, 1.0), 1.0)
    clipped *= factors[..., np.newaxis]
    return clipped


def sensitivity(bound: float, scale: float, length: int, *, summed: int = 1) -> float:
    """Bound the L2 distance between the encoded vectors of neighbouring data sets, in grid steps (SPEC 12.4).

    It is bound * scale + sqrt(length), and a slack for floating point: a unit moves a site's vector by ``bound``, and
    the site's rounding, whose randomness is the same for both, moves each coordinate by less than one step more.

    Args:
        bound: what each unit was clipped to.
        scale: grid steps per unit.
        length: number of coordinates.
        summed: the most clipped vectors that a site sums, in binary64; 1 where the unit is the site.

    Raises:
        ValueError: if an argument is out of range.
    """
    return 1 / noise_multiplier(bound, (Noised(length, scale, 1.0),), summed=summed)


def noise_multiplier(bound: float, segments: Sequence[Noised], *, summed: int = 1) -> float:
    """Give sigma over sensitivity for segments that are clipped jointly (SPEC 12.4).

    A vector that is moved by at most ``bound`` in all is moved most where the noise is thinnest in units; the rounding
    of every segment comes on top: 1 / (bound * max(scale / sigma) + sqrt(∑ length / sigma^2)). A Gaussian of this noise
    multiplier diverges at least as much as the joint release.

    Args:
        bound: what the joint vector was clipped to.
        segments: its segments.
        summed: as in ``sensitivity``.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_bound(bound)
    if not segments:
        raise ValueError("name at least one segment")
    if not 1 <= summed <= 2**24:
        raise ValueError(f"a site may sum 1 to 2^24 clipped vectors in binary64, not {summed}: take smaller batches")
    slack = summed**2 * 2.0**-51 + summed * 2.0**-38 + sum(one.length for one in segments) * 2.0**-52
    moved = bound * (1 + slack) * max(one.scale / one.sigma for one in segments)
    rounded = math.sqrt(sum(one.length / one.sigma**2 for one in segments))
    return 1 / ((moved + rounded) * (1 + 2.0**-45))


def _check_bound(bound: float) -> None:
    if not MIN_BOUND <= bound <= MAX_BOUND:
        raise ValueError(f"a clip of {bound:g} is out of range: take one from 1e-100 to 1e100")
