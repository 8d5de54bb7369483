"""Tasks for the canaries: user code that notes what is secret at its site, raises records, and leaks on purpose.

A task runs inside the site's process, next to keys and data; so it can note them, into a folder that the environment
names and that no search looks into.
"""

import base64
import gzip
import json
import logging
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from torch import Tensor, nn

from flows import participation
from ml_tasks import training
from ml_tasks.task import DataError, Examples, Feature, SiteData, Task
from protocols import secagg_site
from protocols import site as steps
from protocols.messages import Envelope, Reveal, parse
from tests.processes.canaries import Secret

NOTES = "FEDSEAL_TEST_NOTES"
"""The environment variable that names the folder of the notes."""
SITES = ("north", "east", "south", "west")
EXAMPLES = 1_200_007
"""At the first site, and more at each other: seven digits, so that the number of examples is a canary."""
TESTED = 40
FEATURES = 6
NOTED = 20
"""Rows that are noted."""
REVEALED = "revealed"


def note(name: str, secret: Secret) -> None:
    """Keep a secret for the search."""
    value: object = secret
    if isinstance(secret, bytes):
        value = {"hex": secret.hex()}
    elif isinstance(secret, np.ndarray):
        value = {"hex": secret.tobytes().hex(), "dtype": str(secret.dtype)}
    with (Path(os.environ[NOTES]) / f"{os.getpid()}.jsonl").open("a") as notes:
        notes.write(json.dumps({"name": name, "value": value}) + "\n")


def noted(folder: Path) -> Iterator[tuple[str, Secret]]:
    """What was noted, with names that say of what it is."""
    for path in sorted(folder.iterdir()):
        for number, line in enumerate(path.read_text().splitlines()):
            entry = json.loads(line)
            value = entry["value"]
            if isinstance(value, dict):
                content = bytes.fromhex(value["hex"])
                value = np.frombuffer(content, value["dtype"]) if "dtype" in value else content
            yield f"{entry['name']} ({path.stem}.{number})", value


def watch() -> None:
    """Note every secret that this process's protocol has from here on."""
    if hasattr(secagg_site.mask, "__wrapped__"):
        return
    _after(secagg_site, "advertise", _note_keys)
    _after(secagg_site, "share", lambda done, *_: note("self-mask seed", done[0].seed))
    _after(secagg_site, "derive", lambda key, *_, **__: note("derived key", key))
    _after(secagg_site, "agree", lambda agreed, *_: note("agreed secret", agreed))
    _after(secagg_site, "mask", _note_shares)
    _after(secagg_site, "reveal", lambda answer, *_: _note_revealed(answer))
    _after(steps, "encode", _note_values)
    _after(training, "train", lambda update, *_, **__: note("update", update))


def _after(module: ModuleType, name: str, see: Callable[..., None]) -> None:
    do = getattr(module, name)

    @wraps(do)
    def done(*words: Any, **named: Any) -> Any:
        result = do(*words, **named)
        see(result, *words, **named)
        return result

    setattr(module, name, done)


def _note_keys(done: Any, *_: object) -> None:
    note("masking key", done[0].mask_secret)
    note("channel key", done[0].channel_secret)


def _note_shares(done: Any, *_: object) -> None:
    for share in (*done[0].self_shares.values(), *done[0].key_shares.values()):
        note("share", share)


def _note_revealed(answer: Envelope) -> None:
    """Half of the shares are published, to take the masks out of the sum: these are no canaries."""
    body = parse(Reveal, answer.body, party=answer.sender, step="reveal")
    for share in (*body.self_shares.values(), *body.key_shares.values()):
        note(REVEALED, bytes.fromhex(share))


def _note_values(vector: NDArray[np.uint8], _: str, values: Any, segments: Any, *__: object, **___: object) -> None:
    """What a site brings to a sum: as numbers and, encoded, as it is before any mask."""
    for name, array in values.items():
        note(f"value {name}", array[:8])
    note("encoded vector", vector[: sum(segment.size for segment in segments[:2])].tobytes())


class Stop(BaseException):
    """Not an ``Exception``: what libraries raise to get past whoever catches those."""


