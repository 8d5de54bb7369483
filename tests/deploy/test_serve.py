"""What a site tries when it begins to serve: each thing that is wrong is one line, which says what mends it."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from deploy.server_check import clock_warning, trouble_of
from deploy.site import exchange_warning, warn_of
from deploy.up import Home, found_home, free_port
from flows.exchange import Exchange
from flows.settings import PrefectServer, SiteFolder

DAY_S = 86400.0


@contextmanager
def web_server(path: str = "/api/health", clock_s: float = 0.0) -> Iterator[str]:
    """A web server that answers ``true`` under one path and a page under all others, by a clock of its own."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(True) if self.path == path else "<html>"
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + clock_s, usegmt=True))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1:9/api")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))


def came_of(cause: Exception) -> httpx.ConnectError:
    error = httpx.ConnectError("no")
    error.__cause__ = cause
    return error


NOBODY = "http://127.0.0.1:9/api"
TROUBLES = [
    (PrefectServer(url=NOBODY), status(401), "wants credentials: give auth_string or api_key in [prefect]", False),
    (PrefectServer(url=NOBODY, auth_string="a:b"), status(403), "does not take these credentials: correct auth", False),
    (PrefectServer(url=NOBODY), status(404), "is not a Prefect API: correct url in [prefect] (HTTP 404)", False),
    (PrefectServer(url=NOBODY), status(501), "is not a Prefect API: correct url in [prefect] (HTTP 501)", False),
    (PrefectServer(url=NOBODY), status(502), "is in trouble (HTTP 502): its log says why", True),
    (PrefectServer(url=NOBODY), ValueError("no JSON"), "is not a Prefect API: correct url in [prefect]", False),
    (PrefectServer(url=NOBODY), httpx.ConnectError("no"), "does not answer (ConnectError): start it", True),
    (PrefectServer(url=NOBODY), httpx.ReadTimeout("no"), "does not answer (ReadTimeout): start it", True),
    (
        PrefectServer(url="https://nowhere.example/api"),
        came_of(socket.gaierror()),
        "nowhere.example does not res",
        True,
    ),
    (PrefectServer(url=NOBODY), came_of(ssl.SSLCertVerificationError()), "name its ca_file in [prefect]", False),
]


@pytest.mark.parametrize(("server", "error", "words", "may_pass"), TROUBLES)
def test_what_is_wrong_with_a_server_is_said_with_what_mends_it(
    server: PrefectServer, error: Exception, words: str, may_pass: bool
) -> None:
    trouble = trouble_of(server, error)
    assert words in trouble.reason and trouble.may_pass is may_pass


def test_where_the_api_is_under_the_usual_path_that_is_said() -> None:
    with web_server() as url:
        for error in (status(404), ValueError("a page")):
            assert f"is not its API: write {url}/api in [prefect]" in trouble_of(PrefectServer(url=url), error).reason
        at_api = PrefectServer(url=f"{url}/api")
        assert "is not a Prefect API" in trouble_of(at_api, ValueError("a page")).reason


@pytest.mark.parametrize(
    ("clock_s", "words"), [(-DAY_S, "s ahead of"), (DAY_S, "s behind"), (30.0, ""), (-30.0, "")], ids=str
)
def test_a_clock_that_is_not_the_server_s_is_named(clock_s: float, words: str) -> None:
    with web_server(clock_s=clock_s) as url:
        warning = clock_warning(PrefectServer(url=f"{url}/api"))
    assert (words in warning and "the Prefect server's: set it (NTP)" in warning) if words else warning == ""


def test_a_server_without_a_clock_or_that_is_away_is_not_warned_of() -> None:
    assert clock_warning(PrefectServer(url=f"http://127.0.0.1:{free_port()}/api")) == ""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site of three, founded."""
    return found_home(tmp_path / "home", ("north", "east", "south"), NOBODY)


def as_it_should(home: Home) -> None:
    """Nothing is wrong."""


def not_writable(home: Home) -> None:
    (home.folder / "exchange").write_text("a file in its place")


@pytest.mark.parametrize(
    ("make", "words"),
    [(as_it_should, ""), (not_writable, "cannot be written to: the exchange cannot be used (")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_exchange_is_tried_under_the_site_s_own_name(
    make: Callable[[Home], None], words: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.site.PROBE_S", 0.1)
    make(home)
    warning = exchange_warning(SiteFolder.read(home.site("north")))
    assert words in warning and bool(words) == bool(warning) and "\n" not in warning
    if not words:
        own = home.folder / "exchange" / "north"
        assert own.is_dir() and not list(own.iterdir())


def test_an_exchange_that_hangs_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr("deploy.site.PROBE_LIMIT_S", 0.2)
    monkeypatch.setattr(Exchange, "put", lambda *_: ends.wait(10))
    warning = exchange_warning(SiteFolder.read(home.site("north")))
    ends.set()
    assert "has not answered within 0.2 s: no training goes on here until that works" in warning


def test_an_exchange_that_loses_what_is_written_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Exchange.put

    def lose(exchange: Exchange, owner: str, content: bytes) -> str:
        digest = put(exchange, owner, content)
        exchange.delete(owner, digest)
        return digest

    monkeypatch.setattr(Exchange, "put", lose)
    warning = exchange_warning(SiteFolder.read(home.site("north")))
    assert "cannot be read from: the object is missing from the exchange: " in warning


def test_what_may_pass_is_a_warning_a_line_each(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    not_writable(home)
    site = SiteFolder.read(home.site("north"))
    with web_server(clock_s=DAY_S) as url:
        site.prefect = PrefectServer(url=f"{url}/api")
        warn_of(site, check=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: ") for line in lines)
    assert "clock" in lines[0] and "exchange" in lines[1]
