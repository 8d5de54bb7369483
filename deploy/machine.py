"""What this machine must give before anything runs: folders, files, memory's limits, and a Prefect that can be reached.

Everything here is looked at within seconds, before any work, and what is wrong is one line that says how to mend it.
"""

import contextlib
import io
import os
import resource
import secrets
import socket
import sys
import tomllib
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import home

if TYPE_CHECKING:
    import httpx

VARIABLE = "PREFECT_API_URL"
LOOPBACK = "127.0.0.1,localhost,::1"
FILES = 64
"""Open files of a run beside those of its sites."""
FILES_PER_SITE = 8
MOST_FILES = 65_536
LONGEST_HOME = 200
"""Bytes of a home's path; some of what lies below it has long names of its own."""
ANSWER_S = 5.0
"""Seconds that a server has for its health and version."""


class Unfit(Exception):
    """This machine, as it is set up, cannot run what was asked: one line.

    Attributes:
        exit_code: 2 for what the user has set, 1 for what has failed.
    """

    def __init__(self, line: str, exit_code: int = 2) -> None:
        super().__init__(line)
        self.exit_code = exit_code


def prepare() -> None:
    """Set this process up, before Prefect or PyTorch is imported; what it starts inherits it.

    What it writes is for its owner alone; loopback is never reached through a proxy; a user without a home gets
    fedseal's; as many files can be open as the system lets it.

    Raises:
        Unfit: the working folder is gone.
    """
    os.umask(0o077)
    try:
        Path.cwd()
    except OSError:
        raise Unfit("the working folder is gone: change into one that is there") from None
    proxied = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{proxied},{LOOPBACK}" if proxied else LOOPBACK
    try:
        Path.home()
    except RuntimeError:  # no HOME, and no entry for this user: as in many containers
        os.environ["HOME"] = os.environ.get("FEDSEAL_HOME") or "/tmp"  # noqa: S108 - where nobody has a better place
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES if most < 0 else min(most, MOST_FILES), most))


def check_folder(folder: Path, name: str) -> None:
    """See that files can be made in a folder, which is made where it is not there.

    Args:
        folder: where files are to be.
        name: what decides where it is, as the user would write it.

    Raises:
        Unfit: they cannot.
    """
    probe = folder / f".{secrets.token_hex(8)}"
    try:
        if len(os.fsencode(folder)) > LONGEST_HOME:
            raise Unfit(f"{name}: {str(folder)[:40]}...: is longer than {LONGEST_HOME} bytes: name a shorter one")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.write_bytes(bytes(4096))
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Unfit(f"{name}: {folder}: nothing can be written there ({why}): name another folder") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def check_file(path: Path, name: str) -> None:
    """See that a file can be made, or replaced, where a path says.

    Args:
        path: the file.
        name: what has named it, as the user would write it.

    Raises:
        Unfit: it cannot.
    """
    probe = path.with_name(f".{secrets.token_hex(8)}")
    try:
        if path.is_dir():
            raise Unfit(f"{name} {path}: is a folder: name a file")
        probe.touch()
    except (OSError, ValueError) as error:
        raise Unfit(f"{name} {path}: this file cannot be written there ({error})") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            probe.unlink(missing_ok=True)


def check_home() -> None:
    """See that ``home()`` can be used.

    Raises:
        Unfit: it cannot.
    """
    try:
        folder = home()
    except RuntimeError as error:
        raise Unfit(f"FEDSEAL_HOME: {error}: name a folder") from None
    check_folder(folder, "FEDSEAL_HOME" if os.environ.get("FEDSEAL_HOME") else "FEDSEAL_HOME, which is not set")


def check_files(sites: int) -> None:
    """See that a run of so many sites may open enough files.

    Raises:
        Unfit: it may not.
    """
    allowed, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES + FILES_PER_SITE * sites
    if 0 <= allowed < needed:
        raise Unfit(f"{sites} sites need some {needed} open files, and {allowed} are allowed: see ulimit -n")


@dataclass(frozen=True, slots=True)
class NamedServer:
    """The Prefect server that somebody has named, and where."""

    url: str
    origin: str


