"""The mailbox: how signed messages travel between coordinator and sites, who all only call the Prefect API (SPEC 5.5).

A message is an *input* of the flow run that it is for: requests lie in a site's participation run, answers in the
training's run. Anyone who can write to the Prefect API can put anything there, so that nothing is believed here: sizes
are capped while reading, an oversized input is deleted unread, and what comes out goes through the doors of SPEC 5.2.
What is too long for an input lies on the exchange, and its digest is sent.
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flows.exchange import Exchange
from protocols.contexts import Digest
from protocols.errors import BadMessage
from protocols.messages import Envelope

LONGEST_INPUT = 64 * 1024
"""The longest value of an input, in characters; a longer message goes through the exchange."""
LONGEST_MESSAGE = 16 * 1024 * 1024
"""The longest message on the exchange, in bytes."""
BATCH = 16
"""Inputs that one request reads."""
RESPONSE_BYTES = 6 * LONGEST_INPUT + 4096
"""The longest answer of the server that is read: one input of the longest value, with every character escaped."""

_KEY = re.compile(r"[a-z0-9-]{1,200}")
_KEY_IN_JSON = re.compile(rb'"key":\s*("[^"]*")')  # the server takes no key with a quotation mark


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


_INPUTS = TypeAdapter(list[_Input])
_MESSAGES = TypeAdapter(tuple[Envelope, ...])


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The inputs of one flow run."""

    client: SyncPrefectClient
    run: UUID

    def put(self, key: str, text: str) -> None:
        """Post a message. To post the same again changes nothing; what else lies under its key is replaced.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        for _ in range(2):
            if self._send("POST", "", {"key": key, "value": text}) != httpx.codes.CONFLICT:
                return
            if {one.key: one.value for one in self._filter(key, (), 1) or []}.get(key) == text:
                return
            self.delete(key)
        raise MailboxError("the Prefect server does not take a message")

    def take(self, prefix: str, known: Collection[str] = ()) -> dict[str, str]:
        """Read the oldest messages whose keys start with ``prefix``, but not the ``known``; none is deleted by this.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        found = self._filter(prefix, known, BATCH)
        if found is None:  # together they are too long: one by one
            found = self._filter(prefix, known, 1) or []
        for one in found:
            if not one.is_message:
                self.delete(one.key)
        return {one.key: one.value for one in found if one.is_message}

    def delete(self, key: str) -> None:
        """Delete a message, if it is there.

        Raises:
            MailboxError: the server does not answer, or refuses.
        """
        self._send("DELETE", f"/{quote(key, safe='')}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        """Ask the server; a conflict and a missing input are answers too."""
        try:
            return self.client._client.request(method, f"/flow_runs/{self.run}/input{path}", json=body).status_code
        except PrefectHTTPStatusError as error:
            if (status := error.response.status_code) in (httpx.codes.CONFLICT, httpx.codes.NOT_FOUND):
                return status
            raise MailboxError(f"the Prefect server refuses a message (HTTP {status})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(error) from None

    def _filter(self, prefix: str, known: Collection[str], limit: int) -> list[_Input] | None:
        """Read at most ``limit`` inputs, and no more bytes than one may have; ``None`` where there are more."""
        asked = {"prefix": prefix, "limit": limit, "exclude_keys": sorted(known)}
        body = bytearray()
        try:
            with self._stream(asked) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > RESPONSE_BYTES:
                        break
            if len(body) <= RESPONSE_BYTES:
                return _INPUTS.validate_json(bytes(body))
        except ValidationError:
            raise MailboxError("the Prefect server does not show its messages") from None
        except httpx.HTTPError as error:
            raise unreachable(error) from None
        if limit == 1 and (key := _KEY_IN_JSON.search(body)) is not None:
            self.delete(json.loads(key[1]))
        return None

    @contextmanager
    def _stream(self, asked: dict[str, Any]) -> Iterator[httpx.Response]:
        """Send the search; Prefect's own ``send`` reads an answer whole before anyone can look at its length."""
        http = cast(PrefectHttpxSyncClient, self.client._client)
        request = http.build_request("POST", f"/flow_runs/{self.run}/input/filter", json=asked)
        http._add_csrf_headers(request)
        response = httpx.Client.send(http, request, stream=True)
        try:
            if response.is_error:
                http.csrf_token = None
                raise MailboxError(f"the Prefect server does not show its messages (HTTP {response.status_code})")
            yield response
        finally:
            response.close()


def pack(messages: tuple[Envelope, ...], exchange: Exchange, owner: str) -> tuple[str, str | None]:
    """Write envelopes as the text of an input; a long one is put on the exchange, and its digest given beside it."""
    text = f"[{','.join(message.to_json() for message in messages)}]"
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
        return _MESSAGES.validate_json(content)
    except ValidationError:
        raise BadMessage(owner, "envelope", "the message does not parse") from None


def request_key(request: Envelope) -> str:
    """The key of a request: to ask the same again is to ask it under the same key."""
    return f"ask-{request.digest[:40]}"


def answer_key(site: str, request: str) -> str:
    """The key of a site's answer to the request under the key ``request``."""
    return f"answer-{site}-{request}"


def unreachable(error: Exception) -> MailboxError:
    """What is said of a server that has not answered."""
    return MailboxError(f"the Prefect server cannot be reached ({type(error).__name__})")


def is_away(error: httpx.HTTPError) -> bool:
    """Whether a server cannot be reached or is in trouble, so that it may be asked the same again; else it refuses."""
    return not isinstance(error, httpx.HTTPStatusError) or error.response.is_server_error
