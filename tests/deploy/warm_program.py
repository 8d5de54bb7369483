"""A program for the tests of the warm parent, and a worker that has it run: ``python -m tests.deploy.warm_program``."""

import importlib.util
import os
import secrets
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import anyio

from deploy.warm import Programs
from protocols.keys import Identity

_told: list[str] = []


def ready(folder: Path) -> None:
    """Keep that the warm parent was ready for another."""
    _told.append("ready")


def started() -> None:
    """Keep that one was forked."""
    _told.append("started")


def say(*words: object) -> None:
    """Print a line, whole: the programs write to one file."""
    os.write(1, " ".join(map(str, [*words, "\n"])).encode())


def main(folder: Path, run_id: UUID) -> None:
    """Print what is asked for, then do what the folder's file of the run says."""
    word = (folder / run_id.hex).read_text()
    held = [os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")]
    say(word, "told", *_told)
    say(word, "in", Path.cwd(), "leads", os.getsid(0) == os.getpid(), "path", *sys.path)
    say(word, "finds", importlib.util.find_spec("planted"))
    say(word, "holds", [one for one in held if "socket" in one])
    say("drew", Identity.generate("north").public, secrets.token_hex(16), uuid4(), os.getrandom(16).hex())
    match word:
        case "exits":
            sys.exit(7)
        case "fails":
            raise ValueError("it has failed")
        case "is killed" | "stays":
            time.sleep(60)


async def run(programs: Programs, folder: Path, word: str) -> None:
    """Have a program do what a word says; print its process and how it has ended."""
    number = uuid4()
    (folder / number.hex).write_text(word)
    program = programs.start(number)
    print(word, await program.started(), flush=True)
    if word == "is killed":
        await anyio.sleep(1)
        program.kill()
    print(word, "ended with", await program.ended(), flush=True)


def worker(folder: Path, words: list[str]) -> None:
    """Have a program run for each word, all at once, and then one more."""
    programs = Programs.load("tests.deploy.warm_program", folder)

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for word in words:
                tasks.start_soon(run, programs, folder, word)
        await run(programs, folder, "is last")

    anyio.run(all_of_them)


if __name__ == "__main__":
    worker(Path(sys.argv[1]).absolute(), sys.argv[2:])
