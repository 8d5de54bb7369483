"""The vault: what it answers for is on disk, what it rolls back is whole again, what it erases is in no file."""

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import site as durable
from protocols.contexts import sha256
from protocols.errors import Refused
from protocols.files import is_full, write_whole
from protocols.keys import Identity
from protocols.messages import AskAdvertise
from protocols.vault import Entry, Vault
from tests.simulator import Simulator

ROOT = Path(__file__).resolve().parents[2]

SITES = ("ann", "bob", "cat")
SECRET = b"a secret of a round, 32 bytes ..".hex()


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A new vault."""
    vault = Vault(tmp_path / "vault")
    yield vault
    vault.close()


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Three sites."""
    simulator = Simulator(tmp_path / "sites", SITES, threshold=3)
    yield simulator
    simulator.close()


def run(simulator: Simulator) -> None:
    simulator.run(simulator.random_values(np.random.default_rng(1), simulator.context.segments))


def holding(folder: Path, needle: bytes) -> list[str]:
    """The files that hold these bytes."""
    return [path.name for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_nobody_else_can_read_a_file_of_the_vault(simulator: Simulator) -> None:
    run(simulator)
    files = [path for path in simulator.vaults["ann"].folder.rglob("*") if path.is_file()]
    assert {"vault.sqlite", "vault.sqlite-wal", simulator.context.digest} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_an_identity_is_kept_once_and_is_there_after_reopening(vault: Vault) -> None:
    with pytest.raises(ValueError, match="no identity"):
        _ = vault.identity
    identity = Identity.generate("ann")
    vault.keep_identity(identity)
    with pytest.raises(ValueError, match="already"):
        vault.keep_identity(Identity.generate("ann"))
    again = Vault(vault.folder)
    assert (again.identity.name, again.identity.secret) == ("ann", identity.secret)
    again.close()


def test_a_site_agrees_to_one_plan_a_training(vault: Vault) -> None:
    assert vault.agreed("one") is None
    assert vault.agree("one", sha256("plan"))
    assert vault.agree("one", sha256("plan"))
    assert not vault.agree("one", sha256("other plan"))
    assert vault.agreed("one") == sha256("plan")
    assert vault.agree("two", sha256("other plan"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(entry=st.builds(Entry, st.text(), st.text(), st.text()), context=st.text(min_size=1), step=st.text(min_size=1))
def test_a_journal_entry_is_read_back_by_another_process_as_it_was(
    simulator: Simulator, entry: Entry, context: str, step: str
) -> None:
    vault = simulator.vaults["ann"]
    attempt = replace(simulator.context, plan=sha256(context), model=sha256(step))
    with vault.exclusive():
        if vault.find(attempt.digest) is None:
            vault.add(attempt)
            vault.journal(attempt.digest, step, entry)
            kept = entry
        else:
            kept = vault.entry(attempt.digest, step) or entry
    other = Vault(vault.folder)
    assert other.entry(attempt.digest, step) == kept
    other.close()


def test_a_context_is_found_by_its_attempt_and_by_its_round(simulator: Simulator) -> None:
    vault, attempt, round_digest = simulator.vaults["ann"], simulator.context, sha256("round")
    with vault.exclusive():
        vault.add(attempt)
        assert vault.find(round_digest) is None
        vault.advance(attempt.digest, SECRET, round_context=round_digest, confirmed=True)
    found = vault.find(round_digest)
    assert found is not None
    assert found == vault.find(attempt.digest)
    assert (found.confirmed, found.state, found.round, found.model) == (True, SECRET, 1, attempt.model)


def test_a_step_that_fails_leaves_nothing_behind(simulator: Simulator) -> None:
    vault = simulator.vaults["ann"]
    with pytest.raises(RuntimeError), vault.exclusive():
        vault.add(simulator.context)
        raise RuntimeError
    assert vault.find(simulator.context.digest) is None
    with vault.exclusive():
        vault.add(simulator.context)
    assert vault.find(simulator.context.digest) is not None


def test_a_killed_process_leaves_what_it_committed_and_nothing_else(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from protocols.vault import Vault
vault = Vault(Path(sys.argv[1]))
vault.agree("committed", "plan")
with vault.exclusive():
    vault._db.execute("INSERT INTO agreements VALUES ('not committed', 'plan')")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "vault"], cwd=root, env={"PYTHONPATH": str(root)})
    assert killed.returncode == -9
    vault = Vault(tmp_path / "vault")
    assert (vault.agreed("committed"), vault.agreed("not committed")) == ("plan", None)
    vault.close()


def test_two_holders_of_one_vault_take_turns(vault: Vault) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        other = Vault(vault.folder)
        entered.set()
        with other.exclusive():
            order.append("second")
        other.close()

    thread = threading.Thread(target=second)
    with vault.exclusive():
        thread.start()
        # Its opening may have to wait for this hold too.
        entered.wait(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_masked_vector_is_replaced_whole_and_no_unfinished_file_stays(vault: Vault) -> None:
    for vector in (bytes(1000), b"\1" * 10):
        vault.keep_masked("context", memoryview(vector))
        assert vault.masked_path("context").read_bytes() == vector
    assert os.listdir(vault.folder / "masked") == ["context"]


def test_a_finished_training_leaves_its_secrets_in_no_file(simulator: Simulator) -> None:
    run(simulator)
    vault = simulator.vaults["ann"]
    context = vault.find(simulator.context.digest)
    assert context is not None
    assert context.state is not None
    needle = context.state[-2000:-1900].encode()
    with sqlite3.connect(vault.folder / "vault.sqlite") as other:
        other.execute("PRAGMA wal_checkpoint(FULL)")  # as happens by itself once the log is long
    other.close()
    assert set(holding(vault.folder, needle)) == {"vault.sqlite", "vault.sqlite-wal"}
    answer = vault.entry(context.attempt_context, "reveal")
    assert answer is not None
    durable.finish(vault, "trial")
    assert holding(vault.folder, needle) == []
    assert not vault.masked_path(context.attempt_context).exists()
    erased = vault.entry(context.attempt_context, "reveal")
    assert erased == replace(answer, answer=None)


def test_a_refused_attempt_erases_nothing_of_the_one_before(simulator: Simulator) -> None:
    run(simulator)
    vault = simulator.vaults["ann"]
    before = vault.find(simulator.context.digest)
    masked = vault.masked_path(simulator.context.digest).read_bytes()
    unsafe = replace(simulator.at(2, 1), threshold=2)
    with pytest.raises(Refused, match="2 x threshold"):
        simulator.ask("ann", "advertise", unsafe.digest, AskAdvertise(unsafe))
    assert vault.find(simulator.context.digest) == before
    assert vault.masked_path(simulator.context.digest).read_bytes() == masked


def test_a_changed_byte_of_the_file_does_not_pass_for_a_vault(vault: Vault) -> None:
    vault.close()
    path = vault.folder / "vault.sqlite"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(sqlite3.DatabaseError):
        Vault(vault.folder)


def test_threads_may_read_while_another_erases(tmp_path: Path) -> None:
    """A site trains, evaluates and advertises at once: the checkpoint after an erasure fails beside a running read."""
    vault = Vault(tmp_path)
    vault.keep_identity(Identity.generate("ann"))
    assert vault.agree("trial", sha256("plan"))

    def erase() -> bool:
        for _ in range(200):
            with vault.exclusive():
                vault.erase([sha256("over")])
        return True

    def read() -> bool:
        return all(vault.agreed("trial") == sha256("plan") and vault.identity.name == "ann" for _ in range(3000))

    with ThreadPoolExecutor(4) as pool:
        assert all(done.result() for done in [pool.submit(one) for one in (erase, read, erase, read)])
    vault.close()


def test_a_vault_that_is_closed_under_a_running_thread_gives_an_error_and_no_crash(tmp_path: Path) -> None:
    """In local mode a site that outlives its deadline may still be at work when the run ends."""
    script = f"""
import sqlite3, threading
from pathlib import Path
from protocols.keys import Identity
from protocols.vault import Vault

def read(vault):
    try:
        while True:
            vault.identity, vault.agreed("trial"), vault.find("none")
    except sqlite3.ProgrammingError:
        ended.append(1)

ended = []
for number in range(40):
    vault = Vault(Path({str(tmp_path)!r}) / str(number))
    vault.keep_identity(Identity.generate("ann"))
    threads = [threading.Thread(target=read, args=(vault,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    vault.close()
    for thread in threads:
        thread.join()
assert len(ended) == 120
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_a_full_disk_cuts_short_is_not_left_behind_and_the_old_one_stays(tmp_path: Path) -> None:
    """The kernel's limit on a file's size stands for the disk."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            write_whole(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_full(failed.value)
    assert not is_full(FileNotFoundError(2, "no")) and not is_full(ValueError())
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
