"""``fedseal up``: a Prefect server, sites and the coordinator as processes of this machine, to try it all out.

Each party has a folder of its own below one home, as it would have at its own organisation. Everything listens on
loopback only, and ends together, also when ``up`` itself is killed. Nothing is written before it is known that folder
and port are free, and nothing is entered at a server but the one that was started here.
"""

import http.client
import json
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
from http import HTTPStatus
from pathlib import Path

from deploy import EXAMPLE, SERVER_SETTINGS
from deploy.alone import alone
from deploy.child import command
from deploy.coordinator import TEMPLATE as COORDINATOR_TEMPLATE
from deploy.founding import found
from deploy.machine import LOOPBACK
from deploy.site import SMOKE_DATA, SMOKE_TASK, fail, one_printed_line
from deploy.site import TEMPLATE as SITE_TEMPLATE
from flows.settings import COORDINATOR_FILE, SITE_FILE, SettingsError
from protocols.consortium import write_consortium
from protocols.files import open_log
from protocols.keys import Consortium
from protocols.messages import COORDINATOR

HOSPITALS = ("north", "east", "south", "west")
"""The sites of the embedded example; more are numbered."""
TASKS, DATA = ("ml_tasks.breast_cancer:BreastCancer", SMOKE_TASK), ("breast-cancer", SMOKE_DATA)
START_S = 120.0
PARTIES_END_S, SERVER_ENDS_S = 6.0, 3.0
"""Seconds that parties have to tell the server that they end, and then the server; together less than 10."""
LONGEST_REASON = 200


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

    def log(self, process: str) -> Path:
        """What a process of this home has printed."""
        if process == "server":
            return self.folder / "server" / "server.log"
        return (self.coordinator if process == "coordinator" else self.site(process)) / "serve.log"

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
    folder: Path, sites: tuple[str, ...], url: str, tasks: tuple[str, ...] = TASKS, data: tuple[str, ...] = DATA
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


def start_server(
    home: Path, port: int, database: str | None = None, stop: threading.Event | None = None
) -> subprocess.Popen[bytes]:
    """Start a Prefect server on loopback, with a database of its own in ``home``, and wait until it answers.

    Args:
        home: the server's folder.
        port: that it listens on.
        database: another database than the one in ``home``.
        stop: ends the wait; the server is then given back as it is.

    Raises:
        SettingsError: it does not answer in time, or another answers in its place.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": database or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        **SERVER_SETTINGS,
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_API_BASE_PATH"):
        environment.pop(name, None)
    server = _start(
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], home, "server", environment
    )
    deadline = time.monotonic() + START_S
    while server.poll() is None and not (stop and stop.is_set()):
        answers = home_of_server(port)
        if answers == str(home):
            return server
        if answers is not None or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if stop and stop.is_set():
        return server
    end([server], SERVER_ENDS_S)
    log = home / "server.log"
    raise SettingsError(f"the Prefect server does not start ({last_line(log)}): {log} says why")


def home_of_server(port: int) -> str | None:
    """The folder of the Prefect server that answers on a port of loopback, ``""`` for what is none; ``None`` if nothing
    answers yet.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/api/admin/settings", timeout=2) as answer:
            return str(json.load(answer).get("home", ""))
    except urllib.error.HTTPError as error:
        return None if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
    except (ValueError, AttributeError):
        return ""
    except (OSError, http.client.HTTPException):
        return None


def last_line(log: Path) -> str:
    """The last line of a log that says anything, shortened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((one_printed_line(line)[:LONGEST_REASON] for line in reversed(lines) if line), "no reason is known")


def start_party(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start ``fedseal site serve`` or ``fedseal coordinator serve`` for a folder."""
    folder = folder.absolute()
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    return _start(["deploy.cli", *words, "--folder", str(folder)], folder, "serve", environment)


def _start(words: list[str], folder: Path, log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a module in a folder, which it imports nothing from, with a log there for its owner alone.

    It ends with this process, and asks no proxy for what is on this machine.
    """
    direct = {name: ",".join(filter(None, (environment.get(name), LOOPBACK))) for name in ("NO_PROXY", "no_proxy")}
    with open_log(folder / f"{log}.log") as output:
        return subprocess.Popen(  # noqa: S603 - our own words
            command(*words),
            cwd=folder,
            env=environment | direct,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(processes: list[subprocess.Popen[bytes]], limit_s: float = PARTIES_END_S) -> None:
    """End processes, in their order's reverse, by their ids; those that have not ended in time are killed."""
    for process in reversed(processes):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + limit_s
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
        end([home.processes["server"]], SERVER_ENDS_S)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """See that nobody listens on a port of loopback.

    Raises:
        SettingsError: somebody does, or it cannot be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # or connections of the last ``up`` would be in the way
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise SettingsError(f"port {port} is not for everybody: name another with --port") from None
        except OSError:
            who = "another Prefect server" if home_of_server(port) else "another program"
            raise SettingsError(f"port {port} is taken by {who}: name another with --port") from None


def up(folder: Path, count: int, port: int) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP.

    Raises:
        SettingsError: one line, before anything is written.
        typer.Exit: with exit code 1, when the server does not start or a process has ended by itself.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with stopping() as stop, alone(folder, "running", "fedseal up"):
        check_port(port)
        home = found_home(folder, site_names(count), f"http://127.0.0.1:{port}/api")
        write_example(home)
        say(f"Starting a Prefect server, {count} sites and a coordinator; all of it is in {folder}")
        try:
            server = start_server(folder / "server", port, stop=stop)
        except SettingsError as error:
            raise fail(error, 1) from None
        with running(home, server, () if stop.is_set() else None):
            if not stop.is_set():
                say(
                    f"Open http://127.0.0.1:{port}/deployments: federated-training is ready to run. Or, in another "
                    f"shell:\n    fedseal submit --follow --folder {home.coordinator} {home.example}\n"
                    "Ctrl-C ends all of it."
                )
            watch(home, stop)
        say("All processes have ended.")


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set; that they come again changes nothing."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(home: Home, stop: threading.Event) -> None:
    """Wait until it is time to end.

    Raises:
        typer.Exit: a process has ended by itself, which is said.
    """
    while not stop.wait(1.0):
        for name, process in home.processes.items():
            if process.poll() is not None:
                log = home.log(name)
                how = f"exit code {process.returncode}; {last_line(log)}"
                raise fail(f"{name} has ended ({how}): everything ends; {log} says why", 1)


def say(text: str) -> None:
    """Print; a reader that has gone, as in ``| head`` or with its terminal, stops nothing."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # or the last flush would fail again
