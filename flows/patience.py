"""What a sum outlasts: sites, the exchange or a disk that are in trouble for a while (SPEC 6.2).

Attempts pause, longer each time, until the trouble has lasted ``patience_s``. An exchange that is at fault is waited
for, and named instead of the sites that it has kept from answering.
"""

import time

import httpx

from flows.collect import Unfinished
from flows.exchange import ExchangeAway
from flows.pauses import pauses, retry_pauses
from flows.session import Session
from protocols.errors import BelowThreshold, ProtocolError
from protocols.files import is_full
from protocols.messages import COORDINATOR

MORE_ATTEMPTS = 4
"""Times ``max_attempts`` that a sum is attempted where that costs no privacy: half of what sites allow (RESUMED)."""


def pauses_of(live: Session) -> list[float]:
    """The pauses before each further attempt at a sum: no more than planned where an attempt costs privacy."""
    more = 1 if live.patience_s <= 0 or live.plan.privacy.unit != "none" else MORE_ATTEMPTS
    return retry_pauses(more * live.plan.max_attempts, live.patience_s)


def may_pass(error: Exception) -> bool:
    """Whether what has ended an attempt may be over soon."""
    return isinstance(error, BelowThreshold | Unfinished | ExchangeAway) or is_full(error)


def outlast(live: Session, what: str, error: Exception, left: list[float], since: float) -> bool:
    """Pause before a sum is attempted again; says what is waited for.

    Args:
        live: the training.
        what: the sum, as the log names it.
        error: what has ended the attempt.
        left: the pauses that are left; the first is taken out.
        since: when the trouble began.

    Returns:
        False where the training ends meanwhile, or the trouble has lasted too long.

    Raises:
        BelowThreshold: it has lasted too long, and the exchange is at fault.
    """
    if live.patience_s <= 0:  # where one process is all sites, only another attempt can help
        return isinstance(error, BelowThreshold) and bool(left) and not live.ending.wait(left.pop(0))
    ends, trouble = since + live.patience_s, live.exchange.trouble(COORDINATOR)
    pause_s = left.pop(0) if left and time.monotonic() < ends and not live.ending.is_set() else None
    if trouble:
        live.tell(f"{what}: {trouble}; it is waited for ({error})")
        if pause_s is not None and await_exchange(live, ends):
            return True
        step = error.step if isinstance(error, ProtocolError) else "exchange"
        lasted = f"{trouble}, for {time.monotonic() - since:.0f} s"
        raise BelowThreshold("coordinator", step, f"{lasted}: see to it, sites are not at fault") from error
    if pause_s is None:
        return False
    where = "this machine's disk is full: " if is_full(error) else ""
    live.tell(f"{what}: {where}{error}; it is attempted again in {pause_s:.0f} s")
    return not live.ending.wait(pause_s)


def await_exchange(live: Session, ends: float) -> bool:
    """Wait until the exchange answers; false where the training ends, or ``ends`` has come, meanwhile."""
    for pause_s in pauses():
        if live.ending.wait(pause_s) or time.monotonic() >= ends:
            return False
        if not live.exchange.trouble(COORDINATOR):
            return True
    raise AssertionError("pauses never end")


def server_trouble(error: httpx.HTTPError) -> str:
    """What is said of a Prefect server that has cut off an attempt."""
    return f"the Prefect server is away ({type(error).__name__})"
