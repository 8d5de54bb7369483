"""The data steward's commands: a plan is seen before it is approved, and what is approved is the one that was named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.up import Home, found_home
from flows.plan import Plan, make_plan
from flows.site_log import SiteLog
from protocols.decisions import MOST_WAITING_OF_TRAINING, Decision
from protocols.vault import Vault
from tests.deploy.command import fedseal

SITES = ("north", "east", "south")
FIELDS = {
    "name": "tiny",
    "task": "tests.flows.tasks:Tiny",
    "data": "tiny",
    "sites": list(SITES),
    "rounds": 3,
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three sites and a coordinator, founded."""
    return found_home(tmp_path / "home", SITES, "http://127.0.0.1:9/api")


@pytest.fixture
def vault(home: Home) -> Iterator[Vault]:
    """The vault of the site north."""
    opened = Vault(home.site("north") / "vault")
    yield opened
    opened.close()


def plan_of(**fields: object) -> Plan:
    return make_plan({**FIELDS, **fields}, source="test")


def wait(vault: Vault, plan: Plan, training: str = "t-1") -> str:
    """Have a plan wait; gives its digest."""
    vault.decide(Decision(training, plan.digest, plan.to_json(), "pending"))
    return plan.digest


def site(home: Home, *words: str) -> tuple[int, str, str]:
    return fedseal("site", *words, "--folder", str(home.site("north")))


def test_a_plan_is_shown_in_words_before_anything_is_approved(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of(rounds=7))
    assert "t-1: pending" in site(home, "status")[1]
    assert "fedseal site show t-1" in site(home, "status")[1]
    code, out, _ = site(home, "show", "t-1")
    assert code == 0
    for words in (
        f"plan {digest}: pending",
        "asked by     the coordinator, key ",
        "tests.flows.tasks:Tiny, which is NOT on your list",
        "tiny: no folder is named for it here",
        "with         east, south; a sum needs 3 of 3 sites",
        "rounds       7, at most 3 attempts",
        "NO differential privacy",
        "what leaves  is not known: the plan is for code that does not run here",
        f"fedseal site approve t-1 {digest}",
    ):
        assert words in out, out
    assert json.loads(site(home, "show", "t-1", "--text")[1]) == json.loads(plan_of(rounds=7).to_json())
    assert site(home, "show", "t-2")[0] == 2


def test_without_a_digest_the_plan_is_shown_and_nothing_approved(home: Home, vault: Vault) -> None:
    wait(vault, plan_of())
    code, out, err = site(home, "approve", "t-1")
    assert code == 2 and "rounds       3" in out and "nothing was approved" in err
    found = vault.decision("t-1")
    assert found is not None and found.decision == "pending"


