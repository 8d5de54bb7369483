"""A vault put back to an earlier state has forgotten what it answered: it must not answer anything else (SPEC 7)."""

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import tarfile
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
from tests.debian import find_command
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


def as_rsync_does(copy: Path, folder: Path, *, inplace: bool) -> None:
    """What ``rsync -a`` does: it skips what has the same size and time, and renames a new file over the others."""
    for path in sorted(copy.rglob("*")):
        there, known = folder / path.relative_to(copy), path.stat()
        if path.is_dir():
            there.mkdir(exist_ok=True)
        elif not there.exists() or (there.stat().st_size, there.stat().st_mtime_ns) != (
            known.st_size,
            known.st_mtime_ns,
        ):
            target = there if inplace else there.with_name(f".{there.name}.unfinished")
            shutil.copyfile(path, target)
            os.utime(target, ns=(known.st_atime_ns, known.st_mtime_ns))
            target.rename(there)


def by_rsync(copy: Path, folder: Path) -> None:
    as_rsync_does(copy, folder, inplace=False)


def by_rsync_in_place(copy: Path, folder: Path) -> None:
    as_rsync_does(copy, folder, inplace=True)


def by_the_real_rsync(copy: Path, folder: Path, *options: str) -> None:
    subprocess.run([find_command("rsync"), "-a", *options, f"{copy}/", f"{folder}/"], check=True)


def by_the_real_rsync_in_place(copy: Path, folder: Path) -> None:
    by_the_real_rsync(copy, folder, "--inplace", "--delete")


def by_unpacking_an_archive(copy: Path, folder: Path) -> None:
    with tarfile.open(folder.with_name("archive.tar"), "w") as archive:
        archive.add(copy, ".")
    with tarfile.open(folder.with_name("archive.tar")) as archive:
        if hasattr(tarfile, "data_filter"):  # since 3.11.4
            archive.extraction_filter = staticmethod(tarfile.data_filter)
        archive.extractall(folder)  # noqa: S202 - our own


