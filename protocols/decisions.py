"""The data steward's word on trainings: what waits, what is approved, what the site has left (SPEC 7.2).

A word is on one plan: approving holds for a training *and* the digest of its plan. Another plan under the same name
waits beside it and takes nothing away from it. Leaving is a word on the whole training: ``revoked`` is the steward's,
who can take it back, also by approving a plan anew; ``restored`` is the vault's own, for every training that it knew
when it was put back from a copy, and nothing takes it back: what it answered since that copy was made is forgotten.

What waits is bounded in number and bytes, since the coordinator chooses it: the plans asked for longest ago go first.
A plan that is still wanted is asked for again, and waits again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from protocols.errors import Refused

MOST_WAITING = 64
MOST_WAITING_OF_TRAINING = 4
MOST_WAITING_BYTES = 2**22
LONGEST_PLAN_BYTES = 2**20
"""Of all plans that wait, and of one: a plan of a thousand sites has 40 KB."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS approvals (
    training TEXT NOT NULL, plan TEXT NOT NULL, text TEXT NOT NULL, bytes INTEGER NOT NULL, approved INTEGER NOT NULL,
    asked INTEGER NOT NULL, shown INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (training, plan)
) STRICT;
CREATE TABLE IF NOT EXISTS withdrawals (training TEXT PRIMARY KEY, plan TEXT NOT NULL, word TEXT NOT NULL) STRICT;
"""

Word = Literal["pending", "approved", "revoked", "restored"]
Rows = Callable[..., list[Any]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the data steward has said of a training's plan.

    Attributes:
        training: its name.
        plan: the plan's digest; empty where the site has left a training whose plan it never knew.
        text: the plan, canonical JSON; left empty where decisions are only looked at.
        decision: the word on it; ``revoked`` and ``restored`` are on the training, whatever its plan.
    """

    training: str
    plan: str
    text: str = field(repr=False)
    decision: Word

    @property
    def withdrawn(self) -> bool:
        """Whether the site takes no further part in this training."""
        return self.decision in ("revoked", "restored")