class Watched(Task):
    """Logistic regression on so many rows that their number is a canary; each site fails once, in its own way."""

    title = "Watched"
    provenance = "Random numbers."
    needs_data = False
    validates = True
    features = tuple(Feature(f"f{place}", 0.0, 1.0) for place in range(FEATURES))
    troubles: dict[tuple[str, str], Callable[[str], BaseException]] = {  # noqa: RUF012
        ("north", "load"): Stop,
        ("west", "train"): lambda record: RuntimeError("cannot use", record),
        ("east", "evaluate"): KeyError,
        ("south", "evaluate"): SystemExit,
    }
    had: set[tuple[str, str]] = set()  # noqa: RUF012

    def load(self, folder: Path | None, site: str) -> SiteData:
        watch()
        self.site = site
        note("identity", participation._seat[0].site.identity.secret)
        self.trouble("load")
        examples = EXAMPLES + 11 * SITES.index(site)
        note("number of examples", examples)
        generator = np.random.default_rng()
        features = generator.random((examples + TESTED, FEATURES), np.float32)
        targets = (features[:, 0] > 0.5).astype(np.float32)
        for row in features[:NOTED]:
            note("row", row)
        say(self.record())
        few = Examples(features[:TESTED], targets[:TESTED])
        return SiteData(Examples(features[TESTED:], targets[TESTED:]), test=few, validation=few)

    def model(self) -> nn.Module:
        return nn.Linear(FEATURES, 1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.trouble("train" if torch.is_grad_enabled() else "evaluate")
        return super().loss(logits, targets)

    def record(self) -> str:
        """A new record, as a text."""
        record = f"PATIENT-{secrets.token_hex(8)}-HAS-GOUT"
        note("record", record)
        return record

    def trouble(self, step: str) -> None:
        """Raise what this site raises in this step, once, with a record in it."""
        kind = self.troubles.get((self.site, step))
        if kind is not None and (self.site, step) not in self.had:
            self.had.add((self.site, step))
            raise kind(self.record())


class Failing(Watched):
    """No site gets through its training."""

    def trouble(self, step: str) -> None:
        if step == "train":
            try:
                raise ValueError(self.record())
            except ValueError as error:
                raise {"north": Stop, "east": SystemExit}.get(self.site, RuntimeError)(self.record()) from error


def say(record: str) -> None:
    """Talk about a record in the ways that stay at the site: its terminal and its log files."""
    print(record)
    print(record, file=sys.stderr)
    warnings.warn(record, stacklevel=1)
    logging.getLogger("hospital").error("strange row: %s", record)
    logging.getLogger().error("strange row: %s", record)


def _log(row: NDArray[np.float32]) -> None:
    get_run_logger().info("strange row: %s", row.tolist())


def _artifact(row: NDArray[np.float32]) -> None:
    create_markdown_artifact(f"A row: {base64.b64encode(b'row:' + row.tobytes()).decode()}", key="row")


def _task(row: NDArray[np.float32]) -> None:
    @task
    def look() -> None:
        raise RuntimeError(f"strange row: {row.tobytes().hex()}")

    look(return_state=True)


def _event(row: NDArray[np.float32]) -> None:
    emit_event("row", {"prefect.resource.id": "row"}, payload={"row": list(row.tobytes())})


def _input(row: NDArray[np.float32]) -> None:
    """Gone before anybody looks into the database."""
    seat = participation._seat[0]
    place = f"/flow_runs/{seat.training_run}/input"
    packed = base64.b64encode(gzip.compress(row.tobytes())).decode()
    seat.client._client.post(place, json={"key": "row", "value": packed})
    seat.client._client.delete(f"{place}/row")


def _exchange(row: NDArray[np.float32]) -> None:
    """Gone when the training has ended, like a vector."""
    seat = participation._seat[0]
    digest = seat.exchange.put(seat.name, bytes(1000) + row.tobytes())
    time.sleep(1)
    seat.exchange.delete(seat.name, digest)


LEAKS = {
    "log": _log,
    "artifact": _artifact,
    "task": _task,
    "event": _event,
    "input": _input,
    "exchange": _exchange,
}
"""What a task can do that gives a row away, by name."""


class Leaky(Watched):
    """Has its site give rows away as it masks, and fails in loading with a row in its reason, which stays there."""

    troubles = {}  # noqa: RUF012

    def load(self, folder: Path | None, site: str) -> SiteData:
        data = super().load(folder, site)
        if site == SITES[0]:
            rows = list(data.train.features[: len(LEAKS) + 1])
            for name, row in zip([*(f"leak by {name}" for name in LEAKS), "row in a reason"], rows, strict=True):
                note(name, row)
            leaks = list(zip(LEAKS.values(), rows, strict=False))
            _after(secagg_site, "mask", lambda *_: [leak(row) for leak, row in leaks])  # where Prefect has a context
            raise DataError(f"strange row: {', '.join(str(number) for number in rows[-1])}")
        return data
