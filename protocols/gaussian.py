"""Discrete Gaussian noise N_Z(0, sigma^2): an integer x in proportion to exp(-x^2 / (2 sigma^2)) (SPEC 12.2).

A Gaussian in floating point has a law of its own that says more than it should (Mironov 2012); this one has the law of
the formula, up to a total variation of ``TOTAL_VARIATION``. The method is that of Ducas et al. 2013 (BLISS): a table
draws the coarse magnitude, the fine bits are uniform, and a rejection corrects them.

Speed and exactness do not meet in floating point here. Each decision looks at the first bits of its draw, for which
comparisons of integers, or of IEEE products with a stated error, are enough in all but a few cases in a million; those
draw further bits and are compared with numbers of 192 bits. The time depends on the values: SECURITY.md leaves timing
at a site's own host out of scope.
"""

import decimal
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from protocols.masks import keystream

MIN_SIGMA, MAX_SIGMA = 2.0**-6, 2.0**40
TOTAL_VARIATION = 2.0**-170
"""How far a sample's law may be from the discrete Gaussian's, in total variation (derived in SPEC 12.2)."""

Stream = Callable[[int], bytes]

_COARSE = 512  # the table's sigma is below this; what is above comes from uniform low bits
_BITS = 192  # of a draw that is compared to the end
_FIXED = 320  # bits behind the point while a table is made
_CELLS = 16  # bits that index the guide
_CHUNK = 1 << 14  # samples at a time: the work space stays in the cache
_ROUNDOFF = 2.0**-50  # more than the five roundings of binary64 on the two sides of a comparison
_DIGITS = decimal.Context(prec=110)  # about 2^-365; its exp() is correctly rounded


@dataclass(frozen=True, slots=True)
class Table:
    """How to draw x >= 0 with probability in proportion to exp(-x^2 / (2 s^2)), s = sigma / 2^shift < 512.

    Attributes:
        shift: number of uniform bits below x.
        boundaries: the cumulative probabilities of 0, 1, … times 2^192, rounded down; the last, 2^192, is left out.
        tops: the first 64 bits of each boundary.
        guide: by the first 16 bits of a draw, its x, or -1 where a boundary has the same first bits.
    """

    shift: int
    boundaries: tuple[int, ...]
    tops: NDArray[np.uint64]
    guide: NDArray[np.int16]


def discrete_gaussian(sigma: float, length: int, key: bytes) -> NDArray[np.int64]:
    """Draw independent samples of N_Z(0, sigma^2) (SPEC 12.2; Canonne, Kamath, Steinke 2020, definition 1).

    A key serves one call: the same noise on two vectors would cancel in their difference.

    Args:
        sigma: the parameter in grid steps, from 2^-6 to below 2^40; the standard deviation is at most this.
        length: number of samples.
        key: 32 secret random bytes; all randomness is their AES-256-CTR stream.

    Returns:
        The samples, shape (length,).

    Raises:
        ValueError: if sigma is out of range or the key is not 32 bytes.
    """
    return draw(sigma, length, keystream(key))


def draw(sigma: float, length: int, stream: Stream) -> NDArray[np.int64]:
    """Draw from a given stream of random bytes: what ``discrete_gaussian`` does with its key's."""
    table = make_table(sigma)
    samples = np.empty(length, np.int64)
    filled = 0
    while filled < length:
        kept = _candidates(sigma, table, min(_CHUNK, length - filled), stream)
        samples[filled : filled + len(kept)] = kept
        filled += len(kept)
    return samples


def tail(sigma: float, probability: float) -> int:
    """Bound a sample: P(|X| > tail) is at most ``probability`` (SPEC 12.2).

    N_Z(0, sigma^2) is subgaussian with its own sigma, P(|X| >= t) <= 2 exp(-t^2 / (2 sigma^2)): the discrete Gaussian's
    moments stay below the continuous one's. So is a sum of independent ones, with the root of the summed squares.

    Args:
        sigma: the parameter in grid steps, above 0.
        probability: in (0, 1).

    Raises:
        ValueError: if an argument is out of range.
    """
    if not (0 < sigma < math.inf and 0 < probability < 1):
        raise ValueError("sigma must be above 0 and finite, and the probability strictly between 0 and 1")
    return math.ceil(sigma * math.sqrt(2 * math.log(2 / probability)))


