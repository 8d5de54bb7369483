"""Whoever can write where a worker was started, or where a party's program runs, has no code of theirs imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.up import start_party

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A party's folder; it, and the folder that all is started in, hold modules that leave a mark when imported."""
    folder, started = tmp_path / "party", tmp_path / "started-here"
    mark = f"open({str(tmp_path / 'mark')!r}, 'w').close()"
    for place in (folder, started):
        (place / "deploy").mkdir(parents=True)
        for module in ("calendar.py", "argparse.py", "httpx.py", "deploy/__init__.py", "deploy/cli.py"):
            (place / module).write_text(mark)
    monkeypatch.chdir(started)
    return folder


def test_a_worker_s_program_imports_nothing_from_where_it_was_started(tmp_path: Path) -> None:
    """Nor from where it runs; its worker, started as ``python -m``, would."""
    folder, started = tmp_path / "party", tmp_path / "started-here"
    for place in (folder, started):
        place.mkdir()
        (place / "planted.py").touch()
    (folder / "processes.log").touch(mode=0o644)
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.warm_program", Path("..") / folder.name],
        cwd=started,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    log = folder / "processes.log"
    assert "is last finds None" in log.read_text() and log.stat().st_mode & 0o777 == 0o600


def test_a_party_of_fedseal_up_imports_nothing_from_where_it_was_started(planted: Path) -> None:
    process = start_party(["site", "serve", "--help"], Path("..") / planted.name)
    assert process.wait(60) == 0
    log = planted / "serve.log"
    assert "Usage" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    assert not (planted.parent / "mark").exists()
