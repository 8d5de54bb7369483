"""A vault put back to an earlier state has forgotten what it answered: it must not answer anything else (SPEC 7)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import site as durable
from protocols.decisions import Decision
from protocols.errors import Refused
from protocols.ledger import Charge, charges
from protocols.messages import AskAdvertise, Envelope, envelope
from protocols.vault import Vault
from tests.attacks.hostile import confirm, make, mask, reopen, to_dealings, to_masked
from tests.simulator import Simulator

DATABASE = ("vault.sqlite", "vault.sqlite-wal", "vault.sqlite-shm")


def into_the_same_folder(copy: Path, folder: Path) -> None:
    shutil.copytree(copy, folder, dirs_exist_ok=True)


def into_a_new_folder(copy: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


def by_moving_the_copy_there(copy: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    copy.rename(folder)


def the_database_alone(copy: Path, folder: Path) -> None:
    for name in DATABASE:
        (folder / name).unlink(missing_ok=True)
        if (copy / name).exists():
            shutil.copy2(copy / name, folder / name)


def the_database_in_place(copy: Path, folder: Path) -> None:
    for name in DATABASE:
        (folder / name).write_bytes((copy / name).read_bytes() if (copy / name).exists() else b"")


WAYS = (
    into_the_same_folder,
    into_a_new_folder,
    by_moving_the_copy_there,
    the_database_alone,
    the_database_in_place,
)


def restore_afterwards(
    simulator: Simulator, site: str, way: Callable[[Path, Path], None], answer: Callable[[], Envelope]
) -> None:
    """Copy a site's vault, have it answer, and put the copy back."""
    folder = simulator.vaults[site].folder
    copy = folder.with_name(f"{site}-copy")
    shutil.copytree(folder, copy)
    answer()
    simulator.vaults[site].close()
    way(copy, folder)
    simulator.vaults[site] = Vault(folder)


@pytest.mark.parametrize("way", WAYS)
def test_it_confirms_no_second_survivor_set(tmp_path: Path, way: Callable[[Path, Path], None]) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    restore_afterwards(simulator, "a", way, lambda: confirm(simulator, dealings, "abcd", "a"))
    with pytest.raises(Refused, match="its secrets are erased"):
        confirm(simulator, dealings, "abcde", "a")


@pytest.mark.parametrize("way", WAYS)
def test_it_masks_no_second_vector(tmp_path: Path, way: Callable[[Path, Path], None]) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    restore_afterwards(simulator, "a", way, lambda: mask(simulator, dealings, "a", values["a"]))
    with pytest.raises(Refused, match="its secrets are erased"):
        mask(simulator, dealings, "a", values["b"])


def test_it_has_withdrawn_from_every_training_that_it_knows(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    vault, dealings = simulator.vaults["a"], to_masked(simulator, values)
    vault.agree("another", "0" * 64)
    vault.decide(Decision("another", "0" * 64, "its plan", "approved"))
    restore_afterwards(simulator, "a", into_a_new_folder, lambda: confirm(simulator, dealings, "abcd", "a"))
    assert simulator.vaults["a"].ledger()[-1].kind == "restored"
    decisions = {one.training: one.decision for one in simulator.vaults["a"].decisions()}
    assert decisions == {"trial": "restored", "another": "restored"}


def test_what_it_had_reserved_stays_charged_since_it_may_have_been_spent(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    charge = Charge("icu", ((1.5, 0.1, 1, 0.0),))
    context = simulator.context
    request = envelope(simulator.coordinator, "ask/advertise", context.digest, "a", AskAdvertise(context))
    durable.advertise(simulator.vaults["a"], simulator.consortium, request, charge=charge)
    dealings = to_dealings(simulator)
    restore_afterwards(simulator, "a", into_a_new_folder, lambda: mask(simulator, dealings, "a", values["a"]))
    durable.finish(simulator.vaults["a"], "trial")
    entries = simulator.vaults["a"].ledger()
    assert [entry.kind for entry in entries] == ["reserve", "restored"]
    assert charges(entries, {"icu"}) == [charge]


def test_it_is_said_once_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    restore_afterwards(simulator, "a", the_database_alone, lambda: confirm(simulator, dealings, "abcd", "a"))
    reopen(simulator, "a")
    assert [record.getMessage() for record in caplog.records] == [
        "the vault was moved or restored from a copy: it withdraws from every training that it knows"
    ]


def test_a_vault_that_is_opened_again_where_it_was_goes_on(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    simulator.vaults["a"].close()
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    os.rename(tmp_path, moved)
    simulator.vaults["a"] = Vault(moved / "a")
    assert confirm(simulator, dealings, "abcd", "a")


def test_a_count_that_was_not_written_to_the_end_bars_nothing(tmp_path: Path) -> None:
    """Killed between COMMIT and the count's write: the file lags, and nothing was answered yet."""
    simulator, values = make(tmp_path)
    count = simulator.vaults["a"].folder / "count"
    before = count.read_bytes() if count.exists() else b""
    dealings = to_masked(simulator, values)
    first = confirm(simulator, dealings, "abcd", "a")
    count.write_bytes(before)
    reopen(simulator, "a")
    assert confirm(simulator, dealings, "abcd", "a") == first
