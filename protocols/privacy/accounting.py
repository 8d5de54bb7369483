"""Events to epsilon and back, by Google's dp-accounting; add or remove one unit (SPEC 12.6).

There is no accountant of our own: RdpAccountant gives each event's Rényi divergences, whose sums the library converts.
The orders are integers from 2 on, since for these its formula for the sampled Gaussian holds for the discrete one, too,
term by term; the library's privacy-loss distributions are of the continuous Gaussian and would give too small an
epsilon.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols.privacy.noise import ACCOUNTED, check_delta, honest

# The library brings SciPy, which takes as long to load as PyTorch: only who prices anything waits for it.
if TYPE_CHECKING:
    from dp_accounting import DpEvent

ORDERS = (*range(2, 65), 80, 96, 128, 160, 192, 256, 384, 512, 1024)
_PRECISION = 1 + 2.0**-12  # how close to the least noise a calibration comes
_MOST = 2.0**60


@dataclass(frozen=True, slots=True)
class Event:
    """What one kind of release costs, ``count`` times (SPEC 12.6).

    Attributes:
        noise_multiplier: sigma over sensitivity, as ``noise_multiplier`` gives it for the noise that is counted on.
        sampling_rate: with which each unit takes part, independently and unknown to the coordinator; 1 where it always
            does, as in metrics.
        count: how many such releases.
        divergence: of each, what the sum of shares adds to a Rényi divergence, as ``divergence`` gives it.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1
    divergence: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"the noise multiplier is {self.noise_multiplier:g} and must be above 0 and finite")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"the sampling rate is {self.sampling_rate:g} and must be above 0 and at most 1")
        if self.count < 1:
            raise ValueError(f"the count is {self.count} and must be at least 1")
        if not 0 <= self.divergence < math.inf:
            raise ValueError(f"the divergence is {self.divergence:g} and must be at least 0 and finite")

    @property
    def dp_event(self) -> "DpEvent":
        """The event as dp-accounting knows it, once."""
        from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.dp_event import ZCDpEvent

        sampled = PoissonSampledDpEvent(self.sampling_rate, GaussianDpEvent(self.noise_multiplier))
        return ComposedDpEvent([sampled, ZCDpEvent(rho=0.0, xi=self.divergence)])


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Compose events into the epsilon of all of them together, for adding or removing one unit (SPEC 12.6).

    Args:
        events: in any order; none cost nothing.
        delta: the plan's; 99 % of it go to the accountant, the rest is the sampler's and the ring's (SPEC 12.7).

    Raises:
        ValueError: if delta is not strictly between 0 and 1.
    """
    check_delta(delta)
    if not events:
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    counts = Counter[tuple[float, float, float]]()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate, event.divergence] += event.count
    composed = sum(count * _divergences(*one) for one, count in counts.items())
    return float(compute_epsilon(ORDERS, composed, ACCOUNTED * delta)[0])


@lru_cache(maxsize=4096)
def _divergences(noise_multiplier: float, sampling_rate: float, divergence: float) -> NDArray[np.float64]:
    """The Rényi divergences of one event, which the accountant takes a tenth of a second for; they add up.

    Returns:
        One for each of ``ORDERS``.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(Event(noise_multiplier, sampling_rate, 1, divergence).dp_event)
    return np.asarray(accountant.rdp, np.float64)


def calibrate(target: float, delta: float, events_at: Callable[[float], Sequence[Event]]) -> float:
    """Find the least noise that keeps to an epsilon, to 1 part in 4,096 and never less than it takes (SPEC 12.6).

    Args:
        target: the epsilon to keep to.
        delta: the plan's.
        events_at: the events of the whole training at some noise, for instance a noise multiplier or a sigma; more
            noise must not cost more.

    Returns:
        The noise: ``epsilon(events_at(noise), delta) <= target``.

    Raises:
        ValueError: if an argument is out of range, or no noise up to 2^60 is enough.
    """
    if not 0 < target < math.inf:
        raise ValueError(f"epsilon is {target:g} and must be above 0 and finite")
    enough = 1.0
    while epsilon(events_at(enough), delta) > target:
        enough *= 2
        if enough > _MOST:
            raise ValueError(f"no noise keeps to epsilon {target:g}: take a larger epsilon or delta, or fewer rounds")
    little = enough / 2
    while little > 1 / _MOST and epsilon(events_at(little), delta) <= target:
        enough, little = little, little / 2
    while enough > little * _PRECISION:
        middle = math.sqrt(enough * little)
        if epsilon(events_at(middle), delta) <= target:
            enough = middle
        else:
            little = middle
    return enough


def realised(event: Event, survivors: int, *, threshold: int, colluding: int) -> Event:
    """Give what a planned event has cost where ``survivors`` sites made the sum (SPEC 12.5).

    Planned is the noise of threshold - colluding sites. Each further survivor adds its share, so that no survivor set
    costs more than planned.

    Raises:
        ValueError: if the survivors are fewer than the threshold, or fewer than 2 of them honest.
    """
    more = honest(survivors, threshold, colluding) / honest(threshold, threshold, colluding)
    return replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(more))


def realised_epsilon(sums: Sequence[tuple[Event, int]], delta: float, *, threshold: int, colluding: int) -> float:
    """Compose what sums have cost, each given by its planned event and its number of survivors (SPEC 12.6).

    Raises:
        ValueError: as in ``realised`` and ``epsilon``.
    """
    events = [realised(event, survivors, threshold=threshold, colluding=colluding) for event, survivors in sums]
    return epsilon(events, delta)
