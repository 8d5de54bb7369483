"""Noise shares: each site adds its part, sized so that the fewest honest sites still carry the plan's (SPEC 12.5).

A sum of discrete Gaussians is not quite a discrete Gaussian. How far it is from one, the room that noise takes in the
ring, and what the imperfect sampler costs are bounded here.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.encoding import Segment, elements
from protocols.errors import RingTooSmall
from protocols.gaussian import TOTAL_VARIATION, discrete_gaussian, tail
from protocols.keys import KEY_BYTES, Entropy, system_entropy

MIN_SHARE = 2.0
"""The least sigma of a site, in grid steps: below it a sum's law leaves the discrete Gaussian (SPEC 12.5)."""

ACCOUNTED, SAMPLER, TAIL = 0.99, 0.005, 0.005
"""How delta is split: what the accountant may use, the sampler's distance from its law, sums that leave their ring."""


def share(sigma: float, *, threshold: int, colluding: int) -> float:
    """Size a site's noise so that threshold - colluding sites carry at least ``sigma`` in all (SPEC 12.5).

    Args:
        sigma: of the planned noise in the sum, in grid steps.
        threshold: sites needed for a sum.
        colluding: sites whose noise the coordinator may know.

    Returns:
        The sigma of each site, at least 2 grid steps.

    Raises:
        ValueError: if sigma is not above 0 and finite, or fewer than 2 honest sites would be left.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma:g} and must be above 0 and finite: without noise there is no privacy")
    return max(MIN_SHARE, sigma / math.sqrt(honest(threshold, threshold, colluding)) * (1 + 2.0**-48))


def add_noise(
    vector: NDArray[np.uint8],
    segments: Sequence[Segment],
    shares: Mapping[str, float],
    entropy: Entropy = system_entropy,
) -> None:
    """Add a site's noise to its encoded vector, in place and before the masks (SPEC 12.5).

    Every attempt has noise of its own: two sums of one vector under the same noise would give the noise away.

    Args:
        vector: the wire vector.
        segments: its table.
        shares: the site's sigma by segment, in grid steps; every segment has one, since all that leaves is noised.
        entropy: where each segment's 32-byte key comes from.

    Raises:
        ValueError: if the shares are not those of the table, or one is below 2 grid steps.
    """
    if set(shares) != {segment.name for segment in segments}:
        raise ValueError("the shares of noise are not those of the segment table")
    for segment, ring in elements(vector, segments):
        noise = discrete_gaussian(_checked(shares[segment.name]), segment.length, entropy(KEY_BYTES))
        ring += noise.astype(ring.dtype)


def carried(share: float, survivors: int, *, threshold: int, colluding: int) -> float:
    """Give the sigma of the noise that survivors carry which do not collude (SPEC 12.5).

    Raises:
        ValueError: if the survivors are fewer than the threshold, or fewer than 2 of them honest.
    """
    return share * math.sqrt(honest(survivors, threshold, colluding)) * (1 - 2.0**-50)


def honest(survivors: int, threshold: int, colluding: int) -> int:
    """Count the survivors whose noise the coordinator cannot know, at the least.

    Raises:
        ValueError: if the survivors are fewer than the threshold, or fewer than 2 of them honest.
    """
    if survivors < threshold:
        raise ValueError(f"{survivors} survivors are fewer than the threshold {threshold}: there is no such sum")
    if colluding < 0 or threshold - colluding < 2:
        raise ValueError(f"threshold ({threshold}) - colluding ({colluding}) must be at least 2: raise the threshold")
    return survivors - colluding


def divergence(share: float, sites: int, length: int) -> float:
    """Bound what the sum of shares adds to the Rényi divergence of any order >= 2 (SPEC 12.5).

    Each probability of a sum of n shares is within a factor e^β of the discrete Gaussian's with the summed variance,
    β = 5 ∑ exp(-2 π^2 share^2 k / (k + 1)) for k from 1 to n - 1 (Kairouz, Liu, Steinke 2021, section 3). A divergence
    between two such laws of ``length`` coordinates grows by at most 3 β length.

    Args:
        share: a site's sigma in grid steps, at least 2.
        sites: n, the most sites in a sum.
        length: number of coordinates.

    Raises:
        ValueError: if the share is below 2 grid steps.
    """
    exponent = 2 * (math.pi * _checked(share)) ** 2
    return 15 * length * sum(math.exp(-exponent * k / (k + 1)) for k in range(1, sites))


def tail_probability(delta: float, samples: int) -> float:
    """Give the probability that each sample of noise may have to exceed its tail (SPEC 12.7).

    Args:
        delta: the plan's.
        samples: rounds * sites * coordinates.

    Raises:
        ValueError: if delta is not strictly between 0 and 1, or there are no samples.
    """
    return TAIL * check_delta(delta) / _counted(samples)


def check_noised_headroom(segment: Segment, share: float, sites: int, probability: float) -> None:
    """Prove that a noised sum stays in its ring but with ``probability`` for each element and site (SPEC 12.7).

    sites * (ceil(max_abs * scale) + 1 + tail) < 2^(bits - 1).

    Args:
        segment: as in the table.
        share: each site's sigma, in grid steps.
        sites: the most sites in a sum.
        probability: that a site's noise exceeds its tail, as ``tail_probability`` gives it.

    Raises:
        RingTooSmall: with the numbers.
    """
    reach = tail(share, probability)
    if sites * (segment.bound + reach) >= 2 ** (segment.bits - 1):
        raise RingTooSmall(
            "plan",
            f"segment {segment.name}",
            f"{sites} sites x (ceil({segment.max_abs:g} x {segment.scale:g}) + 1 + {reach} of noise) = "
            f"{sites * (segment.bound + reach)} does not stay below 2^{segment.bits - 1}: take a larger ring, a "
            "smaller range or a smaller scale",
        )


def total_variation_budget(epsilon: float, delta: float, samples: int) -> float:
    """Give the most that a sample's law may be off: (1 + e^epsilon) samples TV is half a percent of delta (SPEC 12.7).

    Args:
        epsilon: the plan's.
        delta: the plan's.
        samples: rounds * sites * coordinates.

    Raises:
        ValueError: if an argument is out of range, or this sampler is not that good.
    """
    if not 0 < epsilon < 700:
        raise ValueError(f"epsilon is {epsilon:g} and must be above 0 and below 700")
    budget = SAMPLER * check_delta(delta) / ((1 + math.exp(epsilon)) * _counted(samples))
    if budget < TOTAL_VARIATION:
        raise ValueError(
            f"at epsilon {epsilon:g} the noise is not exact enough: take a smaller epsilon or larger delta"
        )
    return budget


def check_delta(delta: float) -> float:
    """Return delta.

    Raises:
        ValueError: if it is not strictly between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta:g} and must be strictly between 0 and 1: take less than 1 / records")
    return delta


def _checked(share: float) -> float:
    if not MIN_SHARE <= share < math.inf:
        raise ValueError(f"a site's sigma is {share:g} grid steps and must be at least 2: take a finer scale")
    return share


def _counted(number: int) -> int:
    if number < 1:
        raise ValueError(f"there must be at least 1 sample of noise, not {number}")
    return number
