"""The ledger: what is charged, what is released, and that no line of it can be changed, taken out or put back."""

from dataclasses import replace
from pathlib import Path

import pytest

from protocols import site as durable
from protocols.contexts import AttemptContext, sha256
from protocols.errors import Refused
from protocols.history import NO_HISTORY
from protocols.keys import public_of
from protocols.ledger import (
    EMPTY_LEDGER,
    Charge,
    LedgerEntry,
    StoredLine,
    charges,
    check_chain,
    next_head,
    read_entry,
    same_content,
    unspent,
)
from protocols.messages import EVERYONE, Advert, AskAdvertise, AskMask, AskShare, envelope
from protocols.vault import SALT_BYTES, Vault
from tests.attacks.hostile import adverts, confirm_and_reveal, make, mask, reopen, to_dealings
from tests.simulator import Simulator

CHARGE = Charge("heart", ((1.5, 0.1, 1, 0.0),))


def chain(*entries: LedgerEntry) -> list[StoredLine]:
    """Two lines of an earlier version, and salted ones after them."""
    head, lines = EMPTY_LEDGER, list[StoredLine]()
    for number, entry in enumerate(entries, start=1):
        salt = bytes([number] * SALT_BYTES) if number > 2 else None
        head = next_head(head, number, entry.line, salt)
        lines.append(StoredLine(entry.line, head, salt))
    return lines


ENTRIES = (
    LedgerEntry("reserve", sha256("1"), CHARGE),
    LedgerEntry("spent", sha256("1")),
    LedgerEntry("joined", sha256("2")),
    LedgerEntry("reserve", sha256("3"), CHARGE),
    LedgerEntry("release", sha256("3")),
)
LINES = chain(*ENTRIES)


def advertise(simulator: Simulator, site: str, context: AttemptContext, charge: Charge | None = CHARGE) -> None:
    request = envelope(simulator.coordinator, "ask/advertise", context.digest, site, AskAdvertise(context))
    durable.advertise(simulator.vaults[site], simulator.consortium, request, charge=charge)


def kinds(simulator: Simulator, site: str) -> list[str]:
    return [entry.kind for entry in simulator.vaults[site].ledger()]


def test_an_untouched_chain_holds() -> None:
    check_chain("a", LINES)
    check_chain("a", [])


@pytest.mark.parametrize("line", range(len(LINES)))
def test_a_line_that_was_changed_or_taken_out_is_named(line: int) -> None:
    other = replace(ENTRIES[line], context=sha256("another"))
    changed = [*LINES[:line], LINES[line]._replace(line=other.line), *LINES[line + 1 :]]
    with pytest.raises(Refused, match=f"line {line + 1} of the privacy ledger was changed"):
        check_chain("a", changed)
    if line + 1 < len(LINES):
        with pytest.raises(Refused, match=f"line {line + 1} of the privacy ledger was changed"):
            check_chain("a", [*LINES[:line], *LINES[line + 1 :]])


@pytest.mark.parametrize("salt", [None, bytes(SALT_BYTES)])
def test_another_salt_or_none_is_found(salt: bytes | None) -> None:
    with pytest.raises(Refused, match="line 4 "):
        check_chain("a", [*LINES[:3], LINES[3]._replace(salt=salt), *LINES[4:]])


def test_two_lines_in_another_order_are_found() -> None:
    with pytest.raises(Refused, match="line 2 "):
        check_chain("a", [LINES[0], LINES[2], LINES[1], *LINES[3:]])


def test_a_group_is_charged_by_its_names_and_not_for_what_was_released() -> None:
    assert charges(ENTRIES, {"heart"}) == [CHARGE]
    assert charges(ENTRIES, {"icu", "heart"}) == [CHARGE]
    assert charges(ENTRIES, {"icu"}) == []


def test_groups_that_were_charged_with_one_content_count_against_each_other_and_are_named() -> None:
    """Also through a third, and as old lines stand for it, which hold it in the charge."""
    old = replace(CHARGE, data="icu", fingerprint=sha256("old content"))
    new = replace(CHARGE, data="export")
    ledger = (
        *ENTRIES[:2],
        LedgerEntry("reserve", sha256("4"), old),
        LedgerEntry("reserve", sha256("5"), new),
        LedgerEntry("spent", sha256("5"), content=sha256("content")),
    )
    assert charges(ledger, {"heart"}) == [CHARGE]
    both = (
        *ledger,
        LedgerEntry("reserve", sha256("6"), CHARGE),
        LedgerEntry("spent", sha256("6"), None, sha256("content")),
    )
    assert charges(both, {"heart"}) == [CHARGE, new, CHARGE]
    assert same_content(both) == [("export", "heart")]
    all_of_them = (
        *both,
        LedgerEntry("reserve", sha256("7"), new),
        LedgerEntry("spent", sha256("7"), None, sha256("old content")),
    )
    assert len(charges(all_of_them, {"heart"})) == 5
    assert same_content(all_of_them) == [("export", "heart", "icu")]


def test_a_line_holds_what_its_kind_has_and_is_read_back() -> None:
    for entry in (*ENTRIES, LedgerEntry("spent", sha256("5"), content=sha256("content"))):
        assert read_entry(entry.line) == entry
    assert "content" not in ENTRIES[1].line and "fingerprint" not in ENTRIES[0].line


def test_what_was_spent_or_released_is_not_reserved_any_more() -> None:
    assert unspent(ENTRIES) == {}
    assert set(unspent(ENTRIES[:4])) == {sha256("3")}


