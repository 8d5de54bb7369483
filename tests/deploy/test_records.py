"""What a data steward reads: who, what, when, with whom and at what cost, in words and as JSON."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.records import SENTENCES, log_line
from deploy.up import Home, found_home
from flows.site_log import LogLine, SiteLog
from protocols.contexts import AttemptContext, Purpose, sha256
from protocols.decisions import Decision
from protocols.ledger import Charge, LedgerEntry
from protocols.vault import Vault
from tests.deploy.command import fedseal

SITES = ("north", "east", "south")
EVENT = (20.0, 0.1, 10, 0.0)
PLAN, OTHER_PLAN = sha256("plan"), sha256("other")
HEART, LUNG, WAITING = "heart-20261128-101010-abcd", "lung-20261128-111111-ef01", "eicu-20261128-121212-2345"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three sites and a coordinator, founded."""
    return found_home(tmp_path / "home", SITES, "http://127.0.0.1:9/api", data=("heart", "lung"))


@pytest.fixture
def vault(home: Home) -> Iterator[Vault]:
    """The vault of north, which has been in two trainings, of which one was noised, and is asked to join a third."""
    opened = Vault(home.site("north") / "vault")
    log = SiteLog(opened.folder)
    for training, data, noised in ((HEART, "heart", True), (LUNG, "lung", False)):
        opened.agree(training, PLAN)
        fields = {"task": f"tasks:{data.title()}", "data": data, "sites": "east, north, south", "plan": PLAN}
        log.append("joined", training=training, **fields)
        for purpose, round_number in (("statistics", 0), ("training", 1), ("training", 2)):
            enter(opened, training, purpose, round_number, data if noised else "")
            log.append("confirmed", training=training, purpose=purpose, round=round_number, attempt=1, sites="a, b")
    log.append("finished", training=LUNG)
    opened.decide(Decision(WAITING, PLAN, "{}", "pending"))
    opened.decide(Decision(HEART, OTHER_PLAN, "{}", "pending"))
    yield opened
    opened.close()


def enter(vault: Vault, training: str, purpose: Purpose, round_number: int, charged: str) -> None:
    """Enter a confirmed sum, and its charge where it was noised."""
    context = AttemptContext(purpose, training, round_number, 1, PLAN, {}, 3, 1, sha256(str(round_number)), (), {})
    with vault.exclusive():
        vault.add(context)
        vault.advance(context.digest, "{}", round_context=None, confirmed=True)
        if not charged:
            vault.enter(LedgerEntry("joined", context.digest))
            return
        vault.enter(LedgerEntry("reserve", context.digest, Charge(charged, (EVENT,))))
        vault.enter(LedgerEntry("spent", context.digest))


def site(home: Home, *words: str) -> tuple[int, str, str]:
    return fedseal("site", *words, "--folder", str(home.site("north")))


def test_the_ledger_says_what_each_training_has_cost_and_each_data_set_in_all(home: Home, vault: Vault) -> None:
    toml = home.site("north") / "site.toml"
    budget = "\n[policy.budgets.heart]\nepsilon = 8.0\ndelta = 1e-6\n"
    toml.write_text(toml.read_text().replace("lung = {}", 'lung = { budget = "none" }') + budget)
    code, out, _ = site(home, "ledger")
    first, second, heart, lung = out.splitlines()
    assert code == 0
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert first.startswith(f"{HEART}: tasks:Heart on heart, with east, south; joined {today} ")
    assert "; sums: 1 statistics, 2 training; epsilon " in first and first.endswith(" at delta 1e-06")
    assert second.endswith("; sums: 1 statistics, 2 training; no privacy")
    assert heart.startswith("heart: trainings: 1, sums: 3, epsilon ") and heart.endswith(" at delta 1e-06, of 8")
    assert lung == "lung: trainings: 1, sums: 3, epsilon 0 at delta 1e-05, no budget"
    assert first.split("epsilon ")[1].split()[0] == heart.split("epsilon ")[1].split()[0]


