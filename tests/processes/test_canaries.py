"""Canaries: no secret of a site is found anywhere but at the site, and the search that says so finds what is there.

Four sites train on data that the test knows. Each fails once, with a record in its exception: in loading, in training,
in evaluating. Then a training fails at every site; then a leaky task does what no task may.
"""

import base64
import bz2
import gzip
import json
import lzma
import re
import shutil
import sqlite3
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from prefect.client.schemas.objects import StateType

from deploy import SERVER_SETTINGS
from deploy.up import Home
from flows.settings import COORDINATOR_FILE, SITE_FILE
from tests.processes.canaries import Search, Secret, kept, places
from tests.processes.harness import Consortium, consortium, eventually
from tests.processes.leaks import NOTES, REVEALED, SITES, noted
from tests.processes.relay import Line, relay

KINDS = {
    "identity",
    "masking key",
    "channel key",
    "self-mask seed",
    "derived key",
    "agreed secret",
    "share",
    "update",
    "value update",
    "value weight",
    "value moments",
    "value count.loss",
    "encoded vector",
    "number of examples",
    "row",
    "row in a reason",
    "record",
}
TASKS = tuple(f"tests.processes.leaks:{name}" for name in ("Watched", "Failing", "Leaky"))
VECTOR = re.compile(rb'"vector\\*":\\*"([0-9a-f]{64})')
SETTLE_S = 5.0
"""Seconds that Prefect's loggers and events may take to reach the server."""


@dataclass(frozen=True)
class Found:
    """What a search over a consortium has given.

    Attributes:
        states: how the trainings have ended, by task.
        kinds: how many secrets of each kind there were.
        where: the places of each canary that was found.
        searched: the bytes of each place.
        missed: masked vectors that sites have announced, and that were not kept for the search.
    """

    states: dict[str, StateType]
    kinds: Counter[str]
    where: dict[str, set[str]]
    searched: dict[str, int]
    missed: set[str]


IN_PROCESS = dict.fromkeys(SITES, 'sandbox = "none"')
"""A leaky task shows that the search finds leaks; in the sandbox it could not leak (attacks/test_sandbox.py)."""


@dataclass
class Overheard:
    """A consortium of which everything is kept that others than the sites can read.

    Attributes:
        running: the consortium.
        home, notes, seen: the folders with its parties, with what its tasks have noted, and with what was kept.
        processes: closed, it ends them all.
        states: how the trainings have ended, by task.
    """

    running: Consortium
    home: Path
    notes: Path
    seen: Path
    processes: ExitStack
    states: dict[str, StateType] = field(default_factory=dict)


@pytest.fixture(scope="module")
def overheard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overheard]:
    """Four sites that serve, with a relay before the server."""
    folder = tmp_path_factory.mktemp("canaries")
    home, notes, seen = folder / "home", folder / "notes", folder / "seen"
    for one in (notes, seen / "wire"):
        one.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as relays, ExitStack() as processes:
        patch.setenv(NOTES, str(notes))
        patch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")  # at which Prefect tells its server most
        patch.setitem(SERVER_SETTINGS, "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED", "true")  # and it keeps most

        def listen_in(parties: Home) -> None:
            server = int(parties.url.rsplit(":", 1)[1].split("/")[0])
            port = relays.enter_context(relay(Line(server, heard=seen / "wire")))
            for path in (parties.coordinator / COORDINATOR_FILE, *(parties.site(site) / SITE_FILE for site in SITES)):
                path.write_text(path.read_text().replace(parties.url, f"http://127.0.0.1:{port}/api"))

        processes.enter_context(kept(home / "exchange", seen / "objects"))
        running = processes.enter_context(
            consortium(home, SITES, tables=IN_PROCESS, tasks=list(TASKS), prepare=listen_in)
        )
        for site in SITES:
            eventually(lambda site=site: running.online(site), 120)
        yield Overheard(running, home, notes, seen, processes)


@pytest.fixture(scope="module")
def found(overheard: Overheard) -> Found:
    """Search everything when all trainings and all processes have ended."""
    for task in TASKS:
        if task not in overheard.states:
            overheard.states[task] = train(overheard.running, task)
    time.sleep(SETTLE_S)
    shutil.copytree(overheard.home / "server", overheard.seen / "server")
    overheard.processes.close()
    states = {task: overheard.states[task] for task in TASKS}
    return searched(states, overheard.home, overheard.notes, overheard.seen)


def train(running: Consortium, task: str) -> StateType:
    """Run a training, in which all sites but one may fail unless the task leaks; gives the type of its last state."""
    attempts, failed = 1 if task.endswith("Failing") else 3, 0 if task.endswith("Leaky") else 3
    fields = {"max_attempts": attempts, "max_failed": failed, "protection": {"max_examples": 1_300_021}}
    plan = running.plan(task=task, name="canary", min_sites=3, **fields)
    state = running.ended(running.submit(plan)).state
    assert state is not None
    return state.type


def searched(states: dict[str, StateType], home: Path, notes: Path, seen: Path) -> Found:
    """Look for every canary in every place."""
    secrets = dict(noted(notes))
    public = {secret for name, secret in secrets.items() if name.startswith(REVEALED)}
    canaries = {name: one for name, one in secrets.items() if isinstance(one, np.ndarray) or one not in public}
    search, where, sizes = Search(canaries), defaultdict(set), {}
    said = set()
    for place, content in places(home, seen):
        sizes[place] = len(content)
        for name in search(content):
            where[name].add(place)
        said |= {digest.decode() for digest in VECTOR.findall(content)}
    objects = {path.name.rpartition("-")[2] for path in (seen / "objects").iterdir()}
    return Found(states, Counter(name.partition(" (")[0] for name in canaries), where, sizes, said - objects)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_training_that_is_overheard_ends(overheard: Overheard, task: str) -> None:
    """How each must have ended is told below, where all is searched."""
    overheard.states[task] = train(overheard.running, task)


