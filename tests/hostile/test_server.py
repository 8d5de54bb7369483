"""A Prefect server that is itself the attacker, in this process: what the mailbox does with what no server answers.

Everything else that asks the server (Prefect's own client, in worker and engine) has no such caps: see SECURITY.md.
"""

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import mailbox
from flows.engine import patient
from flows.mailbox import RESPONSE_BYTES, Mailbox, MailboxError
from tests.hostile.hand import memory

pytestmark = pytest.mark.slow

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def lying_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server whose every answer is what ``answer`` sends; gives its address, and what it was asked."""
    asked: list[bytes] = []

    class Liar(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            asked.append(self.connection.recv(65_536))
            with suppress(OSError):
                (NO_TOKEN if b"/csrf-token" in asked[-1] else answer)(self.connection)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/api", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def asking(answer: Callable[[socket.socket], None]) -> Iterator[Mailbox]:
    """A mailbox at a server that answers so."""
    with lying_server(answer) as (url, _), temporary_settings({PREFECT_API_URL: url}):
        with patient(get_client(sync_client=True)) as client:
            yield Mailbox(client, uuid4())


def whole(body: bytes, *headers: bytes, status: bytes = HEAD) -> Callable[[socket.socket], None]:
    """An answer with this body."""
    head = status + b"".join(header + b"\r\n" for header in headers)
    return lambda to: to.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def endless(piece: bytes, pause_s: float = 0.0, head: bytes = HEAD + b"\r\n") -> Callable[[socket.socket], None]:
    """An answer that does not end."""

    def send(to: socket.socket) -> None:
        to.sendall(head)
        while True:
            to.sendall(piece)
            time.sleep(pause_s)

    return send


NO_TOKEN = whole(b'{"detail": "CSRF protection is disabled."}', status=b"HTTP/1.1 422 Unprocessable\r\n")
"""What a server says that wants no CSRF tokens: Prefect's client asks for one first."""

packed = gzip.compress(bytes(60_000_000))
LIES = {
    "no JSON": whole(b"nonsense"),
    "HTML": whole(b"<html>" * 1000),
    "another type": whole(b'{"key": "ask-1", "value": "x"}'),
    "a number for a key": whole(b'[{"key": 1, "value": "x"}]'),
    "a list for a value": whole(b'[{"key": "ask-1", "value": ["x"]}]'),
    "deep JSON": whole(b"[" * 300_000),
    "1e400": whole(b"1e400"),
    "half a surrogate": whole(b'[{"key": "ask-1", "value": "\\ud800"}]'),
    "no text": whole(b"\xff\xfe" * 1000),
    "an error": whole(b"x" * 1000, status=b"HTTP/1.1 500 Oh\r\n"),
    "no HTTP": lambda to: to.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": lambda to: to.shutdown(socket.SHUT_RDWR),
    "less than it says": lambda to: to.sendall(HEAD + b"Content-Length: 100\r\n\r\n[]"),
    "endless headers": endless(b"X-More: " + b"x" * 8000 + b"\r\n", head=HEAD),
    "one huge header": endless(b"x" * 8000, head=HEAD + b"X-More: "),
    "packed": whole(packed, b"Content-Encoding: gzip"),
}


@pytest.mark.parametrize("lie", LIES)
def test_in_this_process_an_answer_that_is_none_is_told_in_one_line_and_costs_no_memory(lie: str) -> None:
    with asking(LIES[lie]) as box:
        before = memory()
        with pytest.raises(MailboxError, match=r"^the Prefect server [^\n]*$"):
            box.take("ask-")
        assert not box.client._client.enable_csrf_support, "the lie was not told in the token's place"
        assert memory() - before < 8_000_000


def test_in_this_process_an_endless_answer_is_not_read_to_its_end() -> None:
    with asking(endless(b"[" * 65_536)) as box:
        before = memory()
        assert box.take("ask-") == {}
        box.put("ask-1", "x")
        box.delete("ask-1")
        assert memory() - before < 4 * RESPONSE_BYTES + 8_000_000


def test_in_this_process_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "RESPONSE_S", 1.0)
    with asking(endless(b" ", pause_s=0.1)) as box:
        began = time.monotonic()
        for use in (lambda: box.take("ask-"), lambda: box.put("ask-1", "x"), lambda: box.delete("ask-1")):
            with pytest.raises(MailboxError, match="takes too long"):
                use()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_in_this_process_a_server_that_sends_a_party_elsewhere_is_not_followed(status: int) -> None:
    with lying_server(whole(b"[]")) as (elsewhere, asked):
        head = b"HTTP/1.1 %d Moved\r\nLocation: %s/x\r\n" % (status, elsewhere.encode())
        with asking(whole(b"", status=head)) as box:
            for use in (lambda: box.take("ask-"), lambda: box.put("ask-1", "secret"), lambda: box.delete("ask-1")):
                with pytest.raises(MailboxError, match=rf"\(HTTP {status}\)"):
                    use()
        assert asked == []


@pytest.mark.parametrize(
    "key", ["../../../../admin/database/clear", "ask-/../..", "ask-%2e%2e", "ask-\r\nX: y", "ask-?x#y"]
)
def test_in_this_process_a_key_that_is_a_path_deletes_nothing_else(key: str) -> None:
    """The server says which inputs there are, and a party asks it to delete what is no message."""
    listed = whole(f'[{{"key": {key!r}, "value": "x"}}]'.replace("'", '"').encode())
    with lying_server(listed) as (url, asked), temporary_settings({PREFECT_API_URL: url}):
        with patient(get_client(sync_client=True)) as client:
            assert Mailbox(client, uuid4()).take("ask-") == {}
    lines = [one.split(b"\r\n")[0] for one in asked]
    (deleted,) = [line for line in lines if line.startswith(b"DELETE")]
    path = deleted.split(b" ")[1]
    assert b"/input/" in path and b"/" not in path.split(b"/input/")[1] and b"?" not in path
