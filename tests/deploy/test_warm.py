"""A party's programs are forked from a warm parent: each is its own, and none outlives what has started it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes.harness import children

REPOSITORY = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "tests.deploy.warm_program"]


@contextmanager
def worker(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A worker whose programs do what the words say."""
    here = folder / "started-from"
    here.mkdir()
    with subprocess.Popen(
        [*WORKER, folder, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def gone(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(100):
        if not Path(f"/proc/{process}").exists():
            return True
        time.sleep(0.1)
    return False


def test_programs_of_one_warm_parent_end_each_in_its_own_way_and_draw_nothing_alike(tmp_path: Path) -> None:
    with worker(tmp_path, "ends", "exits", "fails", "is killed") as running:
        said, wrong = running.communicate(timeout=60)
    ends = dict(re.findall(r"^(.*) ended with (-?\d+)$", said, re.MULTILINE))
    assert ends == {"ends": "0", "exits": "7", "fails": "1", "is killed": "-9", "is last": "0"}, wrong
    log = (tmp_path / "processes.log").read_text()
    assert "ValueError: it has failed" in log and "ValueError" not in wrong
    assert (tmp_path / "processes.log").stat().st_mode & 0o777 == 0o600
    drawn = [draw for line in log.splitlines() if line.startswith("drew") for draw in line.split()[1:]]
    assert len(drawn) == len(set(drawn)) == 5 * 4
    for word in ends:
        assert f"{word} in {tmp_path} leads True path" in log
        assert f"{word} holds []" in log, "the sockets of others"
    assert "started-from" not in log, "nothing is imported from where the worker was started"
    (told,) = re.findall(r"is last told (.*)", log)
    assert (told.count("started"), told.count("ready")) == (4, 5), "it is made ready at first and after each end"


@pytest.mark.parametrize("whom", ["the worker", "the warm parent"])
def test_a_program_outlives_neither_its_worker_nor_the_warm_parent(whom: str, tmp_path: Path) -> None:
    with worker(tmp_path, "stays") as running:
        assert running.stdout is not None
        program = int(running.stdout.readline().split()[-1])
        (parent,) = children(running.pid)
        os.kill(running.pid if whom == "the worker" else parent, signal.SIGKILL)
        assert gone(program)
        if whom == "the worker":
            assert gone(parent)
        else:
            assert running.stdout.readline() == "stays ended with 1\n"


def test_signals_of_the_terminal_are_the_worker_s_alone(tmp_path: Path) -> None:
    with worker(tmp_path, "stays") as running:
        assert running.stdout is not None
        program = int(running.stdout.readline().split()[-1])
        (parent,) = children(running.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(parent, number)
        time.sleep(0.5)
        assert Path(f"/proc/{program}").exists() and Path(f"/proc/{parent}").exists()
        os.kill(program, signal.SIGTERM)
        assert running.stdout.readline() == "stays ended with -15\n"
