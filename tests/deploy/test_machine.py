"""What a machine must give is looked at before any work; what is wrong is one line (``runs.md``, A and C)."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deploy import home, machine
from deploy.machine import NamedServer, Unfit
from flows.checkpoint import CheckpointError, _hold_alone
from tests.flows.server import client

__all__ = ["client"]


@pytest.mark.parametrize(
    ("named", "expected"), [("", "~/.fedseal"), (None, "~/.fedseal"), ("~/x", "~/x"), ("/srv/fedseal", "/srv/fedseal")]
)
def test_fedseal_home_is_a_folder_and_never_one_called_tilde(
    named: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSEAL_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("FEDSEAL_HOME", named)
    assert home() == Path(expected).expanduser()


def test_a_home_that_is_a_file_in_a_file_or_too_long_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        (Path("/proc/nowhere"), "nothing can be written"),
        (tmp_path / ("x" * 300), "longer than"),
    ):
        monkeypatch.setenv("FEDSEAL_HOME", str(place))
        with pytest.raises(Unfit, match=why) as refused:
            machine.check_home()
        assert str(refused.value).startswith("FEDSEAL_HOME: ") and refused.value.exit_code == 2
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "new" / "home"))
    machine.check_home()
    assert list((tmp_path / "new" / "home").iterdir()) == []


def test_a_file_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "no" / "r.json", Path("/proc/r.json"), tmp_path / ("x" * 300)):
        with pytest.raises(Unfit, match=r"^--json /.*: (is a folder|this file cannot be written)"):
            machine.check_file(place, "--json")
    machine.check_file(tmp_path / "r.json", "--json")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def prepared(code: str, **variables: str | None) -> str:
    """What a program prints after ``prepare`` in an environment with these variables; ``None`` takes one away."""
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    environment |= {name: value for name, value in variables.items() if value is not None}
    words = [sys.executable, "-c", f"from deploy import machine; machine.prepare(); import os; {code}"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_loopback_is_reached_without_a_proxy_and_other_exceptions_stay() -> None:
    bypassed = "from urllib.request import proxy_bypass_environment as direct; "
    bypassed += "print(direct('127.0.0.1:4200'), direct('x.org'), direct('y.org'))"
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": None, "no_proxy": None}
    assert prepared(bypassed, **proxies) == "True False False"
    assert prepared(bypassed, **proxies | {"no_proxy": "x.org"}) == "True True False"


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    prepared(f"os.makedirs({str(tmp_path / 'a' / 'b')!r}); open({str(tmp_path / 'a' / 'b' / 'c')!r}, 'w')")
    modes = [oct(path.stat().st_mode & 0o777) for path in sorted((tmp_path / "a").rglob("*"))]
    assert modes == ["0o700", "0o600"]


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "fedseal"
    gone = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {command} version"
    done = subprocess.run(["/bin/sh", "-c", gone], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["fedseal: the working folder is gone: change into one that is there"]


def test_too_few_open_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(Unfit, match=r"12 sites need some \d+ open files, and 64 are allowed: see ulimit -n"):
        machine.check_files(12)


def test_a_file_system_without_locks_is_not_said_to_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(CheckpointError, match="keeps no locks"):
        _hold_alone(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "text", "variables", "said"),
    [
        ("prefect/profiles.toml", 'active = "a', {}, "profiles.toml is not TOML"),
        ("work/prefect.toml", "[api", {}, "prefect.toml"),
        ("work/nothing", "", {"PREFECT_LOGGING_LEVEL": "LOUD"}, "PREFECT_LOGGING_LEVEL=LOUD"),
        ("work/nothing", "", {"PREFECT_API_REQUEST_TIMEOUT": "soon"}, "PREFECT_API_REQUEST_TIMEOUT=soon"),
        ("prefect", "", {}, "PREFECT_HOME: "),
    ],
    ids=["profiles", "own-file", "level", "number", "home-is-a-file"],
)
def test_a_setting_of_prefect_that_it_cannot_read_is_named(
    place: str, text: str, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(text)
    (tmp_path / "work").mkdir(exist_ok=True)
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "FEDSEAL_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [Path(sys.executable).parent / "fedseal", "run"],
        cwd=tmp_path / "work",
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 2), done.stderr
    assert lines[1].startswith("fedseal: ") and said in lines[1]


class Stranger(BaseHTTPRequestHandler):
    """A web server that answers everything with the status and the text of ``said``."""

    said: tuple[int, str] = (200, "<html>hello</html>")

    def do_GET(self) -> None:
        """Answer."""
        status, text = self.said
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def stranger(status: int, text: str) -> Iterator[str]:
    """The address of an API that always answers the same."""
    with HTTPServer(("127.0.0.1", 0), type("Other", (Stranger,), {"said": (status, text)})) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/api"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (200, "<html>hello</html>", "is not a Prefect server"),
        (404, "nothing", "is not a Prefect server"),
        (401, "no", "set PREFECT_API_AUTH_STRING"),
        (200, "true", "has version true, and this is Prefect"),
    ],
)
def test_what_is_at_an_address_and_no_server_of_ours_is_named(status: int, text: str, said: str) -> None:
    with stranger(status, text) as url, pytest.raises(Unfit, match=said) as refused:
        machine.check_server(NamedServer(url, "PREFECT_API_URL"))
    assert f"{url} (PREFECT_API_URL)" in str(refused.value)


def test_a_server_that_is_there_is_taken_and_what_is_wrong_with_its_address_is_said(client: SyncPrefectClient) -> None:
    url = str(client.api_url).rstrip("/")
    machine.check_server(NamedServer(url, "PREFECT_API_URL"))
    for wrong, said in (
        (url.removesuffix("/api"), "add /api"),
        ("http://127.0.0.1:9/api", "does not answer"),
        ("http://nowhere.invalid/api", "does not resolve"),
    ):
        with pytest.raises(Unfit, match=said):
            machine.check_server(NamedServer(wrong, "PREFECT_API_URL"))


@pytest.mark.parametrize(
    ("server", "fit"),
    [
        ("3.7.8", True),
        ("3.7.0", True),
        ("3.9.1", True),
        ("3.6.9", False),
        ("4.0.0", False),
        ("2.20.1", False),
        ("?", False),
    ],
)
def test_a_server_may_be_newer_and_not_older_or_of_another_major_version(server: str, fit: bool) -> None:
    assert machine.fits(server, "3.7.8") is fit