def named_server() -> NamedServer | None:
    """The Prefect server that Prefect's settings name, if they name one; the first import of Prefect.

    Raises:
        Unfit: Prefect cannot read its settings.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            from prefect.context import get_settings_context
    except Exception as error:  # Prefect reads its settings when it is imported, and fails in many ways
        raise Unfit(unread_settings(error)) from None
    print(said.getvalue(), end="", file=sys.stderr)
    context = get_settings_context()
    check_folder(context.settings.home, "PREFECT_HOME" if "PREFECT_HOME" in os.environ else "PREFECT_HOME, not set")
    if context.settings.api.url is None:
        return None
    if os.environ.get(VARIABLE):
        return NamedServer(context.settings.api.url, VARIABLE)
    origin = f"the profile {context.profile.name!r} of {context.settings.profiles_path}"
    for name in (".env", "prefect.toml", "pyproject.toml"):
        if context.settings.api.url in _text(Path(name)):
            origin = f"{name} in this folder"
    return NamedServer(context.settings.api.url, origin)


def unread_settings(error: Exception) -> str:
    """Say in one line which of Prefect's settings it cannot read: a variable, its profiles or its own file."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"Prefect's profiles.toml is not TOML ({error}): mend it, or set PREFECT_HOME to another folder"
    found: list[Any] = getattr(error, "errors", list)()
    inputs = {str(one.get("input")) for one in found if isinstance(one, dict)}
    if wrong := [name for name, value in os.environ.items() if name.startswith("PREFECT_") and value in inputs]:
        return f"Prefect does not take {', '.join(f'{name}={os.environ[name]}' for name in wrong)}: mend or unset it"
    return f"Prefect does not take its settings: {' '.join(str(error).split())[:200]}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def check_server(named: NamedServer) -> None:
    """See that a Prefect server answers, takes this client's credentials, and is not older than it.

    Raises:
        Unfit: it does not.
    """
    import httpx
    from prefect import __version__
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    who = f"the Prefect server at {named.url} ({named.origin})"
    try:
        address = urllib.parse.urlsplit(named.url)
        socket.getaddrinfo(address.hostname, address.port)
    except (OSError, ValueError):
        raise Unfit(f"{who}: its name does not resolve: mend the address") from None
    try:
        with temporary_settings({PREFECT_API_URL: named.url}), get_client(sync_client=True) as client:
            http = client._client

            def get(path: str) -> httpx.Response:
                """Ask once, with the client's credentials and certificates, and without its patience."""
                return httpx.Client.send(http, http.build_request("GET", path, timeout=ANSWER_S))

            health, version = get("/health"), get("/admin/version")
            below = None if _is_true(health) else get(f"{named.url.rstrip('/')}/api/health")
    except httpx.HTTPError as error:
        if "CERTIFICATE" in str(error):
            raise Unfit(f"{who}: its certificate is not trusted: set PREFECT_API_SSL_CERT_FILE") from None
        raise Unfit(f"{who} does not answer ({type(error).__name__}): start it, or name none", 1) from None
    if {health.status_code, version.status_code} & {401, 403}:
        raise Unfit(f"{who} does not take these credentials, or wants some (401): set PREFECT_API_AUTH_STRING")
    if below is not None:
        if _is_true(below) or below.status_code in (401, 403):
            raise Unfit(f"{who}: the address of its API ends in /api: add /api")
        raise Unfit(f"{who} is not a Prefect server (HTTP {health.status_code}): mend the address")
    theirs = version.text.strip().strip('"')
    if not fits(theirs, __version__):
        raise Unfit(
            f"{who} has version {theirs}, and this is Prefect {__version__}: have it no older, and of one major"
        )


def fits(server: str, client: str) -> bool:
    """Whether a client of Prefect works with a server: of the same major version, and no newer minor one."""
    try:
        theirs, ours = ([int(part) for part in one.split(".")[:2]] for one in (server, client))
    except ValueError:
        return False
    return theirs[0] == ours[0] and theirs >= ours


def _is_true(answer: "httpx.Response") -> bool:
    return answer.status_code == 200 and answer.text.strip() == "true"
