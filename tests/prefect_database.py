"""A Prefect database whose migrations are done: they take 12 s of a processor, and every new server needs them.

The template is made once for each version of Prefect, and lies in ``.test-output/``; a server gets a copy.
"""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / ".test-output"
"""What tests keep; git ignores it."""
DATABASE = "prefect.db"
"""A server's SQLite database, as Prefect calls it in its home."""


def migrated_database(home: Path) -> Path:
    """Give a Prefect home the database of a server that has been started once, unless it has one."""
    path = home / DATABASE
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_template(), path)
    return path


def _template() -> Path:
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"prefect-{version('prefect')}.db"
    with (OUTPUT / "prefect.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                _migrate(Path(folder), path)
    return path


def _migrate(home: Path, path: Path) -> None:
    database = home / DATABASE
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    words = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    unfinished = home / path.name
    with closing(sqlite3.connect(database)) as db:
        db.execute("VACUUM INTO ?", (str(unfinished),))  # one file, with what the write-ahead log holds
    shutil.copyfile(unfinished, path.with_suffix(".unfinished"))
    path.with_suffix(".unfinished").rename(path)
