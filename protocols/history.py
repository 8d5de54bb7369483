"""What a site's advert says of its past, and what shows that a vault was put back (SPEC 4.1, 12.8).

Every advert enters a line into its site's one ledger, whatever the training, and names the line of the advert before
it: a site's adverts are a chain. Adverts of several trainings may be seen in any order, so that an older one is no
fault. A fork is: two adverts after the same one, two heads of one number, or fewer answers than before. Only a vault
that has forgotten what it said can make one.

The advert also says which sums of its training the site has confirmed, as a number and a chained digest: whoever holds
the later messages of a training sees that an earlier sum is missing from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from protocols.contexts import SPEC_VERSION, sha256
from protocols.ledger import EMPTY_LEDGER

NONE_CONFIRMED = sha256(SPEC_VERSION, "no confirmed sum")
"""The head of a training's confirmed sums before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A site's past, as its next advert in a training tells it.

    Attributes:
        ledger_entries, ledger_head: how many lines its ledger has, this attempt's among them, and the last head.
        previous_entries, previous_head: the same, as its advert before this one said them, in whatever training.
        answers: how many answers its journal has had, before this one.
        confirmed_sums, confirmed_head: how many sums of this training it has confirmed, and their chained digest.
    """

    ledger_entries: int
    ledger_head: str
    previous_entries: int
    previous_head: str
    answers: int
    confirmed_sums: int
    confirmed_head: str


NO_HISTORY = History(
    ledger_entries=0,
    ledger_head=EMPTY_LEDGER,
    previous_entries=0,
    previous_head=EMPTY_LEDGER,
    answers=0,
    confirmed_sums=0,
    confirmed_head=NONE_CONFIRMED,
)
"""The past of a site that has none."""


class Past(NamedTuple):
    """What an advert says beside its own number and head, and where it was made."""

    previous_entries: int
    previous_head: str
    answers: int
    training: str
    round: int
    attempt: int
    confirmed_sums: int
    confirmed_head: str


class Seen(NamedTuple):
    """An advert as a witness keeps it; ``past`` is ``None`` where only number and head are known."""

    entries: int
    head: str
    past: Past | None = None


def contradict(one: Seen, other: Seen) -> bool:
    """Whether no vault that has forgotten nothing can have made both adverts (SPEC 12.8); their order is of no account.

    Adverts that witnesses see late, or never, make no contradiction.
    """
    first, second = sorted((one, other), key=lambda seen: seen.entries)
    if first.entries == second.entries:
        return first.head != second.head or (None not in (first.past, second.past) and first.past != second.past)
    return not (_follows(first, second) and _follows_in_training(first.past, second.past))


def next_confirmed(head: str, round_digest: str, survivors: Iterable[str]) -> str:
    """The head of a training's confirmed sums after one more (SPEC 4.4)."""
    return sha256(SPEC_VERSION, "confirmed sum", head, round_digest, *sorted(survivors))


def _follows(first: Seen, second: Seen) -> bool:
    """Whether the ledger of ``second`` may be a later state of that of ``first``."""
    if second.past is None:
        return True
    said = second.past.previous_entries, second.past.previous_head
    if said[0] < first.entries or (said[0] == first.entries and said[1] != first.head):
        return False
    return first.past is None or first.past.answers < second.past.answers


def _follows_in_training(first: Past | None, second: Past | None) -> bool:
    """Whether, in one training, the later advert is of a later attempt and has forgotten no confirmed sum."""
    if first is None or second is None or first.training != second.training:
        return True
    if (first.round, first.attempt) >= (second.round, second.attempt):
        return False
    if first.confirmed_sums == second.confirmed_sums:
        return first.confirmed_head == second.confirmed_head
    return first.confirmed_sums < second.confirmed_sums
