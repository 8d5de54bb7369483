"""A command can be ended at any moment: one line, nothing that runs on, and a run that goes on where it was."""

import errno
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deploy.ending import Heard, unforeseen
from tests.deploy.running import FEDSEAL, SIGNALS, begin, gone, wait_for


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_server_and_one_that_is_ended_says_how_to_go_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in (random.choice(SIGNALS), signal.SIGKILL):
        running = begin(home, "run", "--set", "rounds=30", "--no-baselines")
        wait_for("training 1.", home / "out")
        running.send_signal(number)
        code = running.wait(10)
        assert gone(home)
        said = (home / "err").read_text()
        assert "Traceback" not in said
        if number == signal.SIGKILL:
            continue
        assert code == 128 + number
        assert f"ended by {number.name}: go on with: fedseal run --resume {home / 'runs'}" in said


@pytest.mark.slow
def test_a_run_that_is_ended_at_any_moment_goes_on_to_the_same_model(tmp_path: Path) -> None:
    words = ("run", "--set", "rounds=3", "--no-baselines")
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert begin(whole, *words).wait(300) == 0
    lasted = time.monotonic() - began
    ((model,),) = [list((whole / "runs").glob("*/model.safetensors"))]
    home = tmp_path / "home"
    running = begin(home, *words)
    time.sleep(random.uniform(0, lasted))
    running.send_signal(random.choice(SIGNALS))
    running.wait(15)
    assert gone(home), "something runs on"
    assert "Traceback" not in (home / "err").read_text()
    runs = list(home.glob("runs/*"))
    again = begin(home, "run", "--no-baselines", "--resume", runs[0]) if runs else begin(home, *words)
    assert again.wait(300) == 0, (home / "err").read_text()
    assert next(home.glob("runs/*/model.safetensors")).read_bytes() == model.read_bytes()


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_pipe_that_is_closed_is_no_error_and_a_full_disk_is_one_line(
    unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    said = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {FEDSEAL} --help | head -n 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    full = subprocess.run(
        ["/bin/bash", "-c", f"{FEDSEAL} version > /dev/full"], capture_output=True, text=True, check=False
    )
    assert full.stderr.splitlines() == [
        "fedseal: standard output cannot be written (No space left on device): what it should have said is lost"
    ]


def test_a_stream_that_is_lost_stays_lost_and_says_why() -> None:
    with open("/dev/full", "w") as full:
        heard = Heard(full)
        assert heard.write("x") == 1
        heard.flush()
        assert heard.lost is not None and heard.lost.errno == errno.ENOSPC
        assert heard.write("y") == 1


def test_what_was_not_foreseen_is_one_line_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path))
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        said = unforeseen(error)
    assert said == f"RuntimeError: two lines: this was not foreseen; all of it is in {tmp_path / 'errors.log'}"
    assert "test_ending.py" in (tmp_path / "errors.log").read_text()
    assert "see ulimit" in unforeseen(RuntimeError("can't start new thread"))
    assert "make room" in unforeseen(OSError(errno.ENOSPC, "No space left on device"))
