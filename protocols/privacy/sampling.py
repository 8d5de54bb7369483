"""Poisson sampling: who takes part in a step, drawn by the site and known to nobody else (SPEC 12.6)."""

import numpy as np
from numpy.typing import NDArray

from protocols.masks import keystream

_WHOLE = 1 << 64


def poisson_sample(count: int, rate: float, key: bytes) -> NDArray[np.bool_]:
    """Choose each of ``count`` units independently with probability ``rate``, rounded down to a multiple of 2^-64.

    Batches drawn from the plan's seed would be known to the coordinator, and nothing would be amplified.

    Args:
        count: number of units.
        rate: above 0 and at most 1; at 1 all are chosen.
        key: 32 secret random bytes, for one step.

    Returns:
        Shape (count,).

    Raises:
        ValueError: if the rate is out of range or the key is not 32 bytes.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the sampling rate is {rate:g} and must be above 0 and at most 1")
    below = int(rate * _WHOLE)
    draws = np.frombuffer(keystream(key)(8 * count), "<u8")
    return np.ones(count, np.bool_) if below == _WHOLE else draws < np.uint64(below)
