"""What a training that has ended leaves at a site, and how it goes (SPEC 7.3).

Local work is unmasked, and nothing that goes on later needs it, nor the vectors on the exchange: both go when the
participation ends. The last attempt's secrets finish a round that is held, so that they stay for a while: the site's
``keep_s``. A process that was killed removes nothing; ``tidy`` does it then, for each training that none is in.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.exchange import Exchange
from protocols import site as protocol
from protocols.files import private
from protocols.vault import Vault

VECTOR = ".vector"
"""In an attempt's folder of local work: the name of a vector that lies on the exchange."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a training.

    Attributes:
        training: its name.
        age_s: seconds since its last attempt was begun here.
        work: pieces of local work, unmasked.
        vectors: on the exchange, as far as the site knows.
        secrets: attempts whose secrets are there.
    """

    training: str
    age_s: float
    work: int
    vectors: int
    secrets: int


def work_folder(vault: Vault, training: str) -> Path:
    """Where a training's local work lies, an attempt in a folder of its own."""
    return vault.folder / "work" / training


class Hold:
    """A participation's hold on its training, beside others of the same site: nobody tidies up what it works with.

    Args:
        vault: the site's.
        training: the training's name.
    """

    def __init__(self, vault: Vault, training: str) -> None:
        self._lock = _lock(vault, training)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def last(self) -> bool:
        """Whether no other participation is in the training; none begins in it before ``close``."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let it go."""
        self._lock.close()


@contextmanager
def unused(vault: Vault, training: str) -> Iterator[bool]:
    """Keep participations out of a training for a moment.

    Yields:
        Whether none is in it.
    """
    with _lock(vault, training) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _lock(vault: Vault, training: str) -> IO[str]:
    folder = vault.folder / "work"
    folder.mkdir(exist_ok=True, mode=0o700)
    return open(folder / f"{training}.lock", "w", opener=private)


def left_over(vault: Vault) -> list[Left]:
    """What is left of each training, those of which nothing is left aside."""
    now, found = time.time(), []
    for training in sorted({*vault.trainings(), *_folders(vault)}):
        attempts = [path for path in work_folder(vault, training).glob("*") if path.is_dir()]
        files = [file for attempt in attempts for file in attempt.iterdir()]
        vectors = sum(file.suffix == VECTOR for file in files)
        secrets = sum(context.state is not None for context in vault.of_training(training))
        if files or secrets:
            age_s = now - max((path.stat().st_mtime for path in attempts), default=0.0)
            found.append(Left(training, age_s, len(files) - vectors, vectors, secrets))
    return found


def clear_work(vault: Vault, exchange: Exchange, training: str, keep: str = "") -> None:
    """Delete the values and the exchange's vectors of every attempt of a training but ``keep``.

    Raises:
        ExchangeAway: its vectors may still be on the exchange; the values are deleted all the same.
    """
    attempts = [path for path in work_folder(vault, training).glob("*") if path.is_dir() and path.name != keep]
    for file in (file for attempt in attempts for file in attempt.iterdir() if file.suffix != VECTOR):
        file.unlink(missing_ok=True)
    for attempt in attempts:
        for vector in attempt.glob(f"*{VECTOR}"):
            exchange.delete(vault.identity.name, vector.stem)
        shutil.rmtree(attempt, ignore_errors=True)


def erase(vault: Vault, exchange: Exchange, training: str) -> None:
    """Erase all that is left of a training: its secrets, its local work, its vectors.

    Raises:
        ExchangeAway: as ``clear_work``.
    """
    protocol.finish(vault, training)
    clear_work(vault, exchange, training)
    with suppress(OSError):
        work_folder(vault, training).rmdir()


def tidy(vault: Vault, exchange: Exchange, *, work_s: float, keep_s: float) -> list[Left]:
    """Remove what is left of trainings that no process is in; all of it where the site has withdrawn.

    Args:
        vault: the site's.
        exchange: where its vectors lie.
        work_s: seconds that local work and vectors stay: a participation that was killed goes on with them.
        keep_s: seconds that secrets stay.

    Returns:
        Of what something was removed, as it was before.

    Raises:
        ExchangeAway: as ``clear_work``.
    """
    removed = []
    for left in left_over(vault):
        with unused(vault, left.training) as free:
            if not free:
                continue
            if vault.withdrawn(left.training) or left.age_s > keep_s:
                erase(vault, exchange, left.training)
            elif left.age_s > work_s and (left.work or left.vectors):
                clear_work(vault, exchange, left.training)
            else:
                continue
            removed.append(left)
    return removed


def _folders(vault: Vault) -> list[str]:
    folder = vault.folder / "work"
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []
