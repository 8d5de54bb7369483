"""The relay passes on what it hears, keeps it, and is as slow as it is told."""

import socket
import threading
import time
from pathlib import Path

from tests.processes.relay import Line, relay

SAID = bytes(range(256)) * 400


def test_a_relay_passes_on_keeps_and_delays(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            for _ in range(2):
                with server.accept()[0] as connection:
                    while said := connection.recv(1 << 16):
                        connection.sendall(said)

        threading.Thread(target=echo, daemon=True).start()
        line = Line(server.getsockname()[1], heard=tmp_path)
        with relay(line) as port:
            quick_s = said_and_heard(port)
            line.delay_s, line.bytes_per_s = 0.1, 400_000.0
            slow_s = said_and_heard(port)
    assert slow_s >= 2 * 0.1 + len(SAID) / 400_000 > quick_s
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [SAID] * 4


def said_and_heard(port: int) -> float:
    """Say something to an echo; gives the seconds until all of it was heard."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(SAID)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := connection.recv(1 << 16):
            heard += piece
    assert heard == SAID
    return time.monotonic() - began


def test_a_relay_before_a_server_that_is_not_there_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with relay(Line(port)) as between, socket.create_connection(("127.0.0.1", between)) as connection:
        assert connection.recv(1) == b""
