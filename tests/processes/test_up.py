"""``fedseal up``: everything on one machine with one command, and nothing of it left when it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from deploy.up import free_port, site_names
from flows.participation import ENDED
from tests.processes.harness import eventually


def processes_of(folder: Path) -> list[str]:
    """The command lines of living processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has ended
            continue
        if str(folder) in words:
            found.append(words)
    return found


@dataclass
class Started:
    """``fedseal up`` with three sites, and what it has printed."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def home(self) -> Path:
        """Of all parties."""
        return self.folder / "up"

    @property
    def printed(self) -> str:
        """On both streams."""
        return (self.folder / "printed").read_text()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """A ``fedseal up`` that has said that it starts."""
    words = ["up", "--sites", "3", "--port", str(free_port()), "--folder", str(tmp_path / "up")]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *words], stdout=printed, stderr=printed, start_new_session=True
        )
    found = Started(process, tmp_path)
    eventually(lambda: "Starting a Prefect server" in found.printed, 60)
    yield found
    if process.poll() is None:
        process.kill()
        process.wait()


STARTS, RUNS, SERVES = "Starting", "Ctrl-C", "serves"
"""When a signal comes: before the server answers, as soon as it does, or when the parties have entered themselves.

``python -m tests.benchmarks.signals`` takes any moment.
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "words"),
    [(STARTS, "SIGHUP"), (STARTS, "SIGKILL"), (RUNS, "SIGTERM"), (SERVES, "SIGINT SIGINT"), (SERVES, "SIGKILL")],
)
def test_up_ends_within_ten_seconds_of_a_signal_and_leaves_no_process(
    moment: str, words: str, started: Started
) -> None:
    signals = words.split()
    if moment == RUNS:
        eventually(lambda: RUNS in started.printed, 120)
    if moment == SERVES:
        parties = [started.home / "coordinator", *(started.home / "sites" / name for name in site_names(3))]
        logs = [party / "serve.log" for party in parties]
        eventually(lambda: all(path.exists() and SERVES in path.read_text() for path in logs), 120)
    for name in signals:
        started.process.send_signal(signal.Signals[name])
    assert started.process.wait(10) == (-signal.SIGKILL if signals == ["SIGKILL"] else 0)
    assert eventually(lambda: not processes_of(started.home), 10)
    assert "Traceback" not in started.printed


@pytest.mark.slow
def test_up_says_which_party_has_ended_and_ends_with_exit_code_1(started: Started) -> None:
    eventually(lambda: RUNS in started.printed, 120)
    (north,) = (int(one.name) for one in Path("/proc").glob("[0-9]*") if is_site(one, started.home / "sites" / "north"))
    os.kill(north, signal.SIGKILL)
    assert started.process.wait(15) == 1
    assert "fedseal: north has ended (exit code -9; " in started.printed
    assert eventually(lambda: not processes_of(started.home), 10)


def is_site(process: Path, folder: Path) -> bool:
    """Whether a process of ``/proc`` serves a site's folder."""
    try:
        return (process / "cmdline").read_bytes().split(b"\0")[-2] == str(folder).encode()
    except (OSError, IndexError):
        return False


@pytest.mark.slow
def test_up_with_five_sites_trains_the_embedded_example_verifies_and_leaves_no_process(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "up"
    fedseal = [sys.executable, "-m", "deploy.cli"]
    words = [*fedseal, "up", "--sites", "5", "--port", str(port), "--folder", str(home)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"

    def submitted() -> str | None:
        environment = {**os.environ, "PREFECT_API_URL": url}
        submit = [*fedseal, "submit", str(home / "example.toml"), "--set", "rounds=2"]
        done = subprocess.run(submit, env=environment, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        eventually(lambda: RUNS in (tmp_path / "log").read_text(), 120)
        run = eventually(submitted, 120, 2.0)
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            state = eventually(lambda: (one := client.read_flow_run(run).state).type in ENDED and one, 240, 1.0)
        assert state.type == StateType.COMPLETED, state
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, (tmp_path / "log").read_text()
    assert "All processes have ended." in (tmp_path / "log").read_text()
    assert eventually(lambda: not processes_of(home), 15)
    (receipt,) = home.glob("coordinator/runs/*/receipt.json")
    parts = [
        "--consortium",
        str(home / "coordinator" / "consortium.toml"),
        "--model",
        str(receipt.parent / "model.safetensors"),
    ]
    done = subprocess.run([*fedseal, "verify", str(receipt), *parts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hospital-5-of-5" in done.stdout
