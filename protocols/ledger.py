"""A site's ledger: what each attempt at a sum has cost its data, chained so that none is taken back (SPEC 12.8).

An attempt enters ``joined`` or, where the sum is noised, ``reserve`` with its charge. That is ``spent`` from the moment
that the masked vector may have left: the site cannot know whether it was ever unmasked. Only what was never masked is
released. Number and head of the last line ride in the site's adverts, where peers and coordinator see and keep them:
a ledger that was put back shows unless the host and all of them collude.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from protocols.contexts import SPEC_VERSION, Digest, canonical, sha256
from protocols.errors import Refused

EMPTY_LEDGER = sha256(SPEC_VERSION, "empty ledger")
"""The head of a ledger without entries."""

_STRICT = ConfigDict(extra="forbid", strict=True)
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Budget(NamedTuple):
    """What a site's data steward lets a data set cost in all: (epsilon, delta), for adding or removing one unit."""

    epsilon: float
    delta: float


class Owner(NamedTuple):
    """Whose a charge is: the name and the fingerprint of the data at the time."""

    data_set: str
    fingerprint: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Charge:
    """What one noised sum costs whoever is in a data set.

    Attributes:
        data: the data set's name at this site.
        fingerprint: digest of its content.
        events: noise multiplier, sampling rate, count and divergence of each, as in ``privacy.accounting.Event``.
    """

    data: str
    fingerprint: Digest
    events: tuple[tuple[_Positive, Annotated[float, Field(gt=0, le=1)], Annotated[int, Field(ge=1)], _Amount], ...]

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.data, self.fingerprint)


@dataclass(frozen=True, slots=True, config=_STRICT)
class LedgerEntry:
    """One line of the ledger."""

    kind: Literal["joined", "reserve", "spent", "release", "restored", "accepted"]
    context: Digest
    charge: Charge | None = None

    @property
    def line(self) -> str:
        """Its one text, which is kept and chained."""
        return canonical(asdict(self))


_ENTRY = TypeAdapter(LedgerEntry)


@lru_cache(maxsize=2**17)
def read_entry(line: str) -> LedgerEntry:
    """Read a line, once: a site reads its whole ledger in every attempt.

    Raises:
        ValueError: it is none.
    """
    return _ENTRY.validate_json(line)


def next_head(previous: str, number: int, line: str) -> str:
    """The head of a ledger after one more line, the ``number``-th from 1."""
    return sha256(SPEC_VERSION, "ledger entry", previous, str(number), line)


def check_chain(site: str, lines: Iterable[tuple[str, str]]) -> None:
    """Check that no line was changed, taken out or put in.

    Args:
        site: whose ledger it is.
        lines: each line with the head after it, oldest first.

    Raises:
        Refused: naming the first line that does not follow.
    """
    head = EMPTY_LEDGER
    for number, (line, stored) in enumerate(lines, start=1):
        head = next_head(head, number, line)
        if head != stored:
            raise Refused(site, "ledger", f"line {number} of the privacy ledger was changed: see fedseal site ledger")


def check_whole(site: str, entries: Iterable[LedgerEntry]) -> None:
    """Check that the ledger was not put back to an earlier state, or that its data steward has accounted for that.

    Raises:
        Refused: what was charged since is unknown.
    """
    marks = [entry.kind for entry in entries if entry.kind in ("restored", "accepted")]
    if marks[-1:] == ["restored"]:
        raise Refused(site, "ledger", "the vault was restored from a copy: what its data were charged with is unknown")


def related(owner: Owner, charged: Iterable[Owner]) -> set[Owner]:
    """Find the owners whose charges count against ``owner``: the same data, renamed or changed (SPEC 12.9).

    These share its name or its fingerprint, or those of one that does, and so on.
    """
    known, found = set(charged), {owner}
    while more := {one for one in known - found if any(one[0] == other[0] or one[1] == other[1] for other in found)}:
        found |= more
    return found & known


def charges(entries: Iterable[LedgerEntry], owner: Owner) -> list[Charge]:
    """Every charge that counts against a data set and was not released (SPEC 12.9)."""
    standing: dict[str, Charge] = {}
    for entry in entries:
        if entry.kind == "reserve" and entry.charge:
            standing[entry.context] = entry.charge
        elif entry.kind == "release":
            standing.pop(entry.context, None)
    owners = related(owner, (charge.owner for charge in standing.values()))
    return [charge for charge in standing.values() if charge.owner in owners]


def unspent(entries: Iterable[LedgerEntry]) -> Mapping[str, LedgerEntry]:
    """The reservations that were neither spent nor released, by context."""
    reserved: dict[str, LedgerEntry] = {}
    for entry in entries:
        if entry.kind == "reserve":
            reserved[entry.context] = entry
        elif entry.kind in ("spent", "release"):
            reserved.pop(entry.context, None)
    return reserved
