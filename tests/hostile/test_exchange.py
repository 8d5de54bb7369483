"""The exchange, where anybody can write: what a site reads there is what its digest says, or nothing at all."""

import gzip
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.mailbox import request_key
from flows.messages import AskWork
from flows.model import shelf
from protocols.messages import COORDINATOR
from tests.flows.consortium import plan_for, trial
from tests.flows.test_site import advertise, join, send
from tests.flows.test_site import refusal as local_refusal
from tests.hostile.hand import Attacker, Hand, Round, gone, keys, unmoved
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow

DIGEST = hashlib.sha256(b"nothing is here").hexdigest()


def parcel(digest: str, size: object) -> str:
    """The text of a message that lies on the exchange."""
    return json.dumps({"object": digest, "size": size})


def lying(attacker: Attacker, content: bytes) -> str:
    """Put bytes on the exchange under their own digest; gives the text that names them."""
    digest = hashlib.sha256(content).hexdigest()
    attacker.plant(COORDINATOR, digest, content)
    return parcel(digest, len(content))


def made(attacker: Attacker, make: Callable[[Path], object]) -> str:
    """Make something that is no file where an object is looked for."""
    path = attacker.exchange / COORDINATOR / DIGEST
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    make(path)
    return parcel(DIGEST, 100)


def vault_of_north(attacker: Attacker) -> Path:
    """A file that north can read and nobody else may."""
    return attacker.home.home.site("north") / "vault" / "vault.sqlite"


MISSING = "the object is missing from the exchange"
UNREADABLE = "the message does not parse"
PARCELS: dict[str, tuple[Callable[[Attacker], str], str]] = {
    "missing": (lambda attacker: parcel("0" * 64, 10), MISSING),
    "another digest's": (
        lambda attacker: made(attacker, lambda path: path.write_bytes(b"[]")),
        "the object is not what its digest says",
    ),
    "longer than it says": (
        lambda attacker: lying(attacker, b"[" * 1000).replace("1000", "999"),
        "the object is larger than it may be",
    ),
    "a gigabyte": (lambda attacker: parcel("0" * 64, 2**30), UNREADABLE),
    "less than nothing": (lambda attacker: parcel("0" * 64, -1), UNREADABLE),
    "a size of 1e400": (lambda attacker: parcel("0" * 64, 1).replace("1}", "1e400}"), UNREADABLE),
    "a path": (lambda attacker: parcel("../../../../etc/passwd", 10_000), UNREADABLE),
    "a path to the vault": (lambda attacker: parcel(str(vault_of_north(attacker)), 10_000), UNREADABLE),
    "a URL": (lambda attacker: parcel("http://127.0.0.1/x", 10_000), UNREADABLE),
    "a folder": (lambda attacker: made(attacker, Path.mkdir), MISSING),
    "a pipe": (lambda attacker: made(attacker, os.mkfifo), MISSING),
    "a device": (lambda attacker: made(attacker, lambda path: path.symlink_to("/dev/zero")), MISSING),
    "a link to the vault": (
        lambda attacker: made(attacker, lambda path: path.symlink_to(vault_of_north(attacker))),
        "the object is larger than it may be",
    ),
    "a pickle": (lambda attacker: lying(attacker, pickle.dumps(print)), UNREADABLE),
    "packed": (lambda attacker: lying(attacker, gzip.compress(bytes(10_000_000))), UNREADABLE),
    "deep JSON": (lambda attacker: lying(attacker, b"[" * 1_000_000), UNREADABLE),
    "a huge list": (lambda attacker: lying(attacker, b"[" + b"0," * 2_000_000 + b"0]"), UNREADABLE),
}


@pytest.mark.parametrize("what", PARCELS)
def test_a_request_whose_object_is_none_is_deleted_with_a_line_in_the_log(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round, what: str
) -> None:
    make, reason = PARCELS[what]
    key, box = request_key(standing.masking("north")), hand.boxes["north"]
    with unmoved(home, "north") as north:
        attacker.post(box.run, key, make(attacker))
        gone(box, key, 15)
        north.tells(f"deleted {key}, which is no request: {reason}")
    assert keys(hand.answers) == []


SWAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "is not what its digest says"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is not what its digest says"),
    "more of it": (lambda path: path.write_bytes(path.read_bytes() + b"?"), "is not what its digest says"),
    "100 MB of it": (lambda path: path.write_bytes(path.read_bytes() + bytes(100_000_000)), "is larger than it may be"),
    "nothing": (Path.unlink, "is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is missing"),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_model_that_was_changed_on_the_exchange_is_not_trained_on(tmp_path: Path, swap: str) -> None:
    """A site reads a model for an attempt that it has advertised, which ends every other: here it is in memory."""
    change, reason = SWAPS[swap]
    with trial(tmp_path, plan_for("Bare")) as run:
        assert join(run, "ann").kind == "joined"
        context = run.live.context("training", 1, 1)
        advertise(run, "ann", context)
        change(tmp_path / "exchange" / shelf(context.training) / context.model)
        assert reason in local_refusal(send(run, "ann", "train", context.digest, AskWork(context)))
