"""A TCP relay before a server, for tests: it keeps what is said, and can be slow, or hang."""

import asyncio
import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PIECE, HELD_LOOK_S = 1 << 16, 0.1


@dataclass(slots=True)
class Line:
    """What a relay does with what it hears; a test may change it at any time.

    Attributes:
        server: the port of loopback that it forwards to.
        heard: a folder that gets a file of what each side of each connection has said.
        delay_s: seconds by which every piece is late.
        bytes_per_s: how much it passes on, each way of each connection.
        held: whether it passes on nothing, as what hangs does: connections are taken, and stay.
    """

    server: int
    heard: Path | None = None
    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    held: bool = False


@contextmanager
def relay(line: Line, host: str = "127.0.0.1") -> Iterator[int]:
    """Forward connections to ``host`` for as long as the block lasts; gives the port."""
    loop, numbers = asyncio.new_event_loop(), itertools.count()
    connections = set[asyncio.Task[None] | None]()  # the loop alone would forget those that wait for each other

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        connections.add(asyncio.current_task())
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", line.server)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            _pass_on(line, reader, server, f"{number}-asked"), _pass_on(line, answers, writer, f"{number}-answered")
        )
        server.close()
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(connected, host, 0)

    async def stop(listener: asyncio.Server) -> None:
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(stop(listener), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pass_on(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    try:
        while piece := await reader.read(PIECE):
            if line.heard is not None:
                with (line.heard / name).open("ab") as file:
                    file.write(piece)
            if late_s := line.delay_s + len(piece) / line.bytes_per_s:
                await asyncio.sleep(late_s)
            while line.held:
                await asyncio.sleep(HELD_LOOK_S)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:  # either end may go away at any time
        writer.close()