def test_each_line_of_the_ledger_is_shown_with_its_round_where_that_is_asked_for(home: Home, vault: Vault) -> None:
    lines = site(home, "ledger", "--lines")[1].splitlines()
    assert f"1: reserve heart {HEART} statistics round 0.1" in lines
    assert f"6: spent {HEART} training round 2.1" in lines
    assert f"9: joined {LUNG} training round 2.1" in lines


def test_ledger_and_status_are_given_to_programs_as_well(home: Home, vault: Vault) -> None:
    found = json.loads(site(home, "ledger", "--json")[1])
    assert [one["training"] for one in found["trainings"]] == [HEART, LUNG]
    assert found["trainings"][0]["sums"] == {"statistics": 1, "training": 2}
    assert found["totals"][0]["group"] == "heart" and found["totals"][0]["epsilon"] > 0
    assert len(found["lines"]) == 9
    found = json.loads(site(home, "status", "--json")[1])
    assert {one["training"]: one["word"] for one in found["trainings"]} == {
        HEART: "agreed",
        LUNG: "agreed",
        WAITING: "pending",
    }
    assert found["trainings"][-1]["finished"] is True and found["key"] == vault.identity.public


def test_the_status_says_what_was_done_with_whom_and_what_waits(home: Home, vault: Vault) -> None:
    lines = site(home, "status")[1].splitlines()
    assert f"{HEART}: agreed, 3 sums confirmed, plan {PLAN}" in lines
    assert f"{LUNG}: agreed, finished, 3 sums confirmed, plan {PLAN}" in lines
    assert any(line.startswith("  tasks:Lung on lung, with east, south; joined 20") for line in lines)
    for training, plan in ((WAITING, PLAN), (HEART, OTHER_PLAN)):
        assert f"  waits for you: plan {plan[:12]}: fedseal site show {training}" in lines


def test_a_changed_log_leaves_gaps_in_the_accounts_and_stops_nothing(home: Home, vault: Vault) -> None:
    path = vault.folder / "log.jsonl"
    path.write_text("no line\n" + path.read_text())
    code, out, _ = site(home, "ledger")
    assert code == 0 and f"{HEART}: task and data are not in the log; when is not in the log; sums: " in out


def test_the_log_is_given_to_programs_line_by_line(home: Home, vault: Vault) -> None:
    lines = [json.loads(line) for line in site(home, "log", "--json")[1].splitlines()]
    assert [line["event"] for line in lines[:2]] == ["joined", "confirmed"]
    assert lines[0]["fields"]["training"] == HEART and datetime.fromisoformat(lines[0]["time"]).tzinfo == UTC


FIELDS = {
    "training": "t-1",
    "plan": PLAN,
    "task": "tasks:Heart",
    "data": "heart",
    "sites": "east, north",
    "purpose": "training",
    "round": 2,
    "attempt": 1,
    "cost": "no privacy",
    "step": "mask",
    "context": "c" * 64,
    "reason": "no",
    "by": "fedseal site revoke",
    "key": "b" * 64,
    "former": "unknown",
}


@pytest.mark.parametrize("event", SENTENCES)
def test_each_event_of_the_log_reads_as_a_sentence(event: str) -> None:
    shown = log_line(LogLine(7, datetime(2026, 11, 28, 6, 10, tzinfo=UTC), event, dict(FIELDS), ""))
    assert shown.startswith(f"7 2026-11-28 06:10:00 {event}: ") and "{" not in shown and "=" not in shown


def test_an_event_that_lacks_a_field_is_shown_as_it_is() -> None:
    line = LogLine(7, datetime(2026, 11, 28, tzinfo=UTC), "withdrawn", {"training": "\x1b[2J {by}"}, "")
    assert log_line(line) == "7 2026-11-28 00:00:00 withdrawn: training=\\x1b[2J {by}"
