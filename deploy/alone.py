"""One process a folder, one coordinator a consortium: who comes second is told so before it has done anything."""

import errno
import fcntl
import secrets
import socket
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flows.settings import SettingsError

if TYPE_CHECKING:
    from datetime import datetime

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import Worker

WATCHED_BEATS = 3
"""Heartbeats for which a worker that seems to be there is watched: as many as the server waits for."""
BEAT_S = 1.0


def alone(folder: Path, lock: str, program: str) -> IO[str]:
    """Hold a folder for one process; keep what this gives open.

    Args:
        folder: it is there.
        lock: the name of the file that is locked; nothing is written to it.
        program: what runs in the folder, for the line.

    Raises:
        SettingsError: another process holds the folder, or its file system has no locks.
        OSError: the folder cannot be written.
    """
    file = (folder / lock).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SettingsError(f"{folder}: another {program} is running for it: end that one first") from None
    except OSError as error:
        file.close()
        why = errno.errorcode.get(error.errno or 0, "no locks")
        raise SettingsError(f"{folder}: its file system has no locks ({why}): take a folder on another") from None
    return file


def coordinator_name() -> str:
    """A name for a coordinator's worker that no other has, on any machine."""
    return f"{socket.gethostname().partition('.')[0] or 'coordinator'}-{secrets.token_hex(4)}"


def alone_in_pool(client: "SyncPrefectClient", pool: str, name: str, heartbeat_s: float) -> None:
    """See that no other coordinator serves a consortium, wherever it runs; one that was killed is not in the way.

    Two that serve at once would end each other's trainings. A worker that has not said in ``WATCHED_BEATS`` heartbeats
    that it is there is dead, and removed. Of two that begin at once the one that the server has seen first stays.

    Args:
        client: of the Prefect API.
        pool: the coordinator's.
        name: of the worker that is to serve.
        heartbeat_s: seconds after which a worker says again that it is there.

    Raises:
        SettingsError: another one is there.
    """
    seen: dict[str, datetime | None] = {}
    deadline = time.monotonic() + WATCHED_BEATS * heartbeat_s
    while True:
        client.send_worker_heartbeat(pool, name, heartbeat_s)
        workers = {worker.name: worker for worker in client.read_workers_for_work_pool(pool)}
        own = workers.pop(name, None)
        older = [other for other in workers.values() if own is not None and _order(other) < _order(own)]
        for other in older:
            first = seen.setdefault(other.name, other.last_heartbeat_time)
            if other.last_heartbeat_time != first:
                _remove(client, pool, name)
                raise SettingsError(
                    f"another fedseal coordinator serve is running with this key ({other.name}): end that one first"
                )
        if not any(other.status == "ONLINE" for other in older) or time.monotonic() > deadline:
            break
        time.sleep(BEAT_S)
    for dead in older:
        _remove(client, pool, dead.name)


def _order(worker: "Worker") -> tuple[str, str]:
    return str(worker.created), worker.name


def _remove(client: "SyncPrefectClient", pool: str, name: str) -> None:
    client._client.delete(f"/work_pools/{pool}/workers/{name}")
