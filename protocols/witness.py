"""What a vault keeps of other sites' adverts, to tell one that was put back (SPEC 12.8).

What is kept is kept by the site's key: a new key has a new ledger. Adverts are compared with those beside them in their
site's ledger and in their training: the others agree with these. What is kept of a site is bounded, and an advert that
is older than all of it is turned away, since it cannot be judged.
"""

import sqlite3
from collections.abc import Iterator

from protocols.history import Past, Seen, contradict

MOST_SEEN = 1024
"""How many adverts of a site are kept: more than it makes while one message is delayed."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    site TEXT NOT NULL, entries INTEGER NOT NULL, head TEXT NOT NULL, previous_entries INTEGER, previous_head TEXT,
    answers INTEGER, training TEXT, round INTEGER, attempt INTEGER, confirmed_sums INTEGER, confirmed_head TEXT,
    PRIMARY KEY (site, entries)
) STRICT;
CREATE INDEX IF NOT EXISTS seen_attempt ON seen (site, training, round, attempt);
"""

_LEDGER = ("entries < ? ORDER BY entries DESC LIMIT 1", "entries >= ? ORDER BY entries LIMIT 1")
_TRAINING = (
    "training = ? AND (round, attempt) < (?, ?) ORDER BY round DESC, attempt DESC LIMIT 1",
    "training = ? AND (round, attempt) >= (?, ?) ORDER BY round, attempt LIMIT 1",
)


def witness(db: sqlite3.Connection, site: str, new: Seen, name: str = "") -> bool:
    """Keep an advert; false where no vault that has forgotten nothing can have made it beside those that are kept.

    Args:
        db: the vault's database, in a transaction.
        site: the public key of whose advert it is.
        new: what it says.
        name: its site's; what an earlier version kept under it is the key's that has it at the first look.
    """
    if name and db.execute("SELECT 1 FROM seen WHERE site = ? LIMIT 1", (name,)).fetchone():
        db.execute("UPDATE OR REPLACE seen SET site = ? WHERE site = ?", (site, name))
    oldest = db.execute("SELECT min(entries) FROM seen WHERE site = ? HAVING count(*) >= ?", (site, MOST_SEEN))
    if any(new.entries < entries for (entries,) in oldest) or any(
        contradict(old, new) for old in _beside(db, site, new)
    ):
        return False
    row = (site, new.entries, new.head, *(new.past or [None] * len(Past._fields)))
    db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.execute(
        "DELETE FROM seen WHERE site = ? AND entries <= "
        "(SELECT entries FROM seen WHERE site = ? ORDER BY entries DESC LIMIT 1 OFFSET ?)",
        (site, site, MOST_SEEN),
    )
    return True


def adopt(db: sqlite3.Connection) -> None:
    """Take over what an earlier version has kept: the last number and head of each site."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'witnessed'").fetchone():
        db.execute("INSERT OR IGNORE INTO seen (site, entries, head) SELECT site, entries, head FROM witnessed")
        db.execute("DROP TABLE witnessed")


def _beside(db: sqlite3.Connection, site: str, new: Seen) -> Iterator[Seen]:
    for where in _LEDGER:
        yield from _seen(db, where, site, new.entries)
    if new.past is not None:
        for where in _TRAINING:
            yield from _seen(db, where, site, new.past.training, new.past.round, new.past.attempt)


def _seen(db: sqlite3.Connection, where: str, *values: str | int) -> Iterator[Seen]:
    query = f"SELECT * FROM seen WHERE site = ? AND {where}"  # noqa: S608 - constants
    for _, entries, head, *past in db.execute(query, values).fetchall():
        yield Seen(entries, head, None if past[0] is None else Past(*past))
