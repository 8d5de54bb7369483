"""The budget of a data set: whether a sum is still allowed, and how many more would be (SPEC 12.9).

What was charged is composed by the accountant, never added up. It belongs to a data set by its name *or* its
fingerprint: neither renaming a file nor changing a row of it makes a fresh budget.
"""

from collections.abc import Sequence
from dataclasses import replace

from protocols.errors import Refused
from protocols.ledger import Budget
from protocols.privacy.accounting import Event, epsilon

_MOST = 2**31


def check_budget(site: str, data_set: str, charged: Sequence[Event], wanted: Sequence[Event], budget: Budget) -> float:
    """Refuse what a data set's budget does not allow (SPEC 12.9).

    Args:
        site: whose data these are, for the error.
        data_set: its name, for the error.
        charged: all that is spent or reserved.
        wanted: what an attempt would cost.
        budget: the data steward's.

    Returns:
        The epsilon of all together.

    Raises:
        Refused: with the numbers.
        ValueError: if the budget's delta is not strictly between 0 and 1.
    """
    whole = epsilon([*charged, *wanted], budget.delta)
    if not whole <= budget.epsilon:
        raise Refused(
            site,
            "budget",
            f"data set {data_set} has an epsilon of {budget.epsilon:g} at delta {budget.delta:g}, of which "
            f"{epsilon(charged, budget.delta):.4g} is spent or reserved; with this sum it would be {whole:.4g}",
        )
    return whole


def affordable(charged: Sequence[Event], wanted: Sequence[Event], budget: Budget) -> int:
    """Count how many times more a budget allows what is wanted, by bisection; below 2^31 (SPEC 12.9).

    Raises:
        ValueError: if nothing is wanted, or the budget's delta is not strictly between 0 and 1.
    """
    if not wanted:
        raise ValueError("name at least one event: nothing can be done any number of times")

    def allowed(times: int) -> bool:
        more = [replace(event, count=times * event.count) for event in wanted]
        return epsilon([*charged, *more], budget.delta) <= budget.epsilon

    low, high = 0, 1
    while high < _MOST and allowed(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
