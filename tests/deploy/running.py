"""Commands that run beside a test, to be ended at any moment, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FEDSEAL = Path(sys.executable).parent / "fedseal"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin(home: Path, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command with its output in files of ``home``, and with what the environment is to say beside."""
    home.mkdir(exist_ok=True)
    environment = os.environ | {"FEDSEAL_HOME": str(home), "FEDSEAL_TEST_RUN": str(home)} | environment
    with open(home / "out", "w") as out, open(home / "err", "w") as err:
        return subprocess.Popen(
            [FEDSEAL, *map(str, words)], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )


def left(home: Path) -> list[int]:
    """The processes that descend from a command that ``begin`` has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FEDSEAL_TEST_RUN={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(what: str, file: Path, limit_s: float = 120.0) -> None:
    """Wait until a file holds a text."""
    ends = time.monotonic() + limit_s
    while what not in file.read_text():
        assert time.monotonic() < ends, file.read_text()
        time.sleep(0.1)


def gone(home: Path, limit_s: float = 10.0) -> bool:
    """Whether nothing of a command runs any more, soon."""
    ends = time.monotonic() + limit_s
    while found := left(home):
        if time.monotonic() > ends:
            return not found
        time.sleep(0.1)
    return True
