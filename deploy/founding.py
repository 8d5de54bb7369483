"""Found a party's folder: every word is checked first, and what is made is whole or can be made again (SPEC 6.8).

The party's file is written last. A folder whose founding was cut off holds a vault alone, which the next try takes up.
"""

import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from fsspec.registry import known_implementations

from flows.exchange import missing_package
from flows.settings import SITE_FILE, SettingsError
from protocols.files import write_whole
from protocols.keys import Identity
from protocols.vault import Vault

NAME = re.compile(r"[a-z0-9-]{1,32}")
DATA_NAME = re.compile(r"[a-z0-9-]{1,40}")
TASK = re.compile(r"[\w.]+:\w+")


def found(folder: Path, file: str, text: str, name: str) -> str:
    """Make a party's vault and key and write its file; gives the public key.

    Raises:
        SettingsError: there is a file already, another party's vault, or the folder cannot be written.
    """
    path = folder / file
    if path.exists():
        renewing = "; fedseal site renew makes a new key" if file == SITE_FILE else ""
        raise SettingsError(f"{path}: is there already: name another folder with --folder, or edit that file{renewing}")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        vault = Vault(folder / "vault")
        if not vault.has_identity:
            vault.keep_identity(Identity.generate(name))
        public, whose = vault.identity.public, vault.identity.name
        vault.close()
        if whose != name:
            raise SettingsError(f"{folder}: holds the vault of {whose}, not of {name}: name another with --folder")
        write_whole(path, text.encode())
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written ({error.strerror}): name another with --folder") from None
    return public


def check_name(name: str) -> None:
    """See that a site or an author may have this name.

    Raises:
        SettingsError: it may not.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(f"{name!r}: is no name of a party: write at most 32 of a-z, 0-9 and -, as in north")


def check_tasks(tasks: Collection[str]) -> None:
    """See that these name tasks.

    Raises:
        SettingsError: one does not.
    """
    for task in tasks:
        if not TASK.fullmatch(task):
            raise SettingsError(f"--task {task}: names no task: write module:Class, as in ml_tasks.heart:HeartDisease")


def check_server(url: str) -> None:
    """See that a URL can be that of a Prefect API.

    Raises:
        SettingsError: it has no host, is not for HTTP, or is the address of the UI.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise SettingsError(f"--prefect {url}: is no URL: write the Prefect API's, as in https://prefect.example/api")
    if parts.path in ("", "/"):
        raise SettingsError(f"--prefect {url}: is not the Prefect API's URL: write {url.rstrip('/')}/api")


def check_exchange(url: str) -> str:
    """See that a URL can be that of an exchange; gives what is missing here to use it, or ``""``.

    Raises:
        SettingsError: no file system is known for it, or it names no place in one.
    """
    scheme, sign, rest = url.partition("://")
    if not sign:
        raise SettingsError(f"--exchange {url}: is no URL: write file:///SHARED/FOLDER, s3://BUCKET/PREFIX or the like")
    if scheme not in known_implementations:
        raise SettingsError(
            f"--exchange {url}: there is no {scheme}:// in fsspec: write file://, s3://, gs:// or the like"
        )
    if not rest.strip("/") or (scheme == "file" and not rest.startswith("/")):
        raise SettingsError(f"--exchange {url}: names no place: write file:///SHARED/FOLDER, s3://BUCKET/PREFIX")
    module = known_implementations[scheme]["class"].partition(".")[0]
    return "" if find_spec(module) else missing_package(scheme)


def read_data_sets(given: Collection[str], without_folder: str) -> dict[str, Path | None]:
    """Read ``NAME=FOLDER`` for each data set; gives the folders.

    Args:
        given: the words; none for the embedded example.
        without_folder: the data set that its task finds by itself.

    Raises:
        SettingsError: a name that plans cannot use, one given twice, no folder, or one that is not there.
    """
    sets: dict[str, Path | None] = {}
    for words in given:
        name, _, folder = words.partition("=")
        if not DATA_NAME.fullmatch(name):
            raise SettingsError(
                f"--data {words}: {name!r} is no name of a data set: a-z, 0-9 and -, as in heart=/data/heart"
            )
        if name in sets:
            raise SettingsError(f"--data {words}: {name} is named twice: name each data set once")
        if not folder and name != without_folder:
            raise SettingsError(f"--data {words}: names no folder: write --data {name}=FOLDER")
        if folder and not Path(folder).is_dir():
            raise SettingsError(f"--data {words}: there is no such folder: make it, or correct the path")
        sets[name] = Path(folder).absolute() if folder else None
    return sets