@lru_cache(maxsize=64)
def make_table(sigma: float) -> Table:
    """Tabulate the coarse magnitude for a sigma, once.

    The weights follow from two correctly rounded exponentials: w(x + 1) = w(x) r(x) and r(x + 1) = r(x) exp(-1 / s^2),
    in integers with 320 bits behind the point, until a weight falls below 2^-200.

    Raises:
        ValueError: if sigma is not from 2^-6 to below 2^40.
    """
    if not MIN_SIGMA <= sigma < MAX_SIGMA:
        raise ValueError(f"sigma is {sigma:g} grid steps and must be from 2^-6 to below 2^40: take another scale")
    shift = max(0, math.frexp(sigma / _COARSE)[1])
    variance = Fraction(sigma) ** 2 / 4**shift
    ratio, falling = _fixed(_exp(-1 / (2 * variance))), _fixed(_exp(-1 / variance))
    weights = [1 << _FIXED]
    while weights[-1] >> (_FIXED - 200):
        weights.append(weights[-1] * ratio >> _FIXED)
        ratio = ratio * falling >> _FIXED
    total = sum(weights)
    boundaries = tuple((weight << _BITS) // total for weight in accumulate(weights[:-1]))
    tops = np.array([boundary >> (_BITS - 64) for boundary in boundaries], np.uint64)
    inside = np.bincount((tops >> np.uint64(64 - _CELLS)).astype(np.int64), minlength=1 << _CELLS)
    guide = np.where(inside == 0, np.cumsum(inside), -1).astype(np.int16)
    return Table(shift, boundaries, tops, guide)


def _candidates(sigma: float, table: Table, count: int, stream: Stream) -> NDArray[np.int64]:
    """Draw ``count`` signed magnitudes and keep those that the rejections leave.

    The stream gives first all coarse draws (8 bytes each), then signs and low bits (4), then the rejections' (4).
    """
    coarse = _coarse(table, np.frombuffer(stream(8 * count), "<u8"), stream).astype(np.int64)
    signs = np.frombuffer(stream(4 * count), "<u4")
    magnitude = coarse
    keep = np.ones(count, np.bool_)
    if table.shift:
        coarse <<= table.shift
        low = (signs & np.uint32((1 << table.shift) - 1)).astype(np.int64)
        magnitude = coarse | low
        _reject(sigma, low, magnitude + coarse, np.frombuffer(stream(4 * count), "<u4"), keep, stream)
    minus = -(signs >> np.uint32(31)).astype(np.int64)
    keep &= (magnitude | ~minus) != 0  # zero has one sign
    samples = (magnitude ^ minus) - minus
    return samples if keep.all() else samples[keep]


def _coarse(table: Table, draws: NDArray[np.uint64], stream: Stream) -> NDArray[np.int16]:
    """Count for each draw, a number in [0, 1) of 64 bits, the boundaries that are not above it."""
    coarse: NDArray[np.int16] = table.guide[draws.view("<u2")[3::4]]
    unsettled = np.flatnonzero(coarse < 0)
    open_draws = draws[unsettled]
    found = np.searchsorted(table.tops, open_draws)
    coarse[unsettled] = found
    tied = np.flatnonzero(np.append(table.tops, np.uint64(0))[found] == open_draws)
    for place in tied:  # a draw with the first 64 bits of a boundary: once in 2^50 samples
        whole = int(open_draws[place]) << (_BITS - 64) | int.from_bytes(stream((_BITS - 64) // 8), "little")
        coarse[unsettled[place]] = bisect_right(table.boundaries, whole)
    return coarse


def _reject(
    sigma: float,
    low: NDArray[np.int64],
    doubled: NDArray[np.int64],
    draws: NDArray[np.uint32],
    keep: NDArray[np.bool_],
    stream: Stream,
) -> None:
    """Keep a sample with probability exp(-t), t = low doubled / (2 sigma^2) with doubled = 2^(shift + 1) x + low.

    A draw is the first 32 bits of V in [0, 1), and a sample is kept if V >= 1 - exp(-t). Since t - t^2 / 2 <= 1 -
    exp(-t) <= t, only a draw between the two is compared with the exponential itself: once in 2^18 samples.
    """
    spread = 2 * sigma * sigma
    cost = low * doubled.astype(np.float64)  # both below 2^53: one rounding
    open_places = np.flatnonzero(draws * (spread * 2.0**-32 * (1 - _ROUNDOFF)) < cost)
    exponent, first = cost[open_places] / spread, draws[open_places] * 2.0**-32
    # 2^-32 is the bits still to come, 2^-40 more than the roundings of an exponent below 2; above 2 nothing is settled.
    lost = exponent * (1 - exponent / 2) >= first + 2.0**-32 + 2.0**-40
    keep[open_places[lost]] = False
    for place in open_places[~lost]:
        whole = int(draws[place]) << (_BITS - 32) | int.from_bytes(stream((_BITS - 32) // 8), "little")
        exact = Fraction(int(low[place]) * int(doubled[place])) / (2 * Fraction(sigma) ** 2)
        keep[place] = whole >= (1 << _BITS) - (_fixed(_exp(-exact)) >> (_FIXED - _BITS))


def _exp(exponent: Fraction) -> Decimal:
    """The exponential of a fraction to 110 digits: decimal rounds its own correctly, and the fraction's before it."""
    return _DIGITS.exp(_DIGITS.divide(Decimal(exponent.numerator), Decimal(exponent.denominator)))


def _fixed(number: Decimal) -> int:
    """A number in [0, 1] with 320 bits behind the point."""
    return int(_DIGITS.multiply(number, 1 << _FIXED))