@pytest.mark.slow
def test_no_secret_of_a_site_is_anywhere_but_at_the_site(found: Found) -> None:
    completed, failed, leaky = found.states.values()
    assert (completed, failed, leaky) == (StateType.COMPLETED, StateType.FAILED, StateType.FAILED)
    assert KINDS <= set(found.kinds)
    assert found.missed == set()
    leaked = {name: where for name, where in found.where.items() if not name.startswith("leak by ")}
    assert leaked == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "place"),
    [
        ("log", "table log"),
        ("artifact", "table artifact"),
        ("task", "table task_run_state"),
        ("event", "table events"),
        ("input", "wire/"),
        ("exchange", "objects/north-"),
    ],
)
def test_a_leaky_task_is_caught(found: Found, way: str, place: str) -> None:
    (where,) = (where for name, where in found.where.items() if name.startswith(f"leak by {way} ("))
    assert any(one.startswith(place) for one in where), where


SEED = bytes(range(100, 132))
RECORD = "PATIENT-4711-HAS-GOUT"
ROW = np.array([0.12345678, -3.1415927, 2.7182817, 0.57721566], np.float32)


WRITTEN: dict[str, tuple[Secret, bytes]] = {
    "bytes": (SEED, SEED),
    "hex": (SEED, SEED.hex().encode()),
    "upper hex": (SEED, SEED.hex().upper().encode()),
    **{f"base64 behind {n}": (SEED, base64.b64encode(bytes(n) + SEED + b"more")) for n in range(4)},
    "base64 for a URL": (SEED, base64.urlsafe_b64encode(bytes([255] * 32) + SEED)),
    "base64 in lines": (SEED, base64.encodebytes(bytes(30) + SEED)),
    "base64 in lines in JSON": (SEED, json.dumps(base64.encodebytes(bytes(30) + SEED).decode()).encode()),
    "list": (SEED, json.dumps(list(SEED)).encode()),
    "compact list": (SEED, json.dumps(list(SEED), separators=(",", ":")).encode()),
    "repr": (SEED, repr({"seed": SEED}).encode()),
    "repr in JSON": (SEED, json.dumps(repr(bytes(4) + SEED)).encode()),
    "integer": (SEED, str(int.from_bytes(SEED, "little")).encode()),
    "gzip": (SEED, gzip.compress(SEED)),
    "zlib in a text": (SEED, b"text" + zlib.compress(SEED) + b"text"),
    "bz2": (SEED, b"text" + bz2.compress(SEED)),
    "xz as Prefect stores it": (SEED, json.dumps({"data": base64.encodebytes(lzma.compress(SEED)).decode()}).encode()),
    "a part": (SEED * 3, SEED[16:] + SEED),
    "text": (RECORD, f"KeyError: '{RECORD}'".encode()),
    "text in base64": (RECORD, base64.b64encode(f'{{"error": "{RECORD}"}}'.encode())),
    "float32": (ROW, ROW.tobytes()),
    "widened": (ROW, ROW.astype(np.float64).tobytes()),
    "list of numbers": (ROW, json.dumps(ROW.tolist()).encode()),
    "array": (ROW, repr(ROW).encode()),
    "array's element": (ROW, str(ROW[1:2]).encode()),
    "eight places": (ROW, f"{ROW[3]:.8f}".encode()),
    "one float64": (ROW.astype(np.float64)[:1], ROW.astype(np.float64).tobytes()),
    "number": (1_234_567, b'{"examples": 1234567}'),
    "number as a float": (1_234_567, b"[1234567.0, 3.0]"),
}


@pytest.mark.parametrize(("secret", "written"), WRITTEN.values(), ids=WRITTEN)
def test_the_search_finds_a_secret_however_it_is_written(secret: Secret, written: bytes) -> None:
    search = Search({"it": secret})
    for before in range(9):
        assert search(bytes(before) + written + b"and more") == {"it"}
    for other in (b"", b"1234567", bytes(1000), bytes(range(256)).replace(SEED, b"")):
        assert search(other) == set()


@pytest.mark.parametrize(
    "place",
    [
        "table log",
        "server/server.log",
        "server/prefect.db-wal",
        "server/storage/result",
        "exchange/north/object",
        "coordinator/coordinator.log",
        "coordinator/processes.log",
        "coordinator/runs/training/report.json",
        "wire/3-asked",
        "objects/north-object",
    ],
)
def test_the_search_looks_into_every_place(place: str, tmp_path: Path) -> None:
    home, seen = tmp_path / "home", tmp_path / "seen"
    for folder in (home / "server", home / "exchange", home / "coordinator", home / "sites", seen / "wire"):
        folder.mkdir(parents=True)
    with closing(sqlite3.connect(home / "server" / "prefect.db")) as db:
        db.execute("CREATE TABLE log (id INTEGER, message TEXT)")
        db.execute("INSERT INTO log VALUES (1, ?)", (RECORD if place == "table log" else "all is well",))
        db.commit()
    if place != "table log":
        path = (seen if place.startswith(("wire", "objects")) else home) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"before" + SEED + b"after")
    search = Search({"it": RECORD if place == "table log" else SEED})
    found = {where for where, content in places(home, seen) if search(content)}
    assert place in found and found <= {place, "server/prefect.db"}
