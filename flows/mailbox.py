"""The mailbox: how signed messages travel between coordinator and sites, who all only call the Prefect API (SPEC 5.5).

A message is an *input* of the flow run that it is for: requests lie in a site's participation run, answers in the
training's run. Anyone who can write to the Prefect API can put anything there, so that nothing is believed here: sizes
are capped while reading, an oversized input is deleted unread, and what comes out goes through the doors of SPEC 5.2.
What is too long for an input lies on the exchange, and its digest is sent.
"""

import json
import logging
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import SyncPrefectClient
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flows.exchange import Exchange
from flows.pauses import pauses
from protocols.contexts import Digest, ListOf
from protocols.errors import BadMessage
from protocols.messages import Envelope

LONGEST_INPUT = 64 * 1024
"""The longest value of an input, in characters; a longer message goes through the exchange."""
LONGEST_MESSAGE = 4 * 1024 * 1024
"""The longest message on the exchange, in bytes."""
BATCH = 16
"""Inputs that one request reads."""
RESPONSE_BYTES = 6 * LONGEST_INPUT + 4096
"""The longest answer of the server that is read: one input of the longest value, with every character escaped."""
RESPONSE_S = 60.0
"""Seconds that the server may take for an answer, from its first byte to its last."""
CLEAR_S = 30.0
"""Seconds in which a mailbox is to be cleared: a server that is busy or away is asked again."""
MOST_STUCK, MOST_STUCK_KEYS = 2**20, 4096
"""Characters, and number, of keys that are passed over since the server does not delete them: a database takes some
ten thousand in one query."""

_KEY = re.compile(r"[a-z0-9-]{1,200}")
_KEY_IN_JSON = re.compile(rb'"key":\s*("[^"]*")')  # the server takes no key with a quotation mark

log = logging.getLogger("fedseal.mailbox")


