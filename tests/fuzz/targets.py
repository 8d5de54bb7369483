"""Every parser of bytes from outside, as a function of bytes with the errors that it may raise (SPEC 5.2, 9).

The property is the same for all: whatever the bytes, a target returns or raises one of its documented errors, within
a second and 64 MiB; and what it has parsed prints as the same thing again. ``run`` looks for bytes that break this,
``test_corpus`` keeps it true of all that were ever found worth keeping.
"""

import atexit
import json
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import httpx
import numpy as np
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import SyncPrefectClient
from pydantic import ValidationError

from deploy.verify import Unreadable, check_model, describe, plan_of, terms_of
from flows.checkpoint import Checkpoint, CheckpointError
from flows.exchange import Exchange
from flows.mailbox import LONGEST_INPUT, RESPONSE_BYTES, Mailbox, MailboxError, pack, unpack
from flows.messages import AskFinish, AskJoin, AskWork, Done, Joined
from flows.model import GlobalModel
from flows.plan import PlanError, make_plan, read_plan
from flows.policy import Policy, check_policy
from flows.settings import COORDINATOR_FILE, SITE_FILE, CoordinatorFolder, SettingsError, SiteFolder
from flows.tables import tables_of
from ml_tasks.csv_tables import read_columns
from ml_tasks.eicu_tables import ALLOWED, read_stays
from ml_tasks.task import DataError
from protocols import secagg_coordinator, secagg_site
from protocols.audit import check_receipt
from protocols.consortium import ConsortiumError, read_consortium, write_consortium
from protocols.contexts import canonical
from protocols.encoding import add, check_headroom, integers
from protocols.errors import BadMessage, ProtocolError, Refused, RingTooSmall
from protocols.history import NO_HISTORY
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    open_body,
    parse,
)
from protocols.receipt import NotJson, Receipt, ReceiptError, parse_receipt
from tests.bodies import BODIES
from tests.fuzz import fixed
from tests.fuzz.mutations import mutate_json, mutate_safetensors
from tests.vectors.generate import entropy

