"""Growing pauses, between two tries of what may work in a moment."""

from collections.abc import Iterator

FIRST_S, LAST_S = 0.5, 15.0


def pauses(first_s: float = FIRST_S, last_s: float = LAST_S) -> Iterator[float]:
    """Seconds without end: each pause twice as long as the one before, up to the last."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, last_s)
