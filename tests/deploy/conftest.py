"""What the tests of the command line share: an empty home."""

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FEDSEAL_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FEDSEAL_HOME", str(folder))
    return folder