class MailboxError(OSError):
    """The Prefect server cannot be reached or does not do what a mailbox needs; ``reason`` is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Input(BaseModel):
    """What the mailbox reads of an input."""

    key: str
    value: str

    @property
    def is_message(self) -> bool:
        """Whether it can be one of ours."""
        return len(self.value) <= LONGEST_INPUT and _KEY.fullmatch(self.key) is not None


class _Parcel(BaseModel):
    """A message that lies on the exchange."""

    model_config = ConfigDict(extra="forbid", strict=True)

    object: Digest
    size: Annotated[int, Field(ge=0, le=LONGEST_MESSAGE)]


_INPUTS = TypeAdapter(ListOf[_Input])
_MESSAGES = TypeAdapter(ListOf[Envelope])


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The inputs of one flow run; a mailbox asks once, so that its client is to be a ``patient`` one."""

    client: SyncPrefectClient
    run: UUID
    _stuck: set[str] = field(default_factory=set, compare=False)

    def put(self, key: str, text: str) -> None:
        """Post a message. To post the same again changes nothing; what else lies under its key is replaced.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        for _ in range(2):
            if self._send("POST", "", {"key": key, "value": text}) != httpx.codes.CONFLICT:
                return
            if {one.key: one.value for one in self._filter(key, (), 1) or ()}.get(key) == text:
                return
            self.delete(key)
        raise MailboxError("the Prefect server does not take a message")

    def take(self, prefix: str, known: Collection[str] = ()) -> dict[str, str]:
        """Read the oldest messages whose keys start with ``prefix``, but not the ``known``; none is deleted by this.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        found = self._oldest(prefix, known) or ()
        for one in found:
            if not one.is_message:
                self._discard(one.key)
        return {one.key: one.value for one in found if one.is_message}

    def delete(self, key: str) -> None:
        """Delete a message, if it is there.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        self._send("DELETE", f"/{quote(key, safe='')}")

    def clear(self, prefix: str) -> None:
        """Delete all messages whose keys start with ``prefix``; after ``CLEAR_S`` of a flood, what is left stays.

        Raises:
            MailboxError: the server does not answer, or refuses, for ``CLEAR_S``.
        """
        deadline = time.monotonic() + CLEAR_S
        for pause_s in pauses():
            try:
                while time.monotonic() < deadline and (found := self._oldest(prefix)) != ():
                    for one in found or ():
                        (self.delete if one.is_message else self._discard)(one.key)
                return
            except MailboxError:
                if time.monotonic() + pause_s > deadline:
                    raise
                time.sleep(pause_s)

    def _discard(self, key: str) -> None:
        """Delete what is no message, unread.

        A key of ours is always deleted. One that ends in a line feed, or is longer than a URL may be, is taken by the
        server and cannot be deleted: it is passed over from now on, or it would be in the way for ever.
        """
        ours = _KEY.fullmatch(key) is not None
        log.warning("deleted an input that is no message, unread: %s", key if ours else ascii(key[:40]))
        try:
            self.delete(key)
        except MailboxError:
            if ours:
                raise
        if not ours and len(self._stuck) < MOST_STUCK_KEYS and sum(map(len, self._stuck)) + len(key) <= MOST_STUCK:
            self._stuck.add(key)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        """Ask the server; a conflict and a missing input are answers too."""
        with self._response(method, path, body) as response:
            _read(response)  # whole, or the connection could not be used again
        if response.is_success or response.status_code in (httpx.codes.CONFLICT, httpx.codes.NOT_FOUND):
            return response.status_code
        raise MailboxError(f"the Prefect server refuses a message (HTTP {response.status_code})")

    def _oldest(self, prefix: str, known: Collection[str] = ()) -> tuple[_Input, ...] | None:
        """Read the oldest inputs, together or one by one; ``None`` where the one was too long, and is deleted."""
        found = self._filter(prefix, known, BATCH)
        return self._filter(prefix, known, 1) if found is None else found

    def _filter(self, prefix: str, known: Collection[str], limit: int) -> tuple[_Input, ...] | None:
        """Read at most ``limit`` inputs, and no more bytes than one may have; ``None`` where there are more."""
        asked = {"prefix": prefix, "limit": limit, "exclude_keys": sorted({*known, *self._stuck})}
        with self._response("POST", "/filter", asked) as response:
            body = _read(response)
        if not response.is_success:
            raise MailboxError(f"the Prefect server does not show its messages (HTTP {response.status_code})")
        try:
            if len(body) <= RESPONSE_BYTES:
                return _INPUTS.validate_json(body)
        except ValidationError:
            raise MailboxError("the Prefect server does not show its messages") from None
        if limit == 1 and (key := _KEY_IN_JSON.search(body)) is not None:
            self._discard(_key_of(key[1]))
        return None

    @contextmanager
    def _response(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[httpx.Response]:
        """Ask, and read nothing yet: Prefect's own ``send`` reads an answer whole before anyone can see its length.

        No server sends us elsewhere, and none has us unpack more than it sends.
        """
        http = cast(PrefectHttpxSyncClient, self.client._client)
        try:
            request = http.build_request(
                method, f"/flow_runs/{self.run}/input{path}", json=body, headers={"Accept-Encoding": "identity"}
            )
            http._add_csrf_headers(request)
            response = httpx.Client.send(http, request, stream=True, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: its CSRF token is none
            raise unreachable(error) from None
        try:
            if response.is_error:
                http.csrf_token = None
            yield response
        except httpx.HTTPError as error:
            raise unreachable(error) from None
        finally:
            response.close()


def _read(response: httpx.Response) -> bytes:
    """Read what the server sends, as it is, up to a little more than ``RESPONSE_BYTES``.

    Raises:
        MailboxError: it takes too long.
    """
    body, deadline = bytearray(), time.monotonic() + RESPONSE_S
    for piece in response.iter_raw():
        body += piece
        if len(body) > RESPONSE_BYTES:
            break
        if time.monotonic() > deadline:
            raise MailboxError("the Prefect server takes too long to answer")
    return bytes(body)


def written(messages: tuple[Envelope, ...]) -> str:
    """The one text of these envelopes."""
    return f"[{','.join(message.to_json() for message in messages)}]"


def pack(messages: tuple[Envelope, ...], exchange: Exchange, owner: str) -> tuple[str, str | None]:
    """Write envelopes as the text of an input; a long one is put on the exchange, and its digest given beside it."""
    text = written(messages)
    if len(text) <= LONGEST_INPUT:
        return text, None
    digest = exchange.put(owner, text.encode())
    return json.dumps({"object": digest, "size": len(text)}), digest


def unpack(text: str, exchange: Exchange, owner: str) -> tuple[Envelope, ...]:
    """Read what ``pack`` wrote, without believing a word of it.

    Raises:
        BadMessage: it does not parse, or its object is missing or not what its digest says.
    """
    try:
        content: str | bytes = text
        if text.startswith("{"):
            parcel = _Parcel.model_validate_json(text)
            content = exchange.get(owner, parcel.object, size=parcel.size)
        messages = _MESSAGES.validate_json(content, extra="ignore")  # pydantic keeps an error for each unknown field
    except ValidationError:
        raise BadMessage(owner, "envelope", "the message does not parse") from None
    if written(messages) != (content if isinstance(content, str) else content.decode()):
        raise BadMessage(owner, "envelope", "the message does not parse")
    return messages


def _key_of(written: bytes) -> str:
    """A key as the server writes it in JSON; one that is no key can only come of a server that lies."""
    try:
        key: str = json.loads(written)
        key.encode()
    except ValueError:
        raise MailboxError("the Prefect server does not show its messages") from None
    return key


def request_key(request: Envelope) -> str:
    """The key of a request: to ask the same again is to ask it under the same key."""
    return f"ask-{request.digest[:40]}"


def answer_key(site: str, request: str) -> str:
    """The key of a site's answer to the request under the key ``request``."""
    return f"answer-{site}-{request}"


def unreachable(error: Exception) -> MailboxError:
    """What is said of a server that has not answered, or not well."""
    if isinstance(error, httpx.HTTPStatusError):
        return MailboxError(f"the Prefect server cannot be used (HTTP {error.response.status_code})")
    return MailboxError(f"the Prefect server cannot be reached ({type(error).__name__})")


def is_away(error: httpx.HTTPError) -> bool:
    """Whether a server cannot be reached or is in trouble, so that it may be asked the same again; else it refuses."""
    return not isinstance(error, httpx.HTTPStatusError) or error.response.is_server_error
