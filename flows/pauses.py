"""Growing pauses, between two tries of what may work in a moment."""

from collections.abc import Iterator

FIRST_S, LAST_S = 0.5, 15.0
LEAST_RETRY_S = 2.0
"""The shortest pause before a sum is attempted again."""


def pauses(first_s: float = FIRST_S, last_s: float = LAST_S) -> Iterator[float]:
    """Seconds without end: each pause twice as long as the one before, up to the last."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, last_s)


def retry_pauses(attempts: int, patience_s: float) -> list[float]:
    """Seconds before each further attempt at a sum: each pause twice the one before, ``patience_s`` in all (SPEC 6.2).

    Few attempts are spread over the whole of it. Of many, those that have no time left are not made.

    Args:
        attempts: how many may be made, the first among them.
        patience_s: seconds of trouble that are to be outlasted; with 0 there is no pause.
    """
    if patience_s <= 0 or attempts <= 1:
        return [0.0] * (attempts - 1)
    pause_s, left_s, found = max(LEAST_RETRY_S, patience_s / (2 ** (attempts - 1) - 1)), patience_s, list[float]()
    while len(found) < attempts - 1 and left_s > 0:
        found.append(min(pause_s, left_s))
        left_s -= found[-1]
        pause_s *= 2
    return found
