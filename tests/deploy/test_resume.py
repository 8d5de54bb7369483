"""``fedseal run --resume``: killed at a random instant and taken up again, a training gives the same model."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from deploy import EXAMPLE
from tests.deploy.command import fedseal
from tests.processes.harness import PATIENCE

SECONDS_AT_MOST = 140 * PATIENCE
ROUNDS = 6
SUMS = ROUNDS + 2
"""Of a whole training: statistics, rounds, the last evaluation."""
KILLS = int(os.environ.get("FEDSEAL_TEST_KILLS", "1"))
"""How many runs are killed; each costs as much as two."""


def start(home: Path, *words: str | Path) -> subprocess.Popen[bytes]:
    """Start ``fedseal run`` in a process group of its own, with the tests' Prefect home.

    Its output goes to a file: a pipe would stay open for as long as the embedded server that it starts.
    """
    home.mkdir(exist_ok=True)
    command = [Path(sys.executable).parent / "fedseal", "run", "--no-baselines", *words]
    environment = {**os.environ, "FEDSEAL_HOME": str(home)}
    with (home / "errors").open("wb") as errors:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def run(home: Path, *words: str | Path) -> tuple[int, str]:
    """Run to the end; exit code and what went to standard error."""
    code = start(home, *words).wait(SECONDS_AT_MOST)
    return code, (home / "errors").read_text()


def only_run(home: Path) -> Path:
    (folder,) = (home / "runs").iterdir()
    return folder


def wait_for(folder: Path, records: int) -> None:
    """Wait until a run has finished so many sums."""
    deadline = time.monotonic() + SECONDS_AT_MOST
    while time.monotonic() < deadline:
        found = list(folder.glob("runs/*/checkpoint/progress.json"))
        if found and len(json.loads(found[0].read_text())["records"]) >= records:
            return
        time.sleep(0.02)
    pytest.fail("the run does not come on")


WORDS = ("--set", f"rounds={ROUNDS}", "--set", "name=killed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody has killed."""
    home = tmp_path_factory.mktemp("whole")
    code, err = run(home, *WORDS)
    assert code == 0, err
    return only_run(home)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_run_that_is_killed_at_a_random_instant_resumes_to_the_same_model(
    tmp_path: Path, whole: Path, kill: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)  # not in the test's name, which each of pytest's processes makes
    print(f"kill {kill} with seed {seed}")
    chance = random.Random(seed)
    process = start(tmp_path / "cut", *WORDS)
    wait_for(tmp_path / "cut", chance.randrange(1, ROUNDS))
    time.sleep(chance.uniform(0, 2.5))
    os.killpg(process.pid, signal.SIGKILL)  # the process and the server that it has started
    process.wait()
    folder = only_run(tmp_path / "cut")
    code, err = run(tmp_path / "cut", "--resume", folder)
    assert code == 0, err
    report = json.loads((folder / "report.json").read_text())
    for record in report["rounds"]:
        assert record["survivors"] == ["east", "north", "south", "west"], record["reasons"]
    one, other = (run_folder / "model.safetensors" for run_folder in (whole, folder))
    assert one.read_bytes() == other.read_bytes()
    assert [record["round"] for record in report["rounds"]] == list(range(1, ROUNDS + 1))
    check_masks(folder)
    check_prefect(folder.name)
    code, out, err = fedseal(
        "verify",
        folder / report["receipt"],
        "--consortium",
        folder / "consortium.toml",
        "--model",
        folder / report["model"],
    )
    assert code == 0, err
    assert f"training[{ROUNDS}." in out


def check_masks(folder: Path) -> None:
    """Each sum was masked with keys of its own, as the receipt shows, and every round is in every vault."""
    entries = json.loads((folder / "receipt.json").read_text())["rounds"]
    for site in entries[0]["survivors"]:
        adverts = [one["body"] for entry in entries for one in entry["adverts"] if one["sender"] == site]
        keys = {json.loads(body)["mask_key"] for body in adverts}
        assert len(keys) == len(entries) == SUMS
    for vault in folder.glob("sites/*/vault.sqlite"):
        with sqlite3.connect(vault) as database:
            rounds = {row[0] for row in database.execute("SELECT round FROM contexts")}
        assert rounds == set(range(SUMS))


def check_prefect(training: str) -> None:
    """Each round's run in Prefect has the parameters that its name says; a round that was cut off has a run more."""
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs(limit=200) if run.parameters.get("training") == training]
    rounds = [run.parameters for run in runs if "round" in run.parameters]
    plan, _day, _time, own = training.rsplit("-", 3)
    shown = f"{plan}-{own}"
    for run in runs:
        if "round" in run.parameters:
            given = run.parameters
            purpose = "" if given["purpose"] == "training" else f"{given['purpose']} "
            assert run.name == f"{shown} {purpose}{given['round']}.{given['attempt']}"
    assert {given["round"] for given in rounds} == set(range(SUMS))
    assert len(rounds) <= SUMS + 1


@pytest.mark.slow
def test_what_cannot_be_resumed_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for words, said in (
        (("--resume", tmp_path), "holds no run's plan"),
        (("--resume", tmp_path / "none"), "holds no run's plan"),
    ):
        code, err = run(tmp_path / "home", *words)
        assert code == 2
        assert said in err
        assert err.count("\n") == 2  # the first says that it starts


@pytest.mark.slow
def test_a_run_that_is_finished_can_be_resumed_and_reports_again_but_not_with_another_plan(whole: Path) -> None:
    home, before = whole.parent.parent, (whole / "model.safetensors").read_bytes()
    code, err = run(home, EXAMPLE, "--set", "rounds=2", "--resume", whole)
    assert (code, "has its own plan" in err) == (2, True)
    code, err = run(home, "--resume", whole)
    assert code == 0, err
    assert (whole / "model.safetensors").read_bytes() == before
    progress = whole / "checkpoint" / "progress.json"
    finished = progress.read_bytes()
    progress.write_text("{}")
    code, err = run(home, "--resume", whole)
    progress.write_bytes(finished)
    assert (code, "cut short" in err) == (2, True)


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_the_run_as_it_was(tmp_path: Path, shared_data: Path) -> None:
    """Even in its first round: the vaults and a held round must not be lost to a mistyped folder."""
    data = shared_data / "uci-heart"
    process = start(tmp_path, EXAMPLE.with_name("heart.toml"), "--data", data, "--set", "rounds=2")
    wait_for(tmp_path, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = only_run(tmp_path)
    (tmp_path / "empty").mkdir()
    code, err = run(tmp_path, "--resume", folder, "--data", tmp_path / "empty")
    assert (code, "processed.cleveland.data" in err) == (2, True)
    assert (folder / "sites" / "va" / "vault.sqlite").exists()
    code, err = run(tmp_path, "--resume", folder, "--data", data)
    assert code == 0, err
