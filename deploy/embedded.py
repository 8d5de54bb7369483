"""The embedded Prefect server of ``fedseal run``: a process of its own on loopback, which ends with the run.

It is handed a socket that listens already, so that no port is free at one moment and taken at the next. However this
process ends, the server notices, and ends too (``deploy.child``).
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.child import command
from deploy.machine import Unfit
from protocols.files import open_log

START_S = 120.0
"""Seconds for a server to answer; a new database was seen to take 25."""
LAST_S = 5.0
"""Seconds that a server has to end by itself."""
TAIL = 20_000
REASONS = {
    "Can't locate revision": "was made by another version of Prefect: set PREFECT_HOME to a new folder",
    "disk is full": "is on a disk that is full: make room, or set PREFECT_HOME to another folder",
    "No space left": "is on a disk that is full: make room, or set PREFECT_HOME to another folder",
    "file is not a database": "is not a database: set PREFECT_HOME to a new folder",
    "disk image is malformed": "is damaged: set PREFECT_HOME to a new folder",
    "unable to open database": "cannot be opened: see to its owner, or set PREFECT_HOME to a folder of yours",
    "readonly database": "cannot be written: see to its owner, or set PREFECT_HOME to a folder of yours",
    "disk I/O error": "cannot be read or written (disk I/O error): set PREFECT_HOME to a folder on another disk",
}
"""What a server prints when it does not start, and what that says of its database."""


class EmbeddedServer:
    """A Prefect server that is starting or runs.

    Attributes:
        url: of its API.
        log: what it prints.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as listening, open_log(log) as output:
            output.truncate(0)
            listening.bind(("127.0.0.1", 0))
            listening.listen(128)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            # What it says goes into its log, and why it does not start is read there.
            environment = os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"}
            environment.pop("PREFECT_API_URL", None)
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                command("deploy.embedded", str(listening.fileno())),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            Unfit: it has ended, or does not answer in time; why, as far as its output says.
        """
        ends = time.monotonic() + START_S
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < ends:
            with contextlib.suppress(OSError), direct.open(f"{self.url}/health", timeout=1.0):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        from prefect.settings import get_current_settings

        said = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        for words, reason in REASONS.items():
            if words in said:
                raise Unfit(f"Prefect's database in PREFECT_HOME, {get_current_settings().home}, {reason}")
        raise Unfit(f"the embedded Prefect server does not start: {self.log} says why", 1)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def embedded_server(log: Path) -> Iterator[EmbeddedServer]:
    """Start a server, which answers some seconds later, and end it after the block."""
    server = EmbeddedServer(log)
    try:
        yield server
    finally:
        server.close()


def main(listening: int) -> None:
    """The server's own program, with the settings that Prefect gives a server that it embeds itself."""
    os.environ |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=listening)])
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
