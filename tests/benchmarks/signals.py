"""Is a command that is ended at any moment ended whole? ``python -m tests.benchmarks.signals [--runs 15] [--ups 15]``.

``fedseal run`` and ``fedseal up`` with a training are sent SIGINT or SIGTERM at a random moment of what they take from
start to end. Ten seconds later nothing of them may run, nothing may have been a traceback, and what is started again
must come to the model of a training that nobody has ended. Prints a line for each; exit code 1 where one has failed.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import TimeoutExpired

from deploy.up import free_port
from tests.deploy.running import begin, gone, wait_for

ROUNDS = ("--set", "rounds=3")
WHOLE_S, END_S = 600.0, 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_words(home: Path) -> tuple[str, ...]:
    """``fedseal run``: from the beginning, or going on with what is there."""
    begun = [str(folder) for folder in home.glob("runs/*")]
    return ("run", "--no-baselines", *(("--resume", *begun) if begun else ROUNDS))


def model_of_run(home: Path, words: tuple[str, ...]) -> bytes:
    """The model that a run comes to."""
    if begin(home, *words).wait(WHOLE_S) != 0:
        raise AssertionError((home / "err").read_text())
    return next(home.glob("runs/*/model.safetensors")).read_bytes()


def up_words(home: Path) -> tuple[str, ...]:
    """``fedseal up`` with three sites, in the same folder and at the same port each time."""
    home.mkdir(exist_ok=True)
    port = home / "port"
    if not port.exists():
        port.write_text(str(free_port()))
    return ("up", "--sites", "3", "--port", port.read_text(), "--folder", str(home / "up"))


def submit(home: Path) -> None:
    """Start the training once there is a coordinator that takes it."""
    url = f"http://127.0.0.1:{(home / 'port').read_text()}/api"
    words = ("submit", str(home / "up" / "example.toml"), *ROUNDS)
    while begin(home / "submit", *words, PREFECT_API_URL=url).wait(WHOLE_S) != 0:
        time.sleep(2)


def model_of_up(home: Path, words: tuple[str, ...]) -> bytes:
    """The model of the training that an ``up`` makes, or goes on with; ``up`` is ended afterwards."""
    running, ends = begin(home, *words), time.monotonic() + WHOLE_S
    try:
        wait_for("Ctrl-C", home / "out", WHOLE_S)
        if not list(home.glob("up/coordinator/runs/*")):
            submit(home)
        while not (found := list(home.glob("up/coordinator/runs/*/report.json"))):
            if time.monotonic() > ends:
                raise AssertionError((home / "err").read_text())
            time.sleep(0.5)
        return (found[0].parent / "model.safetensors").read_bytes()
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


def wrong(home: Path, words: tuple[str, ...], after_s: float, number: signal.Signals, up: bool) -> str:
    """End a command after some seconds; says what is wrong with its end, or nothing."""
    running, began = begin(home, *words), time.monotonic()
    if up and after_s > 1:
        try:
            wait_for("Ctrl-C", home / "out", after_s)
            submit(home)
        except AssertionError:
            pass  # it is ended before it serves
    time.sleep(max(0.0, began + after_s - time.monotonic()))
    running.send_signal(number)
    try:
        running.wait(END_S)
    except TimeoutExpired:
        running.kill()
        return f"runs on after {END_S:g} s"
    if not gone(home, END_S):
        return "leaves processes"
    return "prints a traceback" if "Traceback" in (home / "err").read_text() + (home / "out").read_text() else ""


def tried(
    name: str,
    folder: Path,
    moments: int,
    words: Callable[[Path], tuple[str, ...]],
    model: Callable[[Path, tuple[str, ...]], bytes],
) -> int:
    """End a command at so many moments; prints each, and gives how many have failed."""
    whole, began = folder / f"{name}-whole", time.monotonic()
    expected = model(whole, words(whole))
    lasted, failed = time.monotonic() - began, 0
    print(f"{name}: {lasted:.1f} s from start to end")
    for moment in range(moments):
        home, after_s, number = folder / f"{name}-{moment}", random.uniform(0, lasted), random.choice(SIGNALS)
        found = wrong(home, words(home), after_s, number, name == "up")
        if not found and model(home, words(home)) != expected:
            found = "goes on to another model"
        failed += bool(found)
        print(
            f"{name} {number.name} after {after_s:.1f} s: {found or 'ended, and went on to the same model'}", flush=True
        )
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every moment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--ups", type=int, default=15)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        failed = tried("run", Path(name), given.runs, run_words, model_of_run) if given.runs else 0
        failed += tried("up", Path(name), given.ups, up_words, model_of_up) if given.ups else 0
    print(f"{given.runs + given.ups - failed} of {given.runs + given.ups}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
