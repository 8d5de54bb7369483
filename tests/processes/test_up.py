"""``fedseal up``: everything on one machine with one command, and nothing of it left when it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from deploy.up import free_port
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
