"""Whoever can write where a worker was started, or where a party's program runs, has no code of theirs imported."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from deploy.up import start_party
from deploy.worker import CoordinatorWorker, SiteWorker


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


@pytest.mark.parametrize("worker", [SiteWorker, CoordinatorWorker])
def test_a_worker_s_program_imports_nothing_from_where_it_was_started(
    planted: Path, worker: type[SiteWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "module", "calendar")  # which says how it is used, and ends
    (planted / "processes.log").touch(mode=0o644)
    relative = Path("..") / planted.name
    made = worker(relative, "pool", "name", lambda run: None, limit=1)
    ended = asyncio.run(made.run(SimpleNamespace(id=uuid4()), SimpleNamespace()))
    assert ended.status_code == 2
    log = planted / "processes.log"
    assert "usage" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    assert not (planted.parent / "mark").exists()


def test_a_party_of_fedseal_up_imports_nothing_from_where_it_was_started(planted: Path) -> None:
    process = start_party(["site", "serve", "--help"], Path("..") / planted.name)
    assert process.wait(60) == 0
    log = planted / "serve.log"
    assert "Usage" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    assert not (planted.parent / "mark").exists()
