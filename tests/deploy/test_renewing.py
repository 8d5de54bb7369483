"""A rotated key and a lost vault: the site takes part in the next training, and forgets nothing that it knows."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.up import Home, found_home
from flows.settings import SettingsError, SiteFolder
from flows.site import Site
from flows.site_log import SiteLog
from protocols.consortium import ConsortiumError, read_consortium, write_consortium
from protocols.errors import Refused
from protocols.history import NONE_CONFIRMED, Past
from protocols.keys import Consortium, Identity
from protocols.ledger import EMPTY_LEDGER, Charge, LedgerEntry, charges, check_whole
from protocols.rosters import Roster
from protocols.vault import Decision, Vault
from tests.deploy.command import fedseal
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_leftovers import masked
from tests.flows.test_site import join, refusal

SITES = ("north", "east", "south")
CHARGE = Charge("icu", ((1.0, 1.0, 1, 0.0),))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three sites and a coordinator, founded."""
    return found_home(tmp_path / "home", SITES, "http://127.0.0.1:9/api")


def site(home: Home, *words: str) -> tuple[int, str, str]:
    return fedseal("site", *words, "--folder", str(home.site("north")))


def north(home: Home) -> Vault:
    return SiteFolder.read(home.site("north")).open_vault()


def with_past(home: Home) -> str:
    """Give north a past; gives its key."""
    vault = north(home)
    vault.agree("t-1", "a" * 64)
    with vault.exclusive():
        vault.enter(LedgerEntry("reserve", "c" * 64, CHARGE))
        vault.enter(LedgerEntry("spent", "c" * 64, content=vault.fingerprint("d" * 64)))
        vault.remember("icu", "t-0", Roster(frozenset({vault.identity.public, "b", "c"}), 3))
        vault.add_summed("t-0", vault.fingerprint("d" * 64))
    public = vault.identity.public
    SiteLog(vault.folder).append("approved", training="t-1", plan="a" * 64)
    vault.close()
    return public


def test_a_new_key_keeps_what_was_charged_with_whom_and_leaves_the_trainings_of_the_old_one(home: Home) -> None:
    before = with_past(home)
    code, out, err = site(home, "renew")
    assert code == 0, err
    vault = north(home)
    assert out == f'north = "{vault.identity.public}"\n[former]\nnorth = ["{before}"]\n' and "delete it" in err
    assert vault.identity.public != before
    assert charges(vault.ledger(), {"icu"}) == [CHARGE]
    check_whole("north", vault.ledger())
    assert [roster.threshold for _, roster in vault.rosters({"icu"})] == [3]
    assert vault.summed() == {"icu": {vault.fingerprint("d" * 64)}}
    assert vault.withdrawn("t-1")
    with pytest.raises(Refused, match="put back"):
        vault.take_back("t-1")
    assert [line.event for line in SiteLog(vault.folder).read()] == ["approved", "renewed"]
    assert vault.ledger_lines()[0].salt is not None


def test_a_lost_vault_begins_a_ledger_that_says_so_until_the_steward_knows(home: Home) -> None:
    shutil.rmtree(home.site("north") / "vault")
    code, _, err = site(home, "serve")
    assert code == 2 and "where it is lost, fedseal site renew --lost makes another" in err
    assert (
        "fedseal site renew makes a new key"
        in fedseal(
            "site",
            "init",
            "north",
            "--prefect",
            "http://127.0.0.1:9/api",
            "--exchange",
            "file:///tmp/x",
            "--folder",
            str(home.site("north")),
        )[2]
    )
    code, out, err = site(home, "renew", "--lost")
    assert code == 0 and out.startswith('north = "') and "fedseal site ledger --accept" in err
    with pytest.raises(Refused):
        check_whole("north", north(home).ledger())
    assert site(home, "ledger", "--accept")[0] == 0
    check_whole("north", north(home).ledger())


def test_a_ledger_that_was_changed_is_not_taken_over(home: Home) -> None:
    with_past(home)
    vault = north(home)
    vault._db.execute("UPDATE ledger SET entry = replace(entry, '1.0', '0.0')")
    vault.close()
    code, _, err = site(home, "renew")
    assert code == 2 and "--lost begins without it" in err
    assert not list((home.site("north")).glob("vault.before-*"))


