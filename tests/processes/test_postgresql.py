"""Everything also on PostgreSQL, which is what a server for more than one machine runs on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.harness import consortium
from tests.processes.postgresql import postgresql


@pytest.mark.slow
def test_a_training_over_four_site_processes_with_a_server_on_postgresql(
    tmp_path: Path, debian_package: Callable[..., Path]
) -> None:
    debian_package("postgresql", command="pg_lsclusters")
    with postgresql() as url, consortium(tmp_path, database=url) as running:
        run = running.submit(running.plan())
        report = running.finished(run)
        server = (running.home.folder / "server" / "server.log").read_text()
    assert [record["survivors"] for record in report["rounds"]] == [sorted(running.home.sites)] * 2
    assert not any(record["reasons"] for record in report["rounds"])
    assert "Traceback" not in server
