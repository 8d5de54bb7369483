"""A site's durable state: identity, agreements, contexts, the journal and the ledger (SPEC 7).

One SQLite file (WAL, synchronous=FULL, secure_delete, mode 0600) and a folder of masked vectors. Whatever a site
answers has been committed here first, so that its process can be killed at any instant and answers the same when asked
again. The rules that must outlive a process are ``protocols.site``'s; this file only keeps what they need. A vault that
was restored from a copy is told by its ``Anchor``, and takes no further part in any training that it knows.
"""

import fcntl
import hmac
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from protocols import decisions
from protocols.anchor import Anchor
from protocols.contexts import AttemptContext, canonical, sha256
from protocols.decisions import Decision as Decision
from protocols.files import private, write_whole
from protocols.history import NONE_CONFIRMED, History, Past, Seen, next_confirmed
from protocols.keys import Identity, system_entropy
from protocols.ledger import EMPTY_LEDGER, LedgerEntry, StoredLine, next_head, read_entry
from protocols.rosters import Roster
from protocols.witness import SCHEMA, adopt, witness

BUSY_TIMEOUT_S = 60.0
SALT_BYTES = 32

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (name TEXT NOT NULL, secret BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agreements (training TEXT PRIMARY KEY, plan TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS contexts (
    attempt_context TEXT PRIMARY KEY, round_context TEXT UNIQUE, training TEXT NOT NULL, purpose TEXT NOT NULL,
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, model TEXT NOT NULL, confirmed INTEGER NOT NULL DEFAULT 0,
    state TEXT  -- NULL once the secrets are erased
) STRICT;
CREATE TABLE IF NOT EXISTS journal (
    attempt_context TEXT NOT NULL REFERENCES contexts, step TEXT NOT NULL, request TEXT NOT NULL, input TEXT NOT NULL,
    answer_digest TEXT NOT NULL, answer TEXT,  -- NULL once erased: the digest stays
    PRIMARY KEY (attempt_context, step)
) STRICT;
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, entry TEXT NOT NULL, head TEXT NOT NULL, salt BLOB  -- NULL in lines of earlier versions
) STRICT;
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS ledger_context ON ledger (json_extract(entry, '$.context'));
CREATE TABLE IF NOT EXISTS confirmed (training TEXT PRIMARY KEY, sums INTEGER NOT NULL, head TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rosters (
    budget_group TEXT NOT NULL, training TEXT NOT NULL, keys TEXT NOT NULL, threshold INTEGER NOT NULL,
    PRIMARY KEY (budget_group, training, keys)
) STRICT;
CREATE TABLE IF NOT EXISTS summed (
    budget_group TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (budget_group, content)
) STRICT;
CREATE TABLE IF NOT EXISTS anchor (
    place TEXT NOT NULL, count INTEGER NOT NULL, changes INTEGER NOT NULL DEFAULT 0,
    kept TEXT, database TEXT, epoch TEXT
) STRICT;
"""

_ADDED = (
    ("ledger", "salt BLOB"),
    ("anchor", "changes INTEGER NOT NULL DEFAULT 0"),
    ("anchor", "kept TEXT"),
    ("anchor", "database TEXT"),
    ("anchor", "epoch TEXT"),
)
"""Columns that vaults of earlier versions do not have."""

_PAST = (
    ("agreements", "training, plan"),
    ("withdrawals", "training, plan, word"),
    ("contexts", "attempt_context, round_context, training, purpose, round, attempt, model, confirmed"),
    ("confirmed", "training, sums, head"),
    ("rosters", "budget_group, training, keys, threshold"),
    ("summed", "budget_group, content"),
    ("secrets", "name, value"),
)
"""What of a vault's past goes along when its site gets a new key, beside the ledger; no state of a round."""

log = logging.getLogger("fedseal.vault")


@dataclass(frozen=True, slots=True)
class Context:
    """A context as the vault knows it; ``state`` is ``None`` once its secrets are erased."""

    attempt_context: str
    round_context: str | None
    training: str
    purpose: str
    round: int
    attempt: int
    model: str
    confirmed: bool
    state: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry: what was asked (digests of request and private input) and what was answered."""

    request: str
    input: str
    answer: str | None = field(repr=False)


class Vault:
    """The durable state of one site in ``folder``; safe to open from several threads and processes.

    Args:
        folder: of the vault alone.
        epoch: a file outside of the folder, best on a disk that nobody puts back, by which the vault tells whether
            folder and disk were put back together.
    """

    def __init__(self, folder: Path, epoch: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "masked").mkdir(exist_ok=True, mode=0o700)
        path = folder / "vault.sqlite"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.RLock()
        self._anchor, self._anchored, self._behind, self._erased = Anchor(folder, epoch), False, False, False
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with open(folder / "opening", "w", opener=private) as opening:
            fcntl.flock(opening, fcntl.LOCK_EX)  # SQLite's own timeout does not cover the switch to WAL
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.executescript(_SCHEMA + SCHEMA + decisions.SCHEMA)
            self._decisions = decisions.Decisions(self._rows)
            with self.exclusive():
                self._decisions.migrate()
            self._check_anchor()

    def close(self) -> None:
        """Close the file, after whoever is using it; a thread that comes later gets an error."""
        with self._lock:
            self._db.close()
            self._anchor.close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the vault alone, across threads and processes; commit at the end, roll back on an error."""
        with self._lock, self._anchor.alone():
            if self._behind:
                self._advance()
            self._db.execute("BEGIN IMMEDIATE")
            self._erased, before = False, self._db.total_changes
            try:
                yield
                if self._anchored and self._db.total_changes != before:
                    self._db.execute("UPDATE anchor SET changes = changes + 1")
                    self._db.execute("UPDATE anchor SET kept = ?", (self._anchor.kept(self._changes),))
                    self._behind = True
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._behind = False
                raise
            if self._behind:
                self._advance()
            if self._erased:
                self._sweep()

    def keep_identity(self, identity: Identity) -> None:
        """Store the identity of a new vault.

        Raises:
            ValueError: if the vault has one.
        """
        with self.exclusive():
            if self.has_identity:
                raise ValueError("this vault already has an identity")
            self._db.execute("INSERT INTO identity VALUES (?, ?)", (identity.name, identity.secret))

    @property
    def has_identity(self) -> bool:
        """Whether an identity was kept."""
        return bool(self._rows("SELECT 1 FROM identity"))

    @property
    def identity(self) -> Identity:
        """The site's identity.

        Raises:
            ValueError: if none was kept.
        """
        rows = self._rows("SELECT name, secret FROM identity")
        if not rows:
            raise ValueError("this vault has no identity")
        return Identity(*rows[0])

    def take_over(self, old: "Vault") -> None:
        """Enter another vault's past (``protocols.renewal``), and leave every training that it knows for good."""
        with self.exclusive():
            for entry in old.ledger():
                self.enter(entry)
            for table, columns in _PAST:
                marks = ", ".join("?" * len(columns.split(", ")))
                for row in old._rows(f"SELECT {columns} FROM {table}"):  # noqa: S608 - constants
                    self._db.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", row)  # noqa: S608
            self._decisions.restored()

    def agree(self, training: str, plan: str) -> bool:
        """Agree to a plan's digest for a training; false if another was agreed to before."""
        with self.exclusive():
            self._db.execute("INSERT OR IGNORE INTO agreements VALUES (?, ?)", (training, plan))
            return self.agreed(training) == plan

    def agreed(self, training: str) -> str | None:
        """The digest of the plan agreed to for this training."""
        rows = self._rows("SELECT plan FROM agreements WHERE training = ?", training)
        return str(rows[0][0]) if rows else None

    def decide(self, decision: Decision) -> None:
        """Keep the data steward's word (``protocols.decisions``).

        Raises:
            Refused: approving a training that this vault knew when it was put back; a plan too long to be shown.
        """
        with self.exclusive():
            self._decisions.decide(self.identity.name, decision)

    def take_back(self, training: str) -> None:
        """Take back a withdrawal (``protocols.decisions``).

        Raises:
            Refused: there is none, or the vault was put back since.
        """
        with self.exclusive():
            self._decisions.take_back(self.identity.name, training)

    def decision(self, training: str, plan: str | None = None) -> Decision | None:
        """The word on a training, if there is one, or on one of its plans; without the plan's text."""
        with self._lock:
            return self._decisions.decision(training, plan)

    def decisions(self) -> list[Decision]:
        """Every word, without the plans' texts."""
        with self._lock:
            return self._decisions.decisions()

    def plans(self, training: str) -> dict[str, str]:
        """The texts of a training's plans that wait or are approved, by digest."""
        return self._decisions.plans(training)

    def show(self, training: str, plan: str) -> None:
        """Note that a plan was shown to the data steward."""
        with self.exclusive():
            self._decisions.show(training, plan)

    def shown(self, training: str) -> set[str]:
        """The digests of a training's plans that were shown to the data steward."""
        return self._decisions.shown(training)

    def withdrawn(self, training: str) -> bool:
        """Whether this site takes no further part in a training."""
        known = self.decision(training)
        return known is not None and known.withdrawn

    def trainings(self) -> dict[str, str]:
        """The digest of the plan agreed to, by training."""
        return dict(self._rows("SELECT training, plan FROM agreements"))

    def find(self, context: str) -> Context | None:
        """Find a context by its attempt or its round context."""
        found = self._contexts("? IN (attempt_context, round_context)", context)
        return found[0] if found else None

    def of_training(self, training: str) -> list[Context]:
        """Every context of a training, oldest first."""
        return self._contexts("training = ? ORDER BY round, attempt", training)

    def add(self, context: AttemptContext) -> None:
        """Enter a new context."""
        self._db.execute(
            "INSERT INTO contexts VALUES (?, NULL, ?, ?, ?, ?, ?, 0, '')",
            (context.digest, context.training, context.purpose, context.round, context.attempt, context.model),
        )

    def advance(self, attempt_context: str, state: str, *, round_context: str | None, confirmed: bool) -> None:
        """Store the state that a step led to."""
        self._db.execute(
            "UPDATE contexts SET state = ?, round_context = ?, confirmed = ? WHERE attempt_context = ?",
            (state, round_context, confirmed, attempt_context),
        )

    def entry(self, attempt_context: str, step: str) -> Entry | None:
        """What was answered to a step of this context."""
        query = "SELECT request, input, answer FROM journal WHERE attempt_context = ? AND step = ?"
        rows = self._rows(query, attempt_context, step)
        return Entry(*rows[0]) if rows else None

    def journal(self, attempt_context: str, step: str, entry: Entry) -> None:
        """Enter an answer; it becomes durable when the exclusive hold ends."""
        digest = sha256(entry.answer or "")
        self._db.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)",
            (attempt_context, step, entry.request, entry.input, digest, entry.answer),
        )
        self._db.execute("UPDATE anchor SET count = count + 1")

    def enter(self, entry: LedgerEntry) -> None:
        """Enter a line into the ledger; it becomes durable when the exclusive hold ends."""
        number, head = self.ledger_head
        line, salt = entry.line, system_entropy(SALT_BYTES)
        row = number + 1, line, next_head(head, number + 1, line, salt), salt
        self._db.execute("INSERT INTO ledger VALUES (?, ?, ?, ?)", row)

    @property
    def ledger_head(self) -> tuple[int, str]:
        """How many lines the ledger has, and its head: what rides in adverts."""
        rows = self._rows("SELECT number, head FROM ledger ORDER BY number DESC LIMIT 1")
        return (int(rows[0][0]), str(rows[0][1])) if rows else (0, EMPTY_LEDGER)

    def ledger_lines(self) -> list[StoredLine]:
        """Every line of the ledger, oldest first: what ``check_chain`` checks."""
        return [StoredLine(*row) for row in self._rows("SELECT entry, head, salt FROM ledger ORDER BY number")]

    def ledger(self) -> list[LedgerEntry]:
        """Every entry of the ledger, oldest first."""
        return [read_entry(stored.line) for stored in self.ledger_lines()]

    def fingerprint(self, digest: str) -> str:
        """Turn a digest of data into what the ledger knows them by: a MAC under a key that never leaves the vault.

        Two vaults know the same data by two fingerprints, and nobody who can guess the data can check the guess.
        """
        (key,) = self._rows("SELECT value FROM secrets WHERE name = 'fingerprint'")[0]
        return hmac.digest(key, digest.encode(), "sha256").hex()

    def ledger_of(self, attempt_context: str) -> list[LedgerEntry]:
        """The entries of an attempt, oldest first."""
        rows = self._rows(
            "SELECT entry FROM ledger WHERE json_extract(entry, '$.context') = ? ORDER BY number", attempt_context
        )
        return [read_entry(line) for (line,) in rows]

    def history(self, training: str) -> History:
        """What the site's next advert in this training says of its past; its ledger has the advert's line already."""
        entries, head = self.ledger_head
        before = self._rows(
            "SELECT number, head FROM ledger WHERE number < ? "
            "AND json_extract(entry, '$.kind') IN ('joined', 'reserve') ORDER BY number DESC LIMIT 1",
            entries,
        )
        previous_entries, previous_head = before[0] if before else (0, EMPTY_LEDGER)
        confirmed_sums, confirmed_head = self._confirmed(training)
        return History(
            ledger_entries=entries,
            ledger_head=head,
            previous_entries=previous_entries,
            previous_head=previous_head,
            answers=self._count,
            confirmed_sums=confirmed_sums,
            confirmed_head=confirmed_head,
        )

    def add_confirmed(self, training: str, round_digest: str, survivors: Iterable[str]) -> None:
        """Chain a sum that the site confirms to those of its training."""
        sums, head = self._confirmed(training)
        row = training, sums + 1, next_confirmed(head, round_digest, survivors)
        self._db.execute("INSERT OR REPLACE INTO confirmed VALUES (?, ?, ?)", row)

    def witness(self, key: str, entries: int, head: str, past: Past | None = None, *, name: str = "") -> bool:
        """Keep what a site's advert says; false where no vault that has forgotten nothing can have said it (SPEC 12.8).

        Adverts may be seen in any order. It becomes durable when the exclusive hold ends.

        Args:
            key: the public key of whose advert it is: a site with another one has another ledger.
            entries, head: number of lines and head of its ledger.
            past: what else it says; ``None`` where that is not known.
            name: its site's, under which earlier versions kept what it said.
        """
        return witness(self._db, key, Seen(entries, head, past), name)

    def remember(self, group: str, training: str, roster: Roster) -> None:
        """Enter with whom a budget group's data are summed in a training; durable when the exclusive hold ends."""
        row = (group, training, canonical(sorted(roster.keys)), roster.threshold)
        self._db.execute("INSERT OR IGNORE INTO rosters VALUES (?, ?, ?, ?)", row)

    def forget_unmasked(self, training: str) -> None:
        """Take back what was remembered of a training in which nothing was ever masked."""
        self._db.execute(
            "DELETE FROM rosters WHERE training = ? AND NOT EXISTS (SELECT 1 FROM journal JOIN contexts "
            "USING (attempt_context) WHERE contexts.training = rosters.training AND journal.step = 'mask')",
            (training,),
        )

    def add_summed(self, training: str, content: str) -> None:
        """Note what stands for the content that a training whose roster is remembered has summed."""
        self._db.execute(
            "INSERT OR IGNORE INTO summed SELECT budget_group, ? FROM rosters WHERE training = ?", (content, training)
        )

    def summed(self) -> dict[str, set[str]]:
        """What was summed under each budget group without differential privacy, as lines of the ledger stand for it."""
        found: dict[str, set[str]] = {}
        for group, content in self._rows("SELECT budget_group, content FROM summed"):
            found.setdefault(group, set()).add(content)
        return found

    def rosters(self, groups: Collection[str]) -> list[tuple[str, Roster]]:
        """The trainings in which the data of these budget groups were summed, or may yet be, with their rosters."""
        rows = self._rows("SELECT budget_group, training, keys, threshold FROM rosters ORDER BY rowid")
        return [
            (training, Roster(frozenset(json.loads(keys)), threshold))
            for group, training, keys, threshold in rows
            if group in groups
        ]

    def masked_path(self, attempt_context: str) -> Path:
        """Where the masked vector of a context lies."""
        return self.folder / "masked" / attempt_context

    def keep_masked(self, attempt_context: str, vector: memoryview) -> None:
        """Write a masked vector so that it is on disk, whole, before its journal entry is."""
        write_whole(self.masked_path(attempt_context), vector)

    def erase(self, attempt_contexts: Iterable[str]) -> None:
        """Delete the secrets of contexts: state, answers and masked vector. Digests stay in the journal.

        What is not in the tables goes once the exclusive hold has committed, so that a rollback brings all of it back.
        """
        for attempt_context in attempt_contexts:
            self._db.execute("UPDATE contexts SET state = NULL WHERE attempt_context = ?", (attempt_context,))
            self._db.execute("UPDATE journal SET answer = NULL WHERE attempt_context = ?", (attempt_context,))
        self._erased = True

    @property
    def _count(self) -> int:
        return int(self._rows("SELECT count FROM anchor")[0][0])

    @property
    def _changes(self) -> int:
        return int(self._rows("SELECT changes FROM anchor")[0][0])

    def _advance(self) -> None:
        """Have the anchor's files follow the database; nothing is answered before they have."""
        changes, epoch = self._rows("SELECT changes, epoch FROM anchor")[0]
        self._anchor.advance(changes, epoch)
        self._behind = False

    def _confirmed(self, training: str) -> tuple[int, str]:
        rows = self._rows("SELECT sums, head FROM confirmed WHERE training = ?", training)
        return rows[0] if rows else (0, NONE_CONFIRMED)

    def _migrate(self) -> None:
        """Take over what an earlier version has kept, and draw the vault's own key where there is none."""
        adopt(self._db)
        for table, column in _ADDED:
            if not self._rows("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", table, column.split()[0]):
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
        self._db.execute("INSERT OR IGNORE INTO secrets VALUES ('fingerprint', ?)", (system_entropy(SALT_BYTES),))

    def _check_anchor(self) -> None:
        """Tell whether this vault was restored from a copy; if so, withdraw from every training that it knows."""
        with self.exclusive():
            self._migrate()
            anchor = self._anchor
            if not self._rows("SELECT 1 FROM anchor"):
                self._db.execute("INSERT INTO anchor (place, count) VALUES (?, 0)", (anchor.place,))
            place, count, changes, kept, database, epoch = self._rows("SELECT * FROM anchor")[0]
            latest = max(anchor.changes, anchor.epoch(epoch))
            put_back = (
                place != anchor.place
                or database not in (None, anchor.database)
                or changes < latest
                or (kept is not None and kept != anchor.kept(changes))
                or (database is None and count < anchor.answers)
            )
            if put_back:
                log.error("the vault was moved or restored from a copy: it withdraws from every training that it knows")
                lost = max(0, latest - changes)  # each answer was a change
                self._db.execute("UPDATE anchor SET count = max(count + ?, ?)", (lost, anchor.answers))
                self._decisions.restored()
                self.erase(self._held)
                self.enter(LedgerEntry("restored", EMPTY_LEDGER))
            new = put_back or database is None or (epoch is None and anchor.has_epoch)
            if new:
                name = epoch or (system_entropy(16).hex() if anchor.has_epoch else None)
                where = anchor.renew_place() if put_back or database is None else place
                row = where, anchor.database, max(changes, latest) + 1, name
                self._db.execute("UPDATE anchor SET place = ?, database = ?, changes = ?, epoch = ?", row)
                anchor.advance(row[2] - 1, None)  # so that both files are there before a disk is full
                self._db.execute("UPDATE anchor SET kept = ?", (anchor.kept(row[2]),))
                self._behind = True
            self._behind |= anchor.has_epoch and anchor.epoch(epoch) < changes
        self._anchored = True

    @property
    def _held(self) -> set[str]:
        """The contexts that hold secrets."""
        return {context for (context,) in self._rows("SELECT attempt_context FROM contexts WHERE state IS NOT NULL")}

    def _sweep(self) -> None:
        held = self._held
        for path in (self.folder / "masked").iterdir():
            if path.name.split(".")[0] not in held:
                path.unlink(missing_ok=True)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still holds the pages as they were before

    def _contexts(self, where: str, value: str) -> list[Context]:
        columns = "attempt_context, round_context, training, purpose, round, attempt, model, confirmed, state"
        rows = self._rows(f"SELECT {columns} FROM contexts WHERE {where}", value)  # noqa: S608 - constants
        return [replace(Context(*row), confirmed=bool(row[7])) for row in rows]

    def _rows(self, query: str, *values: str | int | None) -> list[Any]:
        """Read under the lock: threads that run one statement of a connection at once fail with "API misuse"."""
        with self._lock:
            return self._db.execute(query, values).fetchall()
