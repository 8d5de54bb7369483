"""A site's ledger: what each attempt at a sum has cost its data, chained so that none is taken back (SPEC 12.8).

An attempt enters ``joined`` or, where the sum is noised, ``reserve`` with its charge. That is ``spent`` from the moment
that the masked vector may have left: the site cannot know whether it was ever unmasked. Only what was never masked is
released. Number and head of the last line ride in the site's adverts, where peers and coordinator see and keep them:
a ledger that was put back shows unless the host and all of them collude.
"""

from collections.abc import Collection, Iterable, Mapping
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


@dataclass(frozen=True, slots=True, config=_STRICT)
class Charge:
    """What one noised sum costs whoever is in the data of a budget group.

    Attributes:
        data: the budget group at this site; in old lines the data set.
        events: noise multiplier, sampling rate, count and divergence of each, as in ``privacy.accounting.Event``.
        fingerprint: in old lines, digest of the data set's content.
    """

    data: str
    events: tuple[tuple[_Positive, Annotated[float, Field(gt=0, le=1)], Annotated[int, Field(ge=1)], _Amount], ...]
    fingerprint: Digest | None = None


@dataclass(frozen=True, slots=True, config=_STRICT)
class LedgerEntry:
    """One line of the ledger.

    Attributes:
        kind: what happened.
        context: the attempt.
        charge: of ``reserve``: what it costs.
        content: of ``spent``: what stands for the content that was summed, the same for the same content at this site.
    """

    kind: Literal["joined", "reserve", "spent", "release", "restored", "accepted"]
    context: Digest
    charge: Charge | None = None
    content: Digest | None = None

    @property
    def line(self) -> str:
        """Its one text, which is kept and chained; without what lines of its kind do not have."""
        fields = asdict(self)
        for part, name in ((fields, "content"), (fields["charge"] or {}, "fingerprint")):
            if part.get(name) is None:
                part.pop(name, None)
        return canonical(fields)


_ENTRY = TypeAdapter(LedgerEntry)


@lru_cache(maxsize=2**17)
def read_entry(line: str) -> LedgerEntry:
    """Read a line, once: a site reads its whole ledger in every attempt.

    Raises:
        ValueError: it is none.
    """
    return _ENTRY.validate_json(line)


class StoredLine(NamedTuple):
    """A line of the ledger with the head after it, and the random bytes that hide the line in that head."""

    line: str
    head: str
    salt: bytes | None = None


def next_head(previous: str, number: int, line: str, salt: bytes | None = None) -> str:
    """The head of a ledger after one more line (SPEC 12.8).

    Heads ride in adverts. Without the salt, whoever can write down a line could tell from the head whether it is the
    right one, and so find out what the line depends on.

    Args:
        previous: the head before it.
        number: of the line, from 1.
        line: its text.
        salt: 32 random bytes that stay in the vault; ``None`` for a line of an earlier version.
    """
    return sha256(SPEC_VERSION, "ledger entry", previous, str(number), *([salt] if salt is not None else []), line)


def check_chain(site: str, lines: Iterable[StoredLine]) -> None:
    """Check that no line was changed, taken out or put in.

    Args:
        site: whose ledger it is.
        lines: all of them, oldest first.

    Raises:
        Refused: naming the first line that does not follow.
    """
    head = EMPTY_LEDGER
    for number, (line, stored, salt) in enumerate(lines, start=1):
        head = next_head(head, number, line, salt)
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


def related(groups: Collection[str], contents: Mapping[str, Collection[str]]) -> set[str]:
    """Find the budget groups whose charges count against these: they hold the same content (SPEC 12.9).

    These were charged with a content that one of ``groups`` was charged with, or one of those found, and so on.

    Args:
        groups: the names of one group, of which the ledger may hold several.
        contents: what each group was charged with (``contents_of``).
    """
    found = set(groups)
    while more := {
        one
        for one in contents.keys() - found
        if any(set(contents[one]) & set(contents.get(held, ())) for held in found)
    }:
        found |= more
    return found


def contents_of(entries: Iterable[LedgerEntry]) -> dict[str, set[str]]:
    """What was summed under each budget group that has spent anything, as its lines stand for it."""
    reserved: dict[str, Charge] = {}
    found: dict[str, set[str]] = {}
    for entry in entries:
        if entry.charge is not None:
            reserved[entry.context] = entry.charge
            if entry.charge.fingerprint is not None:
                found.setdefault(entry.charge.data, set()).add(entry.charge.fingerprint)
        elif entry.content is not None and entry.context in reserved:
            found.setdefault(reserved[entry.context].data, set()).add(entry.content)
    return found


def same_content(entries: Iterable[LedgerEntry]) -> list[tuple[str, ...]]:
    """The budget groups that were charged with the same content, of which the data steward should hear."""
    contents = contents_of(entries)
    found = {tuple(sorted(related({group}, contents))) for group in contents}
    return sorted(groups for groups in found if len(groups) > 1)


def charges(entries: Iterable[LedgerEntry], groups: Collection[str]) -> list[Charge]:
    """Every charge that counts against a budget group and was not released (SPEC 12.9).

    Args:
        entries: the ledger's, oldest first.
        groups: the group's name, and the names of its data sets, which old lines hold.
    """
    entries = list(entries)
    counted = related(groups, contents_of(entries))
    return [charge for charge in standing(entries) if charge.data in counted]


def standing(entries: Iterable[LedgerEntry]) -> list[Charge]:
    """Every charge that was not released, oldest first."""
    found: dict[str, Charge] = {}
    for entry in entries:
        if entry.kind == "reserve" and entry.charge:
            found[entry.context] = entry.charge
        elif entry.kind == "release":
            found.pop(entry.context, None)
    return list(found.values())


def unspent(entries: Iterable[LedgerEntry]) -> Mapping[str, LedgerEntry]:
    """The reservations that were neither spent nor released, by context."""
    reserved: dict[str, LedgerEntry] = {}
    for entry in entries:
        if entry.kind == "reserve":
            reserved[entry.context] = entry
        elif entry.kind in ("spent", "release"):
            reserved.pop(entry.context, None)
    return reserved