def test_what_is_approved_is_the_plan_that_was_named_and_no_other(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    other = wait(vault, plan_of(rounds=900))
    assert site(home, "approve", "t-1", "e" * 64)[0] == 2
    assert site(home, "approve", "t-1", digest)[0] == 0
    wait(vault, plan_of(rounds=901))
    words = {one.plan: one.decision for one in vault.decisions()}
    assert words[digest] == "approved" and words[other] == "pending"
    assert [line.fields["plan"] for line in SiteLog(vault.folder).read() if line.event == "approved"] == [digest]


def test_first_digits_name_a_plan_that_was_shown(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    assert site(home, "approve", "t-1", digest[:12])[0] == 2
    site(home, "show", "t-1")
    assert site(home, "approve", "t-1", digest[:11])[0] == 2
    assert site(home, "approve", "t-1", digest[:12])[0] == 0


def test_a_plan_that_takes_the_place_of_the_one_shown_is_not_approved_by_its_first_digits(
    home: Home, vault: Vault
) -> None:
    """Whoever writes plans can have two digests begin alike, here by fiat, and push out the one that was looked at."""
    shown, swapped = "ab" * 32, "ab" * 20 + "cd" * 12
    vault.decide(Decision("t-1", shown, plan_of().to_json(), "pending"))
    site(home, "show", "t-1")
    for number in range(MOST_WAITING_OF_TRAINING):
        wait(vault, plan_of(rounds=10 + number))
    vault.decide(Decision("t-1", swapped, plan_of(rounds=900).to_json(), "pending"))
    assert shown not in vault.plans("t-1")
    assert site(home, "approve", "t-1", shown[:16])[0] == 2


def test_to_withdraw_and_to_come_back(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    site(home, "approve", "t-1", digest)
    assert site(home, "revoke", "t-1")[0] == 0
    assert {one.training: one.decision for one in vault.decisions()} == {"t-1": "revoked"}
    assert "the site has withdrawn" in site(home, "show", "t-1")[1]
    assert site(home, "approve", "t-1", digest)[0] == 0
    assert not vault.withdrawn("t-1")
    events = [line.event for line in SiteLog(vault.folder).read()]
    assert events == ["approved", "withdrawn", "approved"]


def test_a_mistyped_training_is_neither_left_nor_approved_and_those_that_are_known_are_named(
    home: Home, vault: Vault
) -> None:
    for name in ("heart-2026", "lung-2026"):
        wait(vault, plan_of(name=name), name)
    vault.agree("eicu-7", "ab" * 32)
    known = "did you mean heart-2026? known: heart-2026, eicu-7, lung-2026 (fedseal site status)\n"
    for command in ("revoke", "show"):
        code, out, err = site(home, command, "hart-2026")
        assert (code, out) == (2, "")
        assert err == f"fedseal: hart-2026: no training of this name is known here: {known}"
    code, _, err = site(home, "approve", "eicu-7", "ab" * 32)
    assert code == 2 and "no plan of this name waits here: known: heart-2026, lung-2026 (" in err
    assert not vault.withdrawn("hart-2026") and not SiteLog(vault.folder).path.exists()


def test_a_site_that_knows_no_training_says_so(home: Home, vault: Vault) -> None:
    assert "no training of this name is known here: there is none yet" in site(home, "revoke", "t-1")[2]


def test_no_approval_brings_back_what_a_restored_vault_knew(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    vault.close()
    (home.site("north") / "vault" / "place").unlink()
    code, out, err = site(home, "approve", "t-1", digest)
    assert (code, out) == (2, "") and "put back from a copy" in err
    assert "no approval brings it back" in site(home, "show", "t-1")[1]
    assert "t-1: restored" in site(home, "status")[1]


def test_the_log_is_shown_checked_and_cut_to_a_time(home: Home, vault: Vault) -> None:
    SiteLog(vault.folder).append("refused", step="join", reason="bad \x1b[2J name")
    wait(vault, plan_of(), "t-9")
    site(home, "revoke", "t-9")
    code, out, _ = site(home, "log")
    assert code == 0 and "refused: refused join: bad \\x1b[2J name" in out
    assert "\x1b" not in out and "withdrawn: left t-9: fedseal site revoke" in out
    assert "2 lines, none changed" in site(home, "log", "--verify")[1]
    assert site(home, "log", "--since", "2999-01-01") == (0, "", "")
    assert site(home, "log", "--since", "yesterday")[0] == 2
    path = vault.folder / "log.jsonl"
    path.write_text(path.read_text().replace("join", "mask"))
    code, _, err = site(home, "log", "--verify")
    assert code == 2 and "line 1 is not as it was written" in err


def test_the_trainings_that_were_joined_on_the_same_data_are_shown(home: Home, vault: Vault) -> None:
    log = SiteLog(vault.folder)
    for training, data in (("t-0", "tiny"), ("t-1", "tiny"), ("other", "heart")):
        log.append("joined", training=training, data=data, sites="east, north, south")
    wait(vault, plan_of())
    out = site(home, "show", "t-1")[1]
    assert "earlier      t-0 (0 sums with east, north, south)\n" in out


def test_what_failed_here_is_shown_first(home: Home, vault: Vault) -> None:
    SiteLog(vault.folder).fail("ValueError: could not read\n\x1b[2J row 7", step="train", training="t-1", round=2)
    first, second = site(home, "status")[1].splitlines()[:2]
    assert first.startswith("FAILED ") and "train in t-1: ValueError: could not read\\n\\x1b[2J row 7" in first
    assert second.startswith("north: key ")


def test_task_and_data_are_checked_with_every_reason(home: Home) -> None:
    toml = home.site("north") / "site.toml"
    text = toml.read_text()
    data = home.site("north") / "empty"
    data.mkdir()
    begin, end = text.index("[data]"), text.index("[policy]")
    toml.write_text(
        text[:begin]
        + '[data]\nheart = "empty"\n\n'
        + text[end:].replace("tasks = [", 'tasks = ["ml_tasks.heart:HeartDisease", ')
    )
    code, out, _ = site(home, "check", "ml_tasks.heart:HeartDisease", "--data", "heart")
    assert code == 1 and out.startswith("ml_tasks.heart:HeartDisease on heart: ")
    assert site(home, "check", "os.path:X", "--data", "heart")[0] == 2
    assert site(home, "check", "ml_tasks.heart:HeartDisease", "--data", "other")[0] == 2


def test_a_task_s_code_is_printed_and_nothing_of_it_run(tmp_path: Path) -> None:
    from flows.code_digest import code_digest

    assert fedseal("code", "ml_tasks.heart:HeartDisease")[:2] == (0, code_digest("ml_tasks.heart:HeartDisease") + "\n")
    assert fedseal("code", "no_such_package:X")[0] == 2


def test_what_leaves_and_what_it_costs_is_told(home: Home, vault: Vault) -> None:
    toml = home.site("north") / "site.toml"
    toml.write_text(toml.read_text().replace("tasks = [", 'tasks = ["tests.flows.tasks:Tiny", '))
    privacy = {"unit": "record", "epsilon": 8.0, "expected_batch": 4.0}
    wait(vault, plan_of(local={"steps": 1}, privacy=privacy))
    out = site(home, "show", "t-1")[1]
    for words in ("training, 3 time(s), masked, ", "update (", "statistics, 1 time(s)", "price        epsilon "):
        assert words in out, out


def test_the_author_who_has_signed_a_plan_is_named(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    assert "signed by" not in site(home, "show", "t-1")[1]
    SiteLog(vault.folder).append("asked", training="t-1", plan="e" * 64, author="mallory")
    SiteLog(vault.folder).append("asked", training="t-1", plan=digest, author="jane")
    out = site(home, "show", "t-1")[1]
    assert "  signed by    the author jane (of your consortium file)\n" in out and "mallory" not in out


def test_a_withdrawal_can_be_taken_back_and_what_was_approved_waits_again(home: Home, vault: Vault) -> None:
    digest = wait(vault, plan_of())
    vault.decide(Decision("t-1", digest, plan_of().to_json(), "approved"))
    assert "has not withdrawn from it" in site(home, "revoke", "t-1", "--undo")[2]
    site(home, "revoke", "t-1")
    code, _, err = site(home, "revoke", "t-1", "--undo")
    assert code == 0 and err.startswith("the site takes part again: t-1\n")
    assert "warning: the Prefect server does not answer" in err and "give this command again" in err
    found = vault.decision("t-1")
    assert found is not None and (found.plan, found.decision) == (digest, "pending")
    assert [line.event for line in SiteLog(vault.folder).read()][-2:] == ["withdrawn", "returned"]
    assert "took back that it had left t-1" in site(home, "log")[1]


def test_what_a_vault_left_since_it_was_put_back_stays_left(home: Home, vault: Vault) -> None:
    wait(vault, plan_of())
    with vault.exclusive():
        vault._decisions.restored()
    assert "was put back from a copy" in site(home, "revoke", "t-1", "--undo")[2]
    assert vault.withdrawn("t-1")
