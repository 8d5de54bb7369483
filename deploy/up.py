"""``fedseal up``: a Prefect server, sites and the coordinator as processes of this machine, to try it all out.

Each party has a folder of its own below one home, as it would have at its own organisation. Everything listens on
loopback only, and ends together.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy import EXAMPLE, SERVER_SETTINGS
from deploy.coordinator import TEMPLATE as COORDINATOR_TEMPLATE
from deploy.site import TEMPLATE as SITE_TEMPLATE
from deploy.site import found
from flows.settings import COORDINATOR_FILE, SITE_FILE, SettingsError
from protocols.consortium import write_consortium
from protocols.files import open_log
from protocols.keys import Consortium
from protocols.messages import COORDINATOR

HOSPITALS = ("north", "east", "south", "west")
"""The sites of the embedded example; more are numbered."""
TASK, DATA = "ml_tasks.breast_cancer:BreastCancer", "breast-cancer"
START_S = 120.0
END_S = 20.0


@dataclass
class Home:
    """The folders of a consortium on one machine."""

    folder: Path
    sites: tuple[str, ...]
    url: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / name

    @property
    def example(self) -> Path:
        """The embedded example, over the sites of this home."""
        return self.folder / "example.toml"

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"


def site_names(count: int) -> tuple[str, ...]:
    """The names of the simulated hospitals."""
    if count <= len(HOSPITALS):
        return HOSPITALS[:count]
    return tuple(f"hospital-{place}-of-{count}" for place in range(1, count + 1))


def write_example(home: Home) -> None:
    """Write the embedded example for the sites of this home; the form in the UI begins with it."""
    sites = "sites = [" + ", ".join(f'"{site}"' for site in home.sites) + "]"
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    home.example.write_text("\n".join(sites if line.startswith("sites = ") else line for line in lines) + "\n")


def found_home(
    folder: Path, sites: tuple[str, ...], url: str, tasks: tuple[str, ...] = (TASK,), data: tuple[str, ...] = (DATA,)
) -> Home:
    """Found a consortium in ``folder``, or take the one that is there.

    Args:
        folder: the home.
        sites: their names.
        url: of the Prefect API.
        tasks: what may run at each site.
        data: the names of each site's data sets, which its tasks find without a folder.
    """
    home = Home(folder, sites, url)
    words = {
        "prefect": url,
        "exchange": f"file://{folder.absolute()}/exchange",
        "tasks": "[" + ", ".join(f'"{task}"' for task in tasks) + "]",
    }
    if not (home.coordinator / COORDINATOR_FILE).exists():
        key = found(home.coordinator, COORDINATOR_FILE, COORDINATOR_TEMPLATE.format(**words), COORDINATOR)
        keys = {}
        for site in sites:
            sets = "".join(f"{one} = {{}}\n" for one in data)
            text = SITE_TEMPLATE.format(name=site, data=sets, approval="automatic", **words)
            keys[site] = found(home.site(site), SITE_FILE, text, site)
        for place in (home.coordinator, *(home.site(site) for site in sites)):
            write_consortium(place / "consortium.toml", Consortium(key, keys))
    for place in (home.coordinator / COORDINATOR_FILE, *(home.site(site) / SITE_FILE for site in sites)):
        if not place.exists():
            raise SettingsError(f"{folder}: holds another number of sites: remove it, or name another with --folder")
        lines = [
            f'url = "{url}"' if line.startswith('url = "http') else line for line in place.read_text().splitlines()
        ]
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return home


def start_server(home: Path, port: int, database: str | None = None) -> subprocess.Popen[bytes]:
    """Start a Prefect server on loopback, with a database of its own in ``home``, and wait until it answers.

    Raises:
        SettingsError: it does not answer in time.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": database or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        **SERVER_SETTINGS,
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }
    environment.pop("PREFECT_API_URL", None)
    server = _start(
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], home, "server", environment
    )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    end([server])
    raise SettingsError(f"the Prefect server does not start: {home / 'server.log'} says why")


def start_party(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start ``fedseal site serve`` or ``fedseal coordinator serve`` for a folder."""
    folder = folder.absolute()
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    return _start(["deploy.cli", *words, "--folder", str(folder)], folder, "serve", environment)


def _start(words: list[str], folder: Path, log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a module in a folder, which it imports nothing from, with a log there for its owner alone."""
    with open_log(folder / f"{log}.log") as output:
        return subprocess.Popen(  # noqa: S603 - our own words
            [sys.executable, "-P", "-m", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes, in their order's reverse, by their ids."""
    for process in reversed(processes):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + END_S
    for process in reversed(processes):
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(home: Home, server: subprocess.Popen[bytes], sites: tuple[str, ...] | None = None) -> Iterator[Home]:
    """Run the coordinator and sites of a home until the block ends; the server ends last."""
    home.processes["server"] = server
    try:
        form = ["--plan", str(home.example)] if home.example.exists() else []
        home.processes["coordinator"] = start_party(["coordinator", "serve", *form], home.coordinator)
        for site in home.sites if sites is None else sites:
            home.processes[site] = start_party(["site", "serve", "--no-check"], home.site(site))
        yield home
    finally:
        parties = [process for name, process in home.processes.items() if name != "server"]
        end(parties)
        end([home.processes["server"]])


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def up(folder: Path, count: int, port: int) -> None:
    """Run everything until SIGINT or SIGTERM.

    Raises:
        SettingsError: one line.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    home = found_home(folder, site_names(count), f"http://127.0.0.1:{port}/api")
    write_example(home)
    print(f"Starting a Prefect server, {count} sites and a coordinator; all of it is in {folder}", flush=True)
    with running(home, start_server(folder / "server", port)):
        print(
            f"Open http://127.0.0.1:{port}/deployments: federated-training / train is ready to run. Or, in another "
            f"shell:\n    PREFECT_API_URL=http://127.0.0.1:{port}/api fedseal submit {home.example}\n"
            "Ctrl-C ends all of it.",
            flush=True,
        )
        while not stop.wait(1.0):
            for name, process in home.processes.items():
                if process.poll() is not None:
                    print(f"fedseal: {name} has ended (exit code {process.returncode}): its log says why", flush=True)
                    return
    print("All processes have ended.", flush=True)
