"""What is wrong with a Prefect server that a party cannot work with, in one line that says what mends it (SPEC 6.9).

A server that is away may come back, and is waited for; what the party's own file says wrongly does not get better.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx

from flows.settings import PrefectServer

LOOK_S = 5.0
MOST_CLOCK_S = 60.0
"""Seconds that a party's clock may differ from the server's before that is said."""


class Trouble(NamedTuple):
    """Why a server cannot be worked with, and whether that may pass by itself."""

    reason: str
    may_pass: bool


def trouble_of(server: PrefectServer, error: Exception) -> Trouble:
    """Say what an error of Prefect's client means.

    Args:
        server: as the party's file describes it.
        error: an ``httpx.HTTPError``, or a ``ValueError`` for an answer that is not Prefect's.
    """
    causes = list(_causes(error))
    if isinstance(error, httpx.HTTPStatusError):
        return _refused(server, error.response.status_code)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Trouble("has a certificate that is not trusted here: name its ca_file in [prefect]", False)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        host = httpx.URL(server.url).host
        return Trouble(f"is not found: {host} does not resolve: correct url in [prefect] if it is misspelt", True)
    if isinstance(error, httpx.HTTPError):
        return Trouble(f"does not answer ({type(error).__name__}): start it, or correct url in [prefect]", True)
    return Trouble(_not_prefect(server), False)


def _refused(server: PrefectServer, status: int) -> Trouble:
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        given = server.auth_string or server.api_key
        what = "does not take these credentials: correct" if given else "wants credentials: give"
        return Trouble(f"{what} auth_string or api_key in [prefect] (HTTP {status})", False)
    if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED):
        return Trouble(f"{_not_prefect(server)} (HTTP {status})", False)
    if httpx.codes.is_server_error(status):
        return Trouble(f"is in trouble (HTTP {status}): its log says why", True)
    return Trouble(f"refuses (HTTP {status}): correct url in [prefect], or its version", False)


def _not_prefect(server: PrefectServer) -> str:
    """Say that there is no Prefect API at a URL, and where it is if that is where it is usually."""
    usual = server.url.rstrip("/") + "/api"
    try:
        found = httpx.get(f"{usual}/health", timeout=LOOK_S).json() is True
    except (httpx.HTTPError, ValueError):
        found = False
    return f"is not its API: write {usual} in [prefect]" if found else "is not a Prefect API: correct url in [prefect]"


def clock_difference(server: PrefectServer) -> float | None:
    """Seconds that this machine's clock is ahead of the server's, from the date of an answer; ``None`` without one."""
    before = time.time()
    try:
        verify = ssl.create_default_context(cafile=server.ca_file)
        date = httpx.get(f"{server.url}/health", timeout=LOOK_S, verify=verify).headers.get("date")
        there = parsedate_to_datetime(date or "").replace(tzinfo=UTC).timestamp()
    except (httpx.HTTPError, ValueError, OSError):
        return None
    return (before + time.time()) / 2 - there


def clock_warning(server: PrefectServer) -> str:
    """Say that this machine's clock is not the server's; ``""`` where they agree."""
    ahead = clock_difference(server)
    if ahead is None or abs(ahead) <= MOST_CLOCK_S:
        return ""
    direction = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {direction} the Prefect server's: set it (NTP), or times in logs "
        "and UI do not agree and certificates may seem invalid"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