def test_an_attempt_that_masks_has_spent_and_one_that_does_not_is_released(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    advertise(simulator, "a", simulator.context)
    dealings = to_dealings(simulator)
    assert kinds(simulator, "a") == ["reserve"]
    mask(simulator, dealings, "a", values["a"])
    mask(simulator, dealings, "a", values["a"])
    advertise(simulator, "a", simulator.at(1, 2))
    advertise(simulator, "a", simulator.at(1, 3))
    durable.finish(simulator.vaults["a"], "trial")
    assert kinds(simulator, "a") == ["reserve", "spent", "reserve", "release", "reserve", "release"]
    check_chain("a", simulator.vaults["a"].ledger_lines())


def test_a_charge_without_room_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    request = envelope(
        simulator.coordinator, "ask/advertise", simulator.context.digest, "a", AskAdvertise(simulator.context)
    )

    def never(entries: object, charge: Charge) -> None:
        raise Refused("a", "advertise", "the budget is spent")

    with pytest.raises(Refused, match="the budget is spent"):
        durable.advertise(simulator.vaults["a"], simulator.consortium, request, charge=CHARGE, afford=never)
    assert kinds(simulator, "a") == []
    assert simulator.vaults["a"].find(simulator.context.digest) is None


def test_an_edited_line_in_the_vault_bars_every_further_attempt(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    advertise(simulator, "a", simulator.context)
    vault = simulator.vaults["a"]
    vault._db.execute("UPDATE ledger SET entry = replace(entry, '1.5', '9.5')")
    with pytest.raises(Refused, match="line 1 of the privacy ledger was changed"):
        advertise(simulator, "a", simulator.at(1, 2))


def test_a_ledger_that_was_put_back_is_refused_by_whoever_has_seen_a_later_one(tmp_path: Path) -> None:
    """Put back together with the disk, so that the site itself does not notice."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    for site in dealings.sites:
        mask(simulator, dealings, site, values[site])
    confirm_and_reveal(simulator, dealings, "abcde")
    for number, entries in ((2, 0), (3, 1)):
        context = simulator.at(number, 1)
        sent = adverts(simulator, context, "bcde")
        a = envelope(simulator.vaults["a"].identity, "advert", context.digest, EVERYONE, put_back(entries))
        with pytest.raises(Refused, match="the vault of a was put back"):
            simulator.ask("b", "share", context.digest, AskShare((a, *sent.values())))


def put_back(entries: int) -> Advert:
    """What a site advertises whose ledger is an earlier one, or as long as it was and another."""
    history = replace(NO_HISTORY, ledger_entries=entries, ledger_head=sha256("put back"))
    return Advert.of(public_of(bytes([9] * 32)).hex(), public_of(bytes([8] * 32)).hex(), history)


def test_witnesses_go_on_with_a_ledger_that_goes_on_also_after_a_restart(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    for number in (1, 2, 3):
        dealings = to_dealings(simulator, simulator.at(number, 1))
        for site in dealings.sites:
            mask(simulator, dealings, site, values[site])
        confirm_and_reveal(simulator, dealings, "abcde")
        for site in simulator.vaults:
            reopen(simulator, site)
    assert len({number for number, _ in (vault.ledger_head for vault in simulator.vaults.values())}) == 1


def test_the_same_line_has_another_head_in_each_vault_so_that_no_guess_of_it_can_be_checked(tmp_path: Path) -> None:
    heads = set()
    for name in "ab":
        vault = Vault(tmp_path / name)
        with vault.exclusive():
            vault.enter(ENTRIES[0])
        heads.add(vault.ledger_head[1])
        check_chain(name, vault.ledger_lines())
        vault.close()
    assert len(heads) == 2
    assert next_head(EMPTY_LEDGER, 1, ENTRIES[0].line) not in heads


def test_two_vaults_know_the_same_data_by_two_fingerprints_and_one_vault_by_one(tmp_path: Path) -> None:
    a, b = Vault(tmp_path / "a"), Vault(tmp_path / "b")
    digest = sha256("content")
    assert len({a.fingerprint(digest), b.fingerprint(digest), digest, sha256(digest)}) == 4
    again = Vault(tmp_path / "a")
    assert again.fingerprint(digest) == a.fingerprint(digest) != a.fingerprint(sha256("other"))
    for vault in (a, b, again):
        vault.close()


def test_a_ledger_of_an_earlier_version_goes_on_with_salted_lines(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault._db.execute("DROP TABLE ledger")
    vault._db.execute(
        "CREATE TABLE ledger (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, head TEXT NOT NULL) STRICT"
    )
    old = LedgerEntry("joined", sha256("old")).line.replace(',"content":null', "")
    vault._db.execute("INSERT INTO ledger VALUES (1, ?, ?)", (old, next_head(EMPTY_LEDGER, 1, old)))
    vault.close()
    vault = Vault(tmp_path)
    with vault.exclusive():
        vault.enter(ENTRIES[0])
    assert [stored.salt is None for stored in vault.ledger_lines()] == [True, False]
    assert [entry.kind for entry in vault.ledger()] == ["joined", "reserve"]
    check_chain("a", vault.ledger_lines())
    vault.close()


def test_what_was_spent_says_of_which_data(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    advertise(simulator, "a", simulator.context)
    dealings, vault = to_dealings(simulator), simulator.vaults["a"]
    request = envelope(simulator.coordinator, "ask/mask", dealings.roster.round, "a", AskMask(dealings.inbox("a")))
    content = vault.fingerprint(sha256("content"))
    durable.mask(vault, simulator.consortium, request, values["a"], bytes(32), content=content)
    assert [entry.content for entry in vault.ledger()] == [None, content]