class Decisions:
    """The tables; the vault holds the lock, and the transaction where something is written.

    Args:
        rows: runs one statement of the vault's database, and gives its rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def decide(self, site: str, decision: Decision) -> None:
        """Keep a word.

        Args:
            site: who refuses.
            decision: ``pending`` leaves an earlier word on the same plan as it is; ``approved`` takes back ``revoked``;
                ``revoked`` makes what was approved of this training wait again.

        Raises:
            Refused: approving a training that the vault knew when it was put back; a plan too long to be shown.
        """
        training = decision.training
        standing = self.decision(training)
        barred = standing is not None and standing.decision == "restored"
        if decision.decision == "pending":
            self._wait(site, decision)
        elif decision.decision == "approved":
            if barred:
                raise Refused(
                    site,
                    "approve",
                    f"{training}: this vault was put back from a copy that knew this training: it takes no further "
                    "part in it, whatever is approved",
                )
            self._keep(decision, approved=True)
            self._rows("DELETE FROM withdrawals WHERE training = ?", training)
        elif not barred:
            self._rows("UPDATE approvals SET approved = 0 WHERE training = ?", training)
            self._rows(
                "INSERT OR REPLACE INTO withdrawals VALUES (?, ?, ?)", training, decision.plan, decision.decision
            )

    def take_back(self, site: str, training: str) -> None:
        """Take back that a training was left; what was approved of it before waits again.

        Raises:
            Refused: it was not left, or the vault knew it when it was put back.
        """
        left = self._rows("SELECT word FROM withdrawals WHERE training = ?", training)
        if not left:
            raise Refused(site, "revoke", f"{training}: this site has not withdrawn from it")
        if left[0][0] == "restored":
            raise Refused(site, "revoke", f"{training}: this vault was put back from a copy that knew this training")
        self._rows("DELETE FROM withdrawals WHERE training = ?", training)

    def decision(self, training: str, plan: str | None = None) -> Decision | None:
        """The word on a training: that it was left, or on one of its plans (an approved one first); without its text.

        Args:
            training: its name.
            plan: only the word on the plan with this digest counts, unless the training was left.
        """
        left = self._rows("SELECT plan, word FROM withdrawals WHERE training = ?", training)
        if left:
            return Decision(training, str(left[0][0]), "", left[0][1])
        where, values = ("training = ? AND plan = ?", [training, plan]) if plan else ("training = ?", [training])
        found = self._rows(
            f"SELECT plan, approved FROM approvals WHERE {where} ORDER BY approved DESC, asked DESC LIMIT 1",  # noqa: S608
            *values,
        )
        return _of(training, *found[0]) if found else None

    def decisions(self) -> list[Decision]:
        """Every word, without the plans' texts: one for each training that was left, one for each plan of another."""
        left = [
            Decision(training, plan, "", word)
            for training, plan, word in self._rows("SELECT training, plan, word FROM withdrawals ORDER BY training")
        ]
        others = self._rows(
            "SELECT training, plan, approved FROM approvals WHERE training NOT IN (SELECT training FROM withdrawals) "
            "ORDER BY training, approved DESC, asked"
        )
        return left + [_of(*row) for row in others]

    def plans(self, training: str) -> dict[str, str]:
        """The texts of the plans of a training that wait or are approved, by digest, in the order of asking."""
        return dict(self._rows("SELECT plan, text FROM approvals WHERE training = ? ORDER BY asked", training))

    def shown(self, training: str) -> set[str]:
        """The digests of the plans of a training that were shown to the data steward while they waited here."""
        return {plan for (plan,) in self._rows("SELECT plan FROM approvals WHERE training = ? AND shown = 1", training)}

    def show(self, training: str, plan: str) -> None:
        """Note that a plan was shown to the data steward."""
        self._rows("UPDATE approvals SET shown = 1 WHERE training = ? AND plan = ?", training, plan)

    def restored(self) -> None:
        """The vault was put back: leave every training that it knows, for good."""
        self._rows(
            "INSERT OR REPLACE INTO withdrawals SELECT training, max(plan), 'restored' FROM ("
            "SELECT training, plan FROM agreements UNION ALL SELECT training, '' FROM contexts UNION ALL "
            "SELECT training, '' FROM approvals UNION ALL SELECT training, plan FROM withdrawals) GROUP BY training"
        )

    def migrate(self) -> None:
        """Take over the words of a vault of an earlier version, which had one for each training.

        Where that vault was ever put back, what it had left is ``restored``: it could not tell the two apart.
        """
        if not self._rows("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'decisions'"):
            return
        was_put_back = self._rows("SELECT 1 FROM ledger WHERE json_extract(entry, '$.kind') = 'restored' LIMIT 1")
        for training, plan, text, word in self._rows("SELECT training, plan, text, decision FROM decisions"):
            if text:
                self._keep(Decision(training, plan, text, "pending"), approved=word == "approved")
            if word == "revoked":
                left = "restored" if was_put_back else "revoked"
                self._rows("INSERT INTO withdrawals VALUES (?, ?, ?)", training, plan, left)
        self._make_room("")
        self._rows("DROP TABLE decisions")

    def _wait(self, site: str, decision: Decision) -> None:
        if len(decision.text.encode()) > LONGEST_PLAN_BYTES:
            raise Refused(site, "join", "the plan is too long to wait for this site's data steward")
        if self.decision(decision.training, decision.plan) is None:
            self._keep(decision, approved=False)
            self._make_room(decision.training)
        else:
            self._rows(
                "UPDATE approvals SET asked = (SELECT max(asked) + 1 FROM approvals) WHERE training = ? AND plan = ? "
                "AND NOT approved AND asked < (SELECT max(asked) FROM approvals)",
                decision.training,
                decision.plan,
            )

    def _keep(self, decision: Decision, approved: bool) -> None:
        """Enter a plan, or raise its word; a text that is there stays, since the digest is of that text."""
        self._rows(
            "INSERT INTO approvals (training, plan, text, bytes, approved, asked) "
            "VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(asked), 0) + 1 FROM approvals)) "
            "ON CONFLICT (training, plan) DO UPDATE SET approved = excluded.approved",
            decision.training,
            decision.plan,
            decision.text,
            len(decision.text.encode()),
            int(approved),
        )

    def _make_room(self, training: str) -> None:
        """Let go of what waits beyond the bounds, the plans asked for longest ago first."""
        self._rows(
            "DELETE FROM approvals WHERE NOT approved AND training = ? AND asked NOT IN (SELECT asked FROM approvals "
            "WHERE NOT approved AND training = ? ORDER BY asked DESC LIMIT ?)",
            training,
            training,
            MOST_WAITING_OF_TRAINING,
        )
        self._rows(
            "DELETE FROM approvals WHERE NOT approved AND asked IN (SELECT asked FROM (SELECT asked, "
            "row_number() OVER newest AS place, sum(bytes) OVER newest AS held FROM approvals WHERE NOT approved "
            "WINDOW newest AS (ORDER BY asked DESC)) WHERE place > ? OR held > ?)",
            MOST_WAITING,
            MOST_WAITING_BYTES,
        )


def _of(training: str, plan: str, approved: int) -> Decision:
    return Decision(training, plan, "", "approved" if approved else "pending")
