"""The mailbox on a real Prefect server: what strangers put there is capped, thrown away, and never in the way."""

import json
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import httpx
import pytest
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from flows.exchange import Exchange
from flows.mailbox import (
    BATCH,
    LONGEST_INPUT,
    RESPONSE_BYTES,
    Mailbox,
    MailboxError,
    answer_key,
    pack,
    request_key,
    unpack,
)
from flows.messages import AskJoin
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR, Envelope, envelope
from tests.flows.server import COORDINATOR_KEY, KEYS, box, client, keys_of, post

__all__ = ["box", "client"]

PLAN = "0" * 64


def request(plan: str = "{}") -> Envelope:
    """A signed request to ann."""
    return envelope(COORDINATOR_KEY, "ask/join", PLAN, "ann", AskJoin("t", plan))


def test_a_message_is_put_taken_and_deleted(box: Mailbox) -> None:
    box.put("ask-1", "one")
    box.put("ask-2", "two")
    box.put("answer-1", "other")
    assert box.take("ask-") == {"ask-1": "one", "ask-2": "two"}
    assert box.take("ask-", {"ask-1"}) == {"ask-2": "two"}
    assert box.take("ask-") == {"ask-1": "one", "ask-2": "two"}, "to read is not to delete"
    box.delete("ask-1")
    box.delete("ask-1")
    assert keys_of(box) == ["answer-1", "ask-2"]


def test_a_mailbox_is_cleared_of_one_kind_of_message(box: Mailbox) -> None:
    for number in range(BATCH + 1):
        post(box, f"ask-{number}", "x" * (LONGEST_INPUT + number % 2))
    box.put("answer-1", "other")
    box.clear("ask-")
    assert keys_of(box) == ["answer-1"]


def test_the_same_message_may_be_put_again_and_a_strangers_gives_way(box: Mailbox) -> None:
    box.put("ask-1", "true")
    box.put("ask-1", "true")
    assert box.take("ask-") == {"ask-1": "true"}
    post(box, "ask-2", "forged", sender="nobody")
    box.put("ask-2", "true")
    assert box.take("ask-") == {"ask-1": "true", "ask-2": "true"}


@pytest.mark.parametrize("size", [LONGEST_INPUT + 1, 3_000_000])
def test_an_oversized_message_is_deleted_and_the_next_one_read(box: Mailbox, size: int) -> None:
    post(box, "ask-0", "x" * size)
    box.put("ask-1", "true")
    found: dict[str, str] = {}
    for _ in range(3):
        found |= box.take("ask-")
    assert found == {"ask-1": "true"}
    assert keys_of(box) == ["ask-1"]


def test_many_long_messages_are_read_one_by_one(box: Mailbox) -> None:
    texts = {f"ask-{number:02}": chr(97 + number) * LONGEST_INPUT for number in range(BATCH + 2)}
    for key, text in texts.items():
        box.put(key, text)
    found: dict[str, str] = {}
    assert list(box.take("ask-")) == ["ask-00"], "all of them are more than is read at once"
    for _ in range(BATCH + 2):
        found |= box.take("ask-", found)
    assert found == texts


def test_a_message_of_escapes_only_still_fits(box: Mailbox) -> None:
    text = "\x01" * LONGEST_INPUT
    box.put("ask-1", text)
    assert box.take("ask-") == {"ask-1": text}


def test_a_flood_of_oversized_messages_is_worked_off(box: Mailbox) -> None:
    for number in range(5):
        post(box, f"ask-{number}", "x" * 500_000)
    box.put("ask-true", "true")
    for _ in range(7):
        found = box.take("ask-")
    assert found == {"ask-true": "true"}
    assert keys_of(box) == ["ask-true"]


def test_a_key_of_any_length_is_in_nobodys_way(box: Mailbox) -> None:
    post(box, "ask-" + "0" * 300, "x")
    post(box, "ask-" + "0" * 20_000, "x" * 500_000)
    box.put("ask-true", "true")
    for _ in range(6):
        found = box.take("ask-")
    assert found == {"ask-true": "true"}
    assert keys_of(box) == ["ask-true"]


@pytest.mark.parametrize("key", ["ask-1\n", "ask-" + "0" * 100_000, "ask-" + "0" * 100_000 + "\n"])
@pytest.mark.parametrize("value", ["x", "x" * 500_000])
def test_what_the_server_does_not_delete_is_passed_over(box: Mailbox, key: str, value: str) -> None:
    post(box, key, value)
    box.put("ask-true", "true")
    for _ in range(4):
        found = box.take("ask-")
    assert found == {"ask-true": "true"}


