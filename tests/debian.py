"""Commands of Debian packages, for tests against real programs."""

import os
import shutil
from pathlib import Path

import pytest


def find_command(package: str, *, command: str | None = None) -> Path:
    """Find a Debian package's command.

    Where it is missing the test is skipped; under CI=true it fails, so that .ci/run cannot forget the package.
    """
    found = shutil.which(command or package, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if found is None:
        reason = f"the Debian package {package} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}: add it to test_packages in .ci/run")
        pytest.skip(reason)
    return Path(found)
