"""The consortium file: who is who, which every party gets out of band and pins (SPEC 2.1, 2.5).

    [coordinator]
    key = "<64 hex digits>"

    [sites]
    north = "<64 hex digits>"

    [authors]                  # may be left out: then any plan may be asked for (SPEC 6.13)
    jane = "<64 hex digits>"

    [former]                   # may be left out: the keys that sites had before (SPEC 7.4)
    north = ["<64 hex digits>"]

No key is ever learnt from a message, so that whoever can change this file is in the middle of everything: it is
checked to the last digit before anything else is done with it. What cannot be seen here is whether the keys are those
of the right organisations; for that, people compare ``fingerprint`` over another way.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.files import NotToml, read_toml, write_whole
from protocols.keys import Consortium, InvalidKey
from protocols.points import check_public_key

FEWEST_SITES = 3
"""No plan can have fewer: rule 4 (SPEC 8) excludes them."""

_NAME = re.compile(r"[a-z0-9-]{1,32}")
_KEY = re.compile(r"[0-9a-f]{64}")


class ConsortiumError(Exception):
    """A consortium file that cannot be used: the file, the field, and what to do; one line."""

    def __init__(self, file: str, field: str, reason: str) -> None:
        super().__init__(file, field, reason)
        self.file = file
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.reason}"


def read_consortium(path: Path) -> Consortium:
    """Read and check a consortium file (SPEC 2.5).

    Raises:
        ConsortiumError: it cannot be read, or a field is missing, unknown, malformed, or used twice.
    """
    try:
        raw = read_toml(path)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}): give the path of a consortium file"
        raise ConsortiumError(str(path), "file", reason) from None
    except NotToml as error:
        raise ConsortiumError(str(path), "file", f"is not TOML, or names something twice: {error}") from None
    return _checked(str(path), raw)


def write_consortium(path: Path, consortium: Consortium) -> None:
    """Write a consortium file, sites by name.

    Raises:
        ConsortiumError: if nobody could read it.
    """
    tables = {"sites": dict(consortium.sites)} | ({"authors": dict(consortium.authors)} if consortium.authors else {})
    former = {name: list(keys) for name, keys in consortium.former.items()}
    _checked(
        str(path), {"coordinator": {"key": consortium.coordinator}, **tables, **({"former": former} if former else {})}
    )
    text = f'[coordinator]\nkey = "{consortium.coordinator}"\n'
    for table, keys in tables.items():
        text += f"\n[{table}]\n" + "".join(f'{name} = "{key}"\n' for name, key in sorted(keys.items()))
    if former:
        text += "\n[former]\n" + "".join(
            f"{name} = [{', '.join(f'{chr(34)}{key}{chr(34)}' for key in keys)}]\n"
            for name, keys in sorted(former.items())
        )
    write_whole(path, text.encode())


def fingerprint(key: str) -> str:
    """The first 20 hex digits of a public key, in groups of four, for people to compare."""
    return " ".join(key[start : start + 4] for start in range(0, 20, 4))


def _checked(file: str, raw: Mapping[str, Any]) -> Consortium:
    _refuse_others(file, raw, "", {"coordinator", "sites", "authors", "former"})
    coordinator, sites = _table(file, raw, "coordinator"), _table(file, raw, "sites")
    authors = _table(file, raw, "authors") if "authors" in raw else {}
    if "authors" in raw and not authors:
        raise ConsortiumError(file, "authors", "is empty: name an author, or remove it, and any plan may be asked for")
    _refuse_others(file, coordinator, "coordinator.", {"key"})
    keys: dict[str, Any] = {"coordinator.key": coordinator.get("key")}
    for table, whose, named in (("sites", "a site's", sites), ("authors", "an author's", authors)):
        for name, key in named.items():
            if not _NAME.fullmatch(name):
                reason = f"{whose} name is 1 to 32 of a-z, 0-9 and -: rename it"
                raise ConsortiumError(file, f"{table}.{_shown(name)}", reason)
            keys[f"{table}.{name}"] = key
    former = _table(file, raw, "former") if "former" in raw else {}
    for name, old in former.items():
        if name not in sites or not isinstance(old, list):
            reason = "is no list of keys that a site of [sites] had before: correct the name, or write [...]"
            raise ConsortiumError(file, f"former.{_shown(name)}", reason)
        keys |= {f"former.{name}.{number}": key for number, key in enumerate(old, start=1)}
    if len(sites) < FEWEST_SITES:
        raise ConsortiumError(file, "sites", f"{len(sites)} sites, {FEWEST_SITES} are needed: add the others")
    owners: dict[str, str] = {}
    for field, key in keys.items():
        _check_key(file, field, key)
        if key in owners:
            raise ConsortiumError(file, field, f"is the key of {owners[key]}: each party needs a key of its own")
        owners[key] = field
    return Consortium(
        coordinator["key"], dict(sites), dict(authors), {name: tuple(old) for name, old in former.items()}
    )


def _check_key(file: str, field: str, key: Any) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ConsortiumError(file, field, "is not 64 lower-case hex digits: copy the whole public key")
    try:
        check_public_key(bytes.fromhex(key))
    except InvalidKey:
        raise ConsortiumError(file, field, "is not an Ed25519 public key: copy it again from its owner") from None


def _table(file: str, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(table := raw.get(name), dict):
        raise ConsortiumError(file, name, f"is missing: write a table [{name}]")
    return table


def _refuse_others(file: str, table: Mapping[str, Any], prefix: str, fields: set[str]) -> None:
    for name in table:
        if name not in fields:
            raise ConsortiumError(file, f"{prefix}{_shown(name)}", "is not a field of this file: remove it")


def _shown(name: str) -> str:
    """A name as a terminal may show it: a file can hold any character in quotes."""
    return name if _NAME.fullmatch(name) else repr(name)[:60]