WAYS = (
    into_the_same_folder,
    into_a_new_folder,
    by_moving_the_copy_there,
    the_database_alone,
    the_database_in_place,
    by_rsync,
    by_rsync_in_place,
    by_the_real_rsync,
    by_the_real_rsync_in_place,
    by_unpacking_an_archive,
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


@pytest.mark.parametrize("way", WAYS)
def test_what_was_kept_without_an_answer_is_not_lost_unseen(tmp_path: Path, way: Callable[[Path, Path], None]) -> None:
    """Nothing was answered since the copy was made: what the site has agreed to, or its steward decided, counts too."""
    simulator, _ = make(tmp_path)
    to_dealings(simulator)
    folder = simulator.vaults["a"].folder
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    assert simulator.vaults["a"].agree("another", "0" * 64)
    simulator.vaults["a"].close()
    way(copy, folder)
    simulator.vaults["a"] = Vault(folder)
    assert simulator.vaults["a"].ledger()[-1].kind == "restored"


def test_a_count_that_was_not_written_to_the_end_bars_nothing(tmp_path: Path) -> None:
    """Killed between COMMIT and the count's write: the file lags, and nothing was answered yet."""
    simulator, values = make(tmp_path)
    dealings, vault = to_masked(simulator, values), simulator.vaults["a"]

    def killed(changes: int, name: str | None) -> None:
        raise KeyboardInterrupt

    vault._anchor.advance = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        confirm(simulator, dealings, "abcd", "a")
    reopen(simulator, "a")
    first = confirm(simulator, dealings, "abcd", "a")
    reopen(simulator, "a")
    assert confirm(simulator, dealings, "abcd", "a") == first
    assert "restored" not in {entry.kind for entry in simulator.vaults["a"].ledger()}


def test_a_count_that_could_not_be_written_is_written_before_anything_else_is_answered(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings, vault = to_masked(simulator, values), simulator.vaults["a"]
    advance, failing = vault._anchor.advance, iter([True, True])

    def now_and_then(changes: int, name: str | None) -> None:
        if next(failing, False):
            raise OSError("the disk is away")
        advance(changes, name)

    vault._anchor.advance = now_and_then  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is away"):
            confirm(simulator, dealings, "abcd", "a")
    assert confirm(simulator, dealings, "abcd", "a")
    assert vault._anchor.changes == vault._changes


def test_a_vault_that_is_used_by_several_processes_at_once_is_not_taken_for_a_restored_one(tmp_path: Path) -> None:
    Vault(tmp_path).close()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    vault = Vault(tmp_path)
    assert len(vault.trainings()) == 60
    assert vault.ledger() == []
    vault.close()


def work(folder: Path, name: str) -> None:
    for number in range(20):
        vault = Vault(folder)
        vault.agree(f"{name}-{number}", "0" * 64)
        vault.close()


def test_a_vault_may_be_tidied(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    simulator.vaults["a"]._db.execute("VACUUM")
    simulator.vaults["a"]._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    reopen(simulator, "a")
    assert confirm(simulator, dealings, "abcd", "a")


def test_a_vault_of_an_earlier_version_goes_on_and_a_copy_of_it_is_noticed_afterwards(tmp_path: Path) -> None:
    folder, copy = tmp_path / "vault", tmp_path / "copy"
    vault = Vault(folder)
    vault.agree("a", "0" * 64)
    vault._db.execute("DROP TABLE anchor")
    vault._db.execute("CREATE TABLE anchor (place TEXT NOT NULL, count INTEGER NOT NULL) STRICT")
    vault._db.execute("INSERT INTO anchor VALUES (?, 3)", (vault._anchor.place,))
    (folder / "count").write_bytes(b"%020d" % 3)
    for name in ("count.0", "count.1"):
        (folder / name).unlink(missing_ok=True)
    vault.close()
    shutil.copytree(folder, copy)
    vault = Vault(folder)
    assert vault.ledger() == []
    vault.agree("b", "0" * 64)
    vault.close()
    as_rsync_does(copy, folder, inplace=True)
    vault = Vault(folder)
    assert [entry.kind for entry in vault.ledger()] == ["restored"]
    vault.close()


def test_an_epoch_outside_tells_what_was_put_back_below_the_file_system(tmp_path: Path) -> None:
    """The anchor in the folder is deceived here; the epoch lies elsewhere."""
    folder, epoch = tmp_path / "vault", tmp_path / "elsewhere"
    vault = Vault(folder, epoch)
    snapshot = sqlite3.connect(":memory:")
    vault._db.backup(snapshot)
    counts = [
        (folder / name, (folder / name).read_bytes()) for name in ("count.0", "count.1") if (folder / name).exists()
    ]
    vault.agree("a", "0" * 64)
    snapshot.execute("UPDATE anchor SET kept = NULL")
    snapshot.commit()
    snapshot.backup(vault._db)
    (folder / "count.0").unlink(missing_ok=True)
    (folder / "count.1").unlink(missing_ok=True)
    for path, content in counts:
        path.write_bytes(content)
    vault.close()
    without = Vault(folder)
    assert without.ledger() == []
    without.close()
    vault = Vault(folder, epoch)
    assert [entry.kind for entry in vault.ledger()] == ["restored"]
    vault.close()
    again = Vault(folder, epoch)
    assert len(again.ledger()) == 1
    again.close()


def test_an_epoch_that_is_away_or_another_vault_s_opens_nothing_and_takes_nothing_back(tmp_path: Path) -> None:
    folder, epoch = tmp_path / "vault", tmp_path / "elsewhere"
    Vault(folder, epoch).close()
    with pytest.raises(OSError, match="another vault's"):
        Vault(tmp_path / "other", epoch)
    kept = epoch.read_bytes()
    epoch.unlink()
    with pytest.raises(FileNotFoundError):
        Vault(folder, epoch)
    epoch.write_bytes(kept)
    vault = Vault(folder, epoch)
    vault.agree("a", "0" * 64)
    assert vault.ledger() == [] and epoch.read_bytes() > kept
    vault.close()
