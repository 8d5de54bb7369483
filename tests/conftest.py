"""What all tests share: an own Prefect home, hypothesis profiles, the open data and the Debian packages.

Prefect reads its settings when it is first imported, so this file sets them at its top, before any test module can
import it. A test asks for the fixture that it needs; what runs by itself is what puts the environment back. What tests
share a process in ``make test-slow``, and that a test has become slow, is said here, too.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from deploy import SERVER_SETTINGS
from tests.debian import find_command
from tests.prefect_database import migrated_database

REPOSITORY = Path(__file__).resolve().parent.parent

# A developer's own server, profile or key must not be touched by tests.
for name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[name]

_prefect_home = tempfile.mkdtemp(prefix="fedseal-tests-prefect-")
# Registered before Prefect's own exit handlers, thus run after them: its server has let go of the database by then.
atexit.register(shutil.rmtree, _prefect_home, ignore_errors=True)

os.environ.update(
    SERVER_SETTINGS,
    PREFECT_HOME=_prefect_home,
    PREFECT_LOGGING_LEVEL="WARNING",
    # With a new database the embedded server was seen to take 25 s; Prefect gives up after 20 s.
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)

# Hypothesis derandomises by itself where CI is set; ours goes on searching there, and prints how to repeat a failure.
_random = settings(settings.get_profile("default"), deadline=None)
settings.register_profile("fedseal", _random)
settings.register_profile("ci", _random, print_blob=True)
settings.register_profile("thorough", _random, max_examples=10_000, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "fedseal")

ONE_FIXTURE = ("tests/hostile/",)
"""Folders whose files share a consortium."""
LONGEST_S = 150
"""Seconds that a test may take with its fixtures, in ``make test-slow`` on two idle cores."""


class ByFixture(LoadScopeScheduling):
    """Keeps the tests of a file in one process, and those of a folder with a fixture that takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return next((folder for folder in ONE_FIXTURE if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Replace ``--dist loadfile``; ``--dist loadgroup`` of pytest-xdist 3.8 groups nothing with pytest 9.2."""
    return ByFixture(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the embedded server find its database, where a test uses Prefect."""
    if session.items and "prefect" in sys.modules:
        migrated_database(Path(_prefect_home))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that take too long; ``timeout`` in pyproject.toml ends them at four times that."""
    took_s: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                took_s[report.nodeid] += report.duration
    for name, seconds in took_s.most_common():
        if seconds > LONGEST_S:
            terminalreporter.write_line(f"TOO SLOW {name}: {seconds:.0f} s, and {LONGEST_S} s is the most", yellow=True)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Put the environment back: a command names its server there, which Prefect reads anew as settings change.

    A flow of a later test in this process would send its events to the server that an earlier test has named.
    """
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder with the open data sets (`uci-heart/`, `eicu-demo/`), or skip where it is not there."""
    folder = Path(os.environ.get("FEDSEAL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no open data at {folder}; FEDSEAL_TEST_DATA can name another folder")
    return folder


@pytest.fixture(scope="session")
def debian_package() -> Callable[..., Path]:
    """Give the function that finds a Debian package's command, or skips; under CI=true it fails."""
    return find_command
