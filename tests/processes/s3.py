"""An S3 endpoint on loopback for tests: moto's server, in a process of its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from deploy.child import command
from deploy.up import free_port

BUCKET = "exchange"


def options(port: int) -> dict[str, str]:
    """What fsspec needs to use the endpoint at a port of loopback, or a relay's."""
    return {"key": "tests", "secret": "tests", "endpoint_url": f"http://127.0.0.1:{port}"}  # moto takes any


@contextmanager
def bucket() -> Iterator[tuple[int, Any]]:
    """Serve an empty bucket; gives the port, and fsspec's file system of it."""
    port = free_port()
    words = command("moto.server", "-H", "127.0.0.1", "-p", str(port))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            files = fsspec.filesystem("s3", use_listings_cache=False, **options(port))
            deadline = time.monotonic() + 60
            while True:
                try:
                    files.mkdir(BUCKET)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
            yield port, files
        finally:
            server.kill()
