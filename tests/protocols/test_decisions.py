"""The data steward's words: by training and plan, bounded, and what nothing takes back (SPEC 7.2)."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.contexts import sha256
from protocols.decisions import (
    LONGEST_PLAN_BYTES,
    MOST_WAITING,
    MOST_WAITING_BYTES,
    MOST_WAITING_OF_TRAINING,
    Decision,
    Word,
)
from protocols.errors import Refused
from protocols.keys import Identity
from protocols.ledger import EMPTY_LEDGER, LedgerEntry
from protocols.vault import Vault

ONE, TWO = sha256("one"), sha256("two")


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A site's vault."""
    made = Vault(tmp_path / "vault")
    made.keep_identity(Identity.generate("ann"))
    yield made
    made.close()


def decide(vault: Vault, training: str, plan: str, word: Word, text: str = "{}") -> None:
    vault.decide(Decision(training, plan, text, word))


def words(vault: Vault) -> list[tuple[str, str, str]]:
    return [(one.training, one.plan, one.decision) for one in vault.decisions()]


def test_another_plan_under_the_same_name_waits_beside_an_approved_one(vault: Vault) -> None:
    decide(vault, "t", ONE, "pending", "first")
    decide(vault, "t", ONE, "approved", "first")
    decide(vault, "t", TWO, "pending", "second")
    decide(vault, "t", ONE, "pending", "first")
    assert words(vault) == [("t", ONE, "approved"), ("t", TWO, "pending")]
    assert vault.plans("t") == {ONE: "first", TWO: "second"}
    for plan, word in ((ONE, "approved"), (TWO, "pending"), (None, "approved")):
        found = vault.decision("t", plan)
        assert found is not None and found.decision == word
    assert vault.decision("t", sha256("three")) is None


def test_looking_reads_no_text(vault: Vault) -> None:
    decide(vault, "t", ONE, "pending", "a long plan")
    found = vault.decision("t")
    assert found is not None and found.text == ""
    assert [one.text for one in vault.decisions()] == [""]


def test_to_leave_is_of_the_training_and_an_approval_takes_it_back(vault: Vault) -> None:
    decide(vault, "t", ONE, "approved")
    decide(vault, "t", "", "revoked")
    assert vault.withdrawn("t") and words(vault) == [("t", "", "revoked")]
    for plan in (ONE, TWO):
        found = vault.decision("t", plan)
        assert found is not None and found.withdrawn
    decide(vault, "t", TWO, "approved")
    assert not vault.withdrawn("t")
    assert words(vault) == [("t", TWO, "approved"), ("t", ONE, "pending")]


def test_of_what_waits_the_plans_asked_for_longest_ago_go_first(vault: Vault) -> None:
    decide(vault, "kept", ONE, "approved")
    for number in range(MOST_WAITING + 10):
        decide(vault, f"t-{number}", ONE, "pending")
        decide(vault, "t-0", ONE, "pending")
    waiting = [one.training for one in vault.decisions() if one.decision == "pending"]
    assert len(waiting) == MOST_WAITING
    assert "t-0" in waiting and "t-1" not in waiting and f"t-{MOST_WAITING + 9}" in waiting
    assert ("kept", ONE, "approved") in words(vault)


def test_one_training_fills_no_more_than_its_part_and_long_plans_no_more_than_theirs(vault: Vault) -> None:
    decide(vault, "other", ONE, "pending")
    for number in range(20):
        decide(vault, "t", sha256(f"{number}"), "pending")
    assert list(vault.plans("t")) == [sha256(f"{number}") for number in range(20 - MOST_WAITING_OF_TRAINING, 20)]
    assert vault.decision("other", ONE) is not None
    text = "x" * LONGEST_PLAN_BYTES
    for number in range(6):
        decide(vault, f"long-{number}", ONE, "pending", text)
    held = sum(len(text) for one in vault.decisions() for text in vault.plans(one.training).values())
    assert MOST_WAITING_BYTES - LONGEST_PLAN_BYTES <= held <= MOST_WAITING_BYTES
    with pytest.raises(Refused, match="too long to wait"):
        decide(vault, "t", ONE, "pending", text + "x")


def test_what_was_known_when_the_vault_was_put_back_is_over_for_good(vault: Vault, tmp_path: Path) -> None:
    vault.agree("joined", ONE)
    decide(vault, "approved", ONE, "approved")
    decide(vault, "waiting", ONE, "pending")
    decide(vault, "left", "", "revoked")
    vault.close()
    (tmp_path / "vault" / "place").unlink()
    again = Vault(tmp_path / "vault")
    for training in ("joined", "approved", "waiting", "left"):
        with pytest.raises(Refused, match="put back from a copy that knew this training"):
            decide(again, training, ONE, "approved")
        with pytest.raises(Refused):
            decide(again, training, TWO, "approved")
        decide(again, training, ONE, "revoked")
        decide(again, training, TWO, "pending")
        found = again.decision(training, TWO)
        assert found is not None and found.decision == "restored"
    decide(again, "new", ONE, "approved")
    assert not again.withdrawn("new")
    again.close()


OLD = (
    "CREATE TABLE decisions (training TEXT PRIMARY KEY, plan TEXT NOT NULL, text TEXT NOT NULL, decision TEXT NOT NULL)"
)


@pytest.mark.parametrize("put_back", [False, True])
def test_the_words_of_an_earlier_version_are_taken_over(vault: Vault, tmp_path: Path, put_back: bool) -> None:
    if put_back:
        with vault.exclusive():
            vault.enter(LedgerEntry("restored", EMPTY_LEDGER))
    vault.close()
    with sqlite3.connect(tmp_path / "vault" / "vault.sqlite") as database:
        database.execute(OLD)
        for row in (("a", ONE, "{}", "approved"), ("p", ONE, "{}", "pending"), ("r", ONE, "{}", "revoked")):
            database.execute("INSERT INTO decisions VALUES (?, ?, ?, ?)", row)
        database.execute("INSERT INTO decisions VALUES ('gone', '', '', 'revoked')")
    database.close()
    again = Vault(tmp_path / "vault")
    left = "restored" if put_back else "revoked"
    assert sorted(words(again)) == [("a", ONE, "approved"), ("gone", "", left), ("p", ONE, "pending"), ("r", ONE, left)]
    again.close()
    once_more = Vault(tmp_path / "vault")
    assert len(once_more.decisions()) == 4
    once_more.close()
