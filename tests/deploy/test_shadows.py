"""A file of the user's that hides a module is named where starting fails because of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import shadows
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("flows.py", "hides fedseal's flows"),
        ("flows/__init__.py", "hides fedseal's flows"),
        ("queue.py", "hides Python's own queue"),
    ],
)
def test_a_file_that_hides_a_module_is_named_in_one_line(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine = True\n")
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", "import deploy, queue; queue.SimpleQueue; import flows.plan_words"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"fedseal: {tmp_path / file} {said}: rename it, or take its folder out of PYTHONPATH\n"


def test_other_errors_are_shown_as_python_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert shadows.hidden() is None
    shadows.tell(ImportError, ImportError("no module"), None)
    assert capsys.readouterr().err == "ImportError: no module\n"
    shadows.tell(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "fedseal: ended by SIGINT: nothing was begun\n"
