"""``fedseal up`` on a machine as it is: what is in its way is said at once, and nothing is written."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy import up as module
from deploy.alone import alone
from deploy.up import check_port, free_port, home_of_server, last_line, start_server, stopping
from flows.settings import SettingsError
from tests.deploy.command import fedseal

STRANGER = "/home/of/another"


class Stranger(BaseHTTPRequestHandler):
    """Answers as another Prefect server would."""

    def do_GET(self) -> None:
        content = json.dumps({"home": STRANGER}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger() -> Iterator[int]:
    """Another Prefect server; gives its port."""
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def mute() -> Iterator[int]:
    """A program that listens, and hangs up; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        try:
            while True:
                listener.accept()[0].close()
        except OSError:
            return

    threading.Thread(target=hang_up, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize(("holder", "who"), [("stranger", "another Prefect server"), ("mute", "another program")])
def test_a_port_that_is_taken_is_named_and_nothing_is_written(
    holder: str, who: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    port = request.getfixturevalue(holder)
    code, out, err = fedseal("up", "--port", str(port), "--folder", tmp_path / "up")
    assert (code, out) == (2, "")
    assert err == f"fedseal: port {port} is taken by {who}: name another with --port\n"
    assert [path.name for path in (tmp_path / "up").iterdir()] == ["running"]


def test_a_port_that_is_free_is_taken() -> None:
    check_port(free_port())


def test_a_second_up_in_one_folder_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    with alone(tmp_path, "running", "fedseal up"):
        code, out, err = fedseal("up", "--port", str(free_port()), "--folder", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"fedseal: {tmp_path}: another fedseal up is running for it: end that one first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("deploy.alone.fcntl.flock", no_locks)
    with pytest.raises(SettingsError, match="its file system has no locks"):
        alone(tmp_path, "running", "fedseal up")


def test_a_server_that_answers_in_the_place_of_ours_is_not_used(
    stranger: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have come between the look at the port and our own server's start. No proxy is asked for it."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    started = []

    def start(words: list[str], folder: Path, log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        (folder / f"{log}.log").write_text("the port is taken\n\n")
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(module, "_start", start)
    with pytest.raises(SettingsError, match=r"does not start \(the port is taken\)"):
        start_server(tmp_path, stranger)
    assert started[0].returncode == -signal.SIGTERM


def test_where_nobody_listens_there_is_no_server() -> None:
    assert home_of_server(free_port()) is None


def test_the_last_line_of_a_log_is_one_that_a_terminal_may_show(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\nlast \x1b[2J\xff\n  \n")
    assert last_line(log) == "last \\x1b[2J\ufffd"
    log.write_text("")
    assert last_line(log) == "no reason is known"


def test_signals_only_set_the_event_also_when_they_come_twice() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with stopping() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_module_that_was_started_ends_when_its_parent_is_killed() -> None:
    child = "subprocess.Popen([sys.executable, '-P', '-m', 'deploy.child', str(os.getpid()), 'http.server', '0'])"
    parent = f"import os, subprocess, sys, time; print({child}.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        # Serving, it holds this pipe's other end, too: the pipe is at its end once both are gone.
        process.kill()
        process.stdout.read()
    assert not Path(f"/proc/{number}/exe").exists()