def test_a_mailbox_that_is_away_or_refuses_is_told_in_one_line(box: Mailbox, client: object) -> None:
    with pytest.raises(MailboxError, match=r"refuses a message \(HTTP 500\)"):
        box.put("NO SUCH KEY!", "x")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), get_client(sync_client=True) as nobody:
        for use in (lambda box: box.put("a", "b"), lambda box: box.take("a"), lambda box: box.delete("a")):
            with pytest.raises(MailboxError, match=r"^the Prefect server cannot be reached \(ConnectError\)$"):
                use(Mailbox(nobody, box.run))


def test_a_short_message_is_the_text_and_a_long_one_goes_through_the_exchange(tmp_path: Path) -> None:
    exchange = Exchange((tmp_path / "exchange").as_uri())
    short, long = (request(),), (request("x" * LONGEST_INPUT), request("y"))
    text, parcel = pack(short, exchange, COORDINATOR)
    assert parcel is None
    assert unpack(text, exchange, COORDINATOR) == short
    text, parcel = pack(long, exchange, COORDINATOR)
    assert json.loads(text) == {"object": parcel, "size": (tmp_path / "exchange" / COORDINATOR / parcel).stat().st_size}
    assert unpack(text, exchange, COORDINATOR) == long
    with pytest.raises(BadMessage, match="missing"):
        unpack(text, exchange, "ann")
    (tmp_path / "exchange" / COORDINATOR / parcel).write_bytes(b"[]")
    with pytest.raises(BadMessage, match="digest"):
        unpack(text, exchange, COORDINATOR)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "{}",
        "null",
        "[1]",
        '["x"]',
        '{"object": "../../etc/passwd", "size": 1}',
        '{"object": "' + "0" * 64 + '", "size": 99999999999}',
        '{"object": "' + "0" * 64 + '", "size": -1}',
        '{"object": "' + "0" * 64 + '", "size": true}',
        '{"object": "' + "0" * 64 + '", "size": 1, "more": 1}',
        "[" * 10_000,
    ],
)
def test_what_is_no_message_is_a_bad_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadMessage):
        unpack(text, Exchange((tmp_path / "exchange").as_uri()), "ann")


def test_keys_follow_from_the_request_and_stay_short() -> None:
    key = request_key(request())
    assert key == request_key(request())
    assert key != request_key(request("other"))
    assert answer_key("a" * 32, key) == f"answer-{'a' * 32}-{key}"
    assert len(answer_key("a" * 32, key)) < 100
    assert KEYS["ann"].name == "ann"


def test_a_batch_is_read_in_one_request_and_in_little_time(box: Mailbox) -> None:
    for number in range(BATCH):
        box.put(f"ask-{number:02}", "x" * 1000)
    began = time.monotonic()
    assert len(box.take("ask-")) == BATCH
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("item", ["{}", "0", "[]"])
def test_a_message_of_a_million_wrong_items_costs_no_more_than_its_first(tmp_path: Path, item: str) -> None:
    """The errors of all of them took gigabytes, which tracemalloc cannot see: they are counted."""
    exchange = Exchange((tmp_path / "exchange").as_uri())
    content = f"[{','.join([item] * 1_000_000)}]".encode()
    parcel = json.dumps({"object": exchange.put("ann", content), "size": len(content)})
    with pytest.raises(BadMessage, match="does not parse") as refusal:
        unpack(parcel, exchange, "ann")
    below = refusal.value.__context__
    assert isinstance(below, ValidationError) and below.error_count() <= len(fields(Envelope))


@pytest.mark.parametrize("key", [b'"a\\"b"', b'"\xff"', b'"\\ud800"'])
def test_a_server_that_shows_no_key_of_an_oversized_message_is_told_in_one_line(key: bytes) -> None:
    content = b'[{"key":%b,"value":"x"}]' % key + b" " * RESPONSE_BYTES
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(content)))
    http = PrefectHttpxSyncClient(base_url="http://server/api", transport=transport, enable_csrf_support=False)
    lying = cast(SyncPrefectClient, SimpleNamespace(_client=http))
    with pytest.raises(MailboxError, match=r"^the Prefect server does not show its messages$"):
        Mailbox(lying, UUID(int=1)).take("ask-")