MOST_BYTES = 64 * 1024 * 1024
MOST_SECONDS = 1.0
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there: a checkpoint waits for a real disk
FOLDER = Path(mkdtemp(prefix="fedseal-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
"""Where targets that read files put them."""
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

OPENED = BODIES | {
    "ask/join": AskJoin,
    "joined": Joined,
    "ask/train": AskWork,
    "done": Done,
    "ask/finish": AskFinish,
}


@dataclass(frozen=True)
class Target:
    """A door for bytes.

    Attributes:
        enter: takes the bytes.
        errors: that it may raise.
        mutate: changes the bytes within their form, if they have one; bytes at random do too.
    """

    enter: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    mutate: Callable[[bytes, Random], bytes | None] | None = mutate_json


@dataclass(frozen=True)
class Outcome:
    """What came of an input: the documented error, if any; bytes at the peak, and seconds of the processor."""

    error: Exception | None
    peak: int
    seconds: float

    @property
    def ways(self) -> list[str]:
        """What tells one refusal from another: its first words, and the fields that pydantic found wrong."""
        if self.error is None:
            return ["accepted"]
        words = re.sub(r"[^a-z ]", "", str(self.error))[:60]
        ways, below = [f"{type(self.error).__name__} {words}"], self.error.__context__
        if isinstance(below, ValidationError):
            for one in below.errors(include_url=False, include_context=False, include_input=False)[:3]:
                field = next((part for part in one["loc"] if isinstance(part, str)), "")
                ways.append(f"{one['type']} {'' if one['type'] == 'extra_forbidden' else field} {len(one['loc'])}")
        return ways


def measure(target: Target, content: bytes) -> Outcome:
    """Hand bytes to a target; whatever it raises that is not documented comes out, and so does what costs too much."""
    tracemalloc.start()
    began, error = time.process_time(), None
    try:
        target.enter(content)
    except target.errors as documented:
        error = documented
    finally:
        peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
        tracemalloc.stop()
    assert peak <= MOST_BYTES, f"{peak} bytes of memory for {len(content)}"
    assert seconds <= MOST_SECONDS, f"{seconds:.1f} s for {len(content)} bytes"
    return Outcome(error, peak, seconds)


@cache
def trained() -> Receipt:
    """The receipt that a model's file is held against."""
    return fixed.receipt()


@cache
def played() -> fixed.Round:
    """The round that the steps are in the middle of."""
    return fixed.Round()


def text_of(content: bytes) -> str:
    """Bytes as the text of a message: the transport gives text, so that nothing else can come."""
    return content.decode(errors="replace")


def kind_of(content: bytes) -> tuple[str, str]:
    """The first line and the rest."""
    kind, _, rest = text_of(content).partition("\n")
    return kind, rest


def file_of(content: bytes, name: str) -> Path:
    """A file with these bytes."""
    path = FOLDER / name
    path.write_bytes(content)
    return path


def envelope(content: bytes) -> None:
    found = Envelope.from_json(text_of(content))
    assert Envelope.from_json(found.to_json()) == found


def body(content: bytes) -> None:
    """A body of any kind, behind a good signature."""
    kind, text = kind_of(content)
    if kind not in OPENED:
        return
    unsigned = Envelope(kind, fixed.CONTEXT.digest, COORDINATOR, fixed.ME, text, "0" * 128)
    (message,) = fixed.signed((unsigned,))
    names = {"kind": kind, "context": message.context, "sender": COORDINATOR, "receiver": fixed.ME}
    found = open_body(OPENED[kind], message, key=fixed.CONSORTIUM.coordinator, **names)
    printed = canonical(asdict(found))
    again = parse(OPENED[kind], printed, party=COORDINATOR, step=kind)
    assert again == found and canonical(asdict(again)) == printed


def site_step(content: bytes) -> None:
    """A site's step, asked with any body; the messages in it have good signatures."""
    kind, text = kind_of(content)
    me, now, identity, random = fixed.ME, played(), fixed.IDENTITIES[fixed.ME], entropy("fuzz step")
    match kind:
        case "ask/advertise":
            context = parse(AskAdvertise, text, party=COORDINATOR, step=kind).context
            secagg_site.advertise(identity, fixed.CONSORTIUM, context, NO_HISTORY, random)
        case "ask/share":
            adverts = fixed.signed(parse(AskShare, text, party=COORDINATOR, step=kind).adverts)
            secagg_site.share(identity, now.advertised[me][0], AskShare(adverts), random)
        case "ask/mask":
            shares = fixed.signed(parse(AskMask, text, party=COORDINATOR, step=kind).shares)
            secagg_site.mask(identity, now.shared[me][0], AskMask(shares), fixed.vector())
        case "ask/confirm":
            ask = parse(AskConfirm, text, party=COORDINATOR, step=kind)
            secagg_site.confirm(identity, now.masked[me][0], ask)
        case "ask/reveal":
            confirmations = fixed.signed(parse(AskReveal, text, party=COORDINATOR, step=kind).confirmations)
            secagg_site.reveal(identity, now.confirmed[me][0], AskReveal(confirmations))


def coordinator_step(content: bytes) -> None:
    """A step of the coordinator's over any answers, which have good signatures."""
    kind, text = kind_of(content)
    messages = fixed.signed(parse(tuple[Envelope, ...], text, party="unknown", step=kind))
    now, me = played(), fixed.ME
    match kind:
        case "advert":
            secagg_coordinator.open_roster(fixed.CONTEXT, messages)
        case "share":
            secagg_coordinator.check_dealing(now.roster, me, messages)
        case "masked":
            for message in messages:
                secagg_coordinator.check_masked(now.dealings, me, message)
        case "confirmation":
            secagg_site.count_confirmations(fixed.CONTEXT, now.roster.round, fixed.SITES, messages)
        case "reveal":
            secagg_coordinator.recover_masks(now.dealings, fixed.SITES, messages)


def mailbox_text(content: bytes) -> None:
    """A message, or the digest of one that lies on the exchange, where there is an empty one."""
    exchange = Exchange("memory://fuzz", patience_s=0)
    exchange.put(COORDINATOR, b"[]")
    found = unpack(text_of(content), exchange, COORDINATOR)
    assert unpack(pack(found, exchange, COORDINATOR)[0], exchange, COORDINATOR) == found


def mailbox_object(content: bytes) -> None:
    """A message that lies on the exchange."""
    exchange = Exchange("memory://fuzz", patience_s=0)
    digest = exchange.put(COORDINATOR, content)
    try:
        unpack(json.dumps({"object": digest, "size": len(content)}), exchange, COORDINATOR)
    finally:
        exchange.delete(COORDINATOR, digest)


def mailbox_server(content: bytes) -> None:
    """What the Prefect server shows of its inputs; more than is read of it, where it ends with a blank."""
    content += b" " * RESPONSE_BYTES if content.endswith(b" ") else b""
    transport = httpx.MockTransport(
        lambda request: (
            httpx.Response(200, stream=httpx.ByteStream(content))
            if request.method == "POST"
            else httpx.Response(204, stream=httpx.ByteStream(b""))
        )
    )
    http = PrefectHttpxSyncClient(base_url="http://server/api", transport=transport, enable_csrf_support=False)
    client = cast(SyncPrefectClient, SimpleNamespace(_client=http))
    assert all(len(text) <= LONGEST_INPUT for text in Mailbox(client, UUID(int=1)).take("ask-").values())


def model(content: bytes) -> None:
    found = GlobalModel.from_bytes(content, parameters=fixed.PARAMETERS, features=fixed.FEATURES)
    again = GlobalModel.from_bytes(found.to_bytes(), parameters=fixed.PARAMETERS, features=fixed.FEATURES)
    assert again.to_bytes() == found.to_bytes()


def model_file(content: bytes) -> None:
    """The model that ``fedseal verify`` is shown."""
    check_model(file_of(content, "model.safetensors"), trained())


def receipt(content: bytes) -> None:
    """A receipt as it comes; it does not verify but in one form."""
    found = parse_receipt(content)
    assert parse_receipt(found.to_json().encode()) == found
    check_receipt(found, fixed.CONSORTIUM, terms_of(plan_of(found), found))


def resigned_receipt(content: bytes) -> None:
    """A receipt of a coordinator and of sites that sign anything."""
    found = fixed.resigned(parse_receipt(content))
    plan = plan_of(found)
    check_receipt(found, fixed.CONSORTIUM, terms_of(plan, found))
    assert describe(found, plan)


def consortium(content: bytes) -> None:
    found = read_consortium(file_of(content, "consortium.toml"))
    write_consortium(FOLDER / "again.toml", found)
    assert read_consortium(FOLDER / "again.toml") == found


def plan_json(content: bytes) -> None:
    """The plan that a site is asked to join."""
    raw = parse(dict[str, object], text_of(content), party=COORDINATOR, step="join")
    found = make_plan(raw, source="plan")
    assert make_plan(json.loads(found.to_json()), source="plan").to_json() == found.to_json()
    check_policy(Policy(tasks=[found.task]), found, found.sites[0])
    for table in tables_of(found, fixed.SIZES).values():
        check_headroom(table, len(found.sites))


def plan_toml(content: bytes) -> None:
    found = read_plan(file_of(content, "plan.toml"))
    assert make_plan(json.loads(found.to_json()), source="plan") == found


def site_toml(content: bytes) -> None:
    file_of(content, SITE_FILE)
    SiteFolder.read(FOLDER)


def coordinator_toml(content: bytes) -> None:
    file_of(content, COORDINATOR_FILE)
    CoordinatorFolder.read(FOLDER)


def checkpoint(content: bytes) -> None:
    """The progress of a training, on a disk that somebody else has written to."""
    folder = FOLDER / "checkpoint"
    Checkpoint.create(folder, "tiny", fixed.PLAN, fixed.MODEL).close()
    (folder / "progress.json").write_bytes(content)
    found = Checkpoint.resume(folder, fixed.PLAN, parameters=fixed.PARAMETERS, features=fixed.FEATURES)
    found.close()
    found.entries()
    with suppress(ValueError):  # it is not finished
        found.report(fixed.PLAN.privacy)


def held_round(content: bytes) -> None:
    """A held round, on such a disk."""
    folder = FOLDER / "held"
    made = Checkpoint.create(folder, "tiny", fixed.PLAN, fixed.MODEL)
    made.close()
    (folder / "held.json").write_bytes(content)
    if held := made.held(1):
        assert held.dealings
        made.held_total(held)


def masked_vector(content: bytes) -> None:
    vector, total = np.frombuffer(content, np.uint8), fixed.vector()
    add(total, vector, fixed.SEGMENTS)
    assert total.tobytes() == content
    integers(total, fixed.SEGMENTS)


def csv_table(content: bytes) -> None:
    for line, cells in read_columns(file_of(content, "table.csv"), ("a", "b")):
        assert line > 0 and len(cells) == 2


def csv_gz_table(content: bytes) -> None:
    list(read_columns(file_of(content, "table.csv.gz"), ("a", "b")))


def eicu_tables(content: bytes) -> None:
    """The four tables of a site, one after another."""
    for name, table in zip(ALLOWED, content.split(b"\0"), strict=False):
        file_of(table, f"{name}.csv")
    read_stays(FOLDER, "south")


TARGETS = {
    "envelope": Target(envelope, (BadMessage,)),
    "body": Target(body, (BadMessage,)),
    "site-step": Target(site_step, (ProtocolError,)),
    "coordinator-step": Target(coordinator_step, (ProtocolError,)),
    "mailbox-text": Target(mailbox_text, (BadMessage,)),
    "mailbox-object": Target(mailbox_object, (BadMessage,)),
    "mailbox-server": Target(mailbox_server, (MailboxError,)),
    "model": Target(model, (BadMessage,), mutate_safetensors),
    "model-file": Target(model_file, (Unreadable, ReceiptError), mutate_safetensors),
    "receipt": Target(receipt, (NotJson, ReceiptError)),
    "resigned-receipt": Target(resigned_receipt, (NotJson, ReceiptError)),
    "consortium": Target(consortium, (ConsortiumError,), mutate=None),
    "plan-json": Target(plan_json, (BadMessage, PlanError, Refused, RingTooSmall)),
    "plan-toml": Target(plan_toml, (PlanError,), mutate=None),
    "site-toml": Target(site_toml, (SettingsError,), mutate=None),
    "coordinator-toml": Target(coordinator_toml, (SettingsError,), mutate=None),
    "checkpoint": Target(checkpoint, (CheckpointError,)),
    "held-round": Target(held_round, (CheckpointError, ProtocolError)),
    "masked-vector": Target(masked_vector, (ValueError,), mutate=None),
    "csv-table": Target(csv_table, (DataError,), mutate=None),
    "csv-gz-table": Target(csv_gz_table, (DataError,), mutate=None),
    "eicu-tables": Target(eicu_tables, (DataError,), mutate=None),
}
