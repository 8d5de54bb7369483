"""What sites say that they have confirmed, held against the sums that are told of (SPEC 11.4).

Each advert binds the sums of its training that its site has confirmed before. A sum needs a threshold of
confirmations, and two thresholds have an honest site in common: its next advert does not fit a receipt that leaves one
of its sums out. The coordinator checks adverts as they come, so that no site can spoil the receipt.
"""

from typing import NamedTuple

from protocols.history import NONE_CONFIRMED, next_confirmed
from protocols.messages import Advert, parse
from protocols.receipt import Entry


class Said(NamedTuple):
    """How many sums a site says that it has confirmed, and their head."""

    sums: int
    head: str


class ConfirmedSums:
    """What each site may say next, after the finished sums so far."""

    def __init__(self) -> None:
        self._allowed: dict[str, frozenset[Said]] = {}

    def allow(self, site: str, advert: Advert) -> bool:
        """Whether a site's advert fits the finished sums: all that it has confirmed are among them."""
        return _said(advert) in self._allowed.get(site, frozenset({Said(0, NONE_CONFIRMED)}))

    def add(self, entry: Entry) -> None:
        """Take in a finished sum, whose messages are verified.

        A survivor whose confirmation is not there may have confirmed or not: its answer may be lost.
        """
        confirmed = {message.sender: message.context for message in entry.confirmations}
        for message in entry.adverts:
            site, before = message.sender, _said(parse(Advert, message.body, party=message.sender, step="advert"))
            round_digest = next(iter(confirmed.values()))
            after = Said(before.sums + 1, next_confirmed(before.head, round_digest, entry.survivors))
            if site in confirmed:
                self._allowed[site] = frozenset({after})
            else:
                self._allowed[site] = frozenset({before, after} if site in entry.survivors else {before})


def _said(advert: Advert) -> Said:
    return Said(advert.confirmed_sums, advert.confirmed_head)
