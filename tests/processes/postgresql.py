"""A PostgreSQL cluster of a test's own, from Debian's package, for the Prefect server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.up import free_port

PROGRAMS = Path("/usr/lib/postgresql")


def installed() -> Path | None:
    """The folder of the newest PostgreSQL's programs."""
    found = sorted(PROGRAMS.glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a cluster on loopback; gives the connection URL for Prefect. Nothing of it is left."""
    programs = installed()
    assert programs is not None, "the Debian package postgresql is not installed"
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="fedseal-postgresql-"))
    as_whom = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    if as_whom:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *words: str) -> None:
        with (folder / "log").open("ab") as log:
            subprocess.run([*as_whom, programs / program, *words], check=True, cwd=folder, stdout=log, stderr=log)

    data, options = str(folder / "data"), f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
    run("pg_ctl", "-D", data, "-o", options, "-w", "start")
    try:
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