def test_a_renewed_vault_is_not_taken_for_one_that_was_put_back(home: Home) -> None:
    epoch = home.site("north") / "epoch"
    table = home.site("north") / "site.toml"
    table.write_text(table.read_text().replace('vault = "vault"', 'vault = "vault"\nepoch = "epoch"'))
    with_past(home)
    assert epoch.exists()
    assert site(home, "renew")[0] == 0
    for _ in range(2):
        vault = north(home)
        assert "restored" not in {entry.kind for entry in vault.ledger()}
        vault.decide(Decision("t-2", "", "", "revoked"))
        vault.close()


def test_peers_know_a_ledger_by_its_key_and_still_find_one_that_was_put_back(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    past = Past(0, EMPTY_LEDGER, 0, "t", 1, 1, 0, NONE_CONFIRMED)
    with vault.exclusive():
        assert vault.witness("old key", 12, "1" * 64, past, name="north")
        assert vault.witness("new key", 1, "2" * 64, past, name="north"), "its ledger begins anew"
        assert not vault.witness("old key", 11, "3" * 64, past, name="north")
        assert not vault.witness("new key", 1, "4" * 64, past, name="north")


def test_a_site_with_a_new_key_takes_part_in_the_next_training_at_once(tmp_path: Path) -> None:
    """Its ledger has one line, and the one that its peers have seen under its name has three."""
    with trial(tmp_path, plan_for("Bare")) as run:
        for attempt in (1, 2, 3):
            masked(run, attempt)
        vault = Vault(tmp_path / "renewed")
        vault.keep_identity(Identity.generate("dan"))
        sites = run.local.sites.sites
        old = run.live.consortium.sites["dan"]
        consortium = replace(
            run.live.consortium,
            sites={**run.live.consortium.sites, "dan": vault.identity.public},
            former={"dan": (old,)},
        )
        run.live.consortium, run.live.training = consortium, "second"
        dan = sites["dan"]
        sites["dan"] = Site(vault, consortium, run.local.exchange, dan._data, dan._policy)  # type: ignore[index]
        for site in sites.values():
            site._consortium = consortium
        masked(run)
        vault.close()


def test_what_an_earlier_version_kept_by_name_is_the_key_s_that_has_the_name_first(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    with vault.exclusive():
        assert vault.witness("north", 12, "1" * 64)
        assert not vault.witness("its key", 12, "2" * 64, name="north")
        assert vault.witness("a new key", 1, "3" * 64, name="north")


def test_with_whom_data_were_summed_is_told_through_a_new_key(tmp_path: Path) -> None:
    """Else the rotation of one would have every other's steward approve: old and new key would be set apart."""
    with trial(tmp_path, plan_for("Bare")) as run:
        ann, new = run.local.sites.sites["ann"], Identity.generate("dan").public
        with ann.vault.exclusive():
            ann.vault.remember("tiny", "earlier", Roster(frozenset(run.live.consortium.sites.values()), 3))
        old = run.live.consortium.sites["dan"]
        rotated = replace(run.live.consortium, sites={**run.live.consortium.sites, "dan": new})
        assert "would set dan" in refusal(_joined(run, rotated, "without"))
        assert _joined(run, replace(rotated, former={"dan": (old,)}), "with").kind == "joined"


def _joined(run: Trial, consortium: Consortium, training: str):  # type: ignore[no-untyped-def]
    run.local.sites.sites["ann"]._consortium = consortium
    return join(run, "ann", training=training)


def test_former_keys_are_in_the_consortium_file_and_checked(tmp_path: Path) -> None:
    keys = {name: Identity.generate(name).public for name in ("a", "b", "c", "d", "e")}
    consortium = Consortium(keys["e"], {name: keys[name] for name in "abc"}, {}, {"a": (keys["d"],)})
    path = tmp_path / "consortium.toml"
    write_consortium(path, consortium)
    assert read_consortium(path) == consortium
    assert consortium.current(keys["d"]) == keys["a"] and consortium.current(keys["b"]) == keys["b"]
    for former, reason in (({"x": (keys["d"],)}, "former.x"), ({"a": (keys["b"],)}, "is the key of sites.b")):
        with pytest.raises(ConsortiumError, match=reason):
            write_consortium(path, replace(consortium, former=former))


def test_nobody_renews_a_site_that_serves(home: Home) -> None:
    from deploy.alone import alone

    with alone(home.site("north"), "serving", "fedseal site serve"):
        assert "another fedseal site serve is running" in site(home, "renew")[2]
    with pytest.raises(SettingsError):
        SiteFolder.read(home.site("nobody"))
