"""The command line, run in this process."""

import os
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from deploy.cli import STARTING, app


def fedseal(*words: str | Path) -> tuple[int, str, str]:
    """Run the command in this process, with the server that its tests share; exit code, standard output and error."""
    with ExitStack() as stack:
        if words[0] == "run":
            url = str(stack.enter_context(get_client(sync_client=True)).api_url)
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
            stack.enter_context(patch.dict(os.environ, PREFECT_API_URL=url))
        result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(home: Path, *words: str | Path, after_sums: bool = False) -> str:
    """Run what must be refused: exit code 2, one line on standard error, no folder left; gives the line.

    ``after_sums``: sums have been made before, and the progress of those is told.
    """
    code, out, err = fedseal("run", *words)
    assert code == 2, (out, err)
    assert after_sums or out == ""
    lines = [line for line in err.splitlines() if line.startswith("fedseal: ")]
    assert len(lines) == 1
    assert err.replace(f"{STARTING}\n", "").count("\n") == 1, err
    assert "Traceback" not in err
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())
    return lines[0]
