"""The process that runs a task's code: it locks itself, imports the task, and does what it is asked (SPEC 8.1).

Up to ``lock`` all code is trusted, after it none is. What it sends the site are frames; what it prints goes to the
site's log. A layer that the site counts on and that cannot be put on ends the process before the task is imported.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flows.sandbox import landlock, process, seccomp
from flows.sandbox.frames import Frame, FrameError, receive, send
from flows.sandbox.view import Package, gpus

if TYPE_CHECKING:
    from flows.local_work import LocalWork

MOST_ORDER = 2**40
MOST_TEXT = 2000
"""Characters of a reason; it goes into the site's log."""


class OnePackage:
    """Finds one top-level package by its place, where the folder that it lies in cannot be read."""

    def __init__(self, package: Package) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As ``importlib.abc.MetaPathFinder``."""
        package = self._package
        if name != package.name:
            return None
        if not package.origin:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = list(package.folders)
            return spec
        folders = list(package.folders) or None
        return importlib.util.spec_from_file_location(name, package.origin, submodule_search_locations=folders)


def main(orders: int, answers: int, output: int, *, parent: int, scratch: Path, memory: int) -> None:
    """Lock this process and take orders until the site closes the pipe.

    Args:
        orders: the pipe that frames come from; the first says what is allowed.
        answers: the pipe that frames go to.
        output: where what is printed goes.
        parent: this process's, with which it ends.
        scratch: the folder to make the temporary one in.
        memory: bytes that it may take beyond what Python and PyTorch do.
    """
    orders, answers = _only(orders, answers, output)
    first = receive(orders, most=0).words
    own = scratch / str(os.getpid())
    own.mkdir(mode=0o700)
    for name in ("TMPDIR", "HOME", "MPLCONFIGDIR"):
        os.environ[name] = str(own)
    package = Package(first["package"][0], first["package"][1], tuple(first["package"][2]))
    try:
        lock(first, own, package, parent=parent, memory=memory)
    except landlock.NotConfined as error:
        send(answers, Frame({"failed": f"the child could not be locked: {error}"}))
        return
    sys.path[:] = [entry for entry in sys.path if os.access(entry, os.R_OK) and _listed(entry)]
    sys.meta_path.insert(0, OnePackage(package))
    work: LocalWork | None = None
    try:
        work = _prepare(first)
        answer = Frame({"ready": True})
    except BaseException as error:  # a task may raise what is no Exception
        answer = failed(error, first)
    send(answers, answer)
    while work is not None:
        try:
            order = receive(orders, most=MOST_ORDER)
        except FrameError:
            return
        try:
            answer = perform(work, order)
        except BaseException as error:
            answer = failed(error, first)
        send(answers, answer)


def lock(words: Mapping[str, Any], own: Path, package: Package, *, parent: int, memory: int) -> None:
    """Put on every layer that the site has found on this host.

    Args:
        words: what the site allows and counts on.
        own: the temporary folder.
        package: the task's.
        parent: this process's.
        memory: bytes that it may take beyond what it has.

    Raises:
        NotConfined: one of them does not hold.
    """
    devices = gpus()
    process.end_with_parent(parent)
    process.limit(memory=None if devices else memory)
    process.drop_privileges()
    readable = [Path(path) for path in words["readable"]] + [*package.paths, Path("/proc/self")]
    if words["landlock"]:
        landlock.restrict(readable=readable, writable=[own], devices=[Path("/dev/null"), *devices])
    if words["seccomp"]:
        seccomp.install(gpu=bool(devices))


def perform(work: "LocalWork", order: Frame) -> Frame:
    """Do what an order says."""
    from flows.workshop import WorkOrder

    words = order.words
    match words["do"]:
        case "describe":
            described = work.described
            return Frame({"sizes": asdict(described.sizes), "bounds": described.bounds})
        case "check":
            found = work.check()
            texts = {"reasons": found.wrong, "odd": found.odd}
            cut = {name: [text[:MOST_TEXT] for text in given] for name, given in texts.items()}
            return Frame({**cut, "examples": dict(found.examples)})
        case _:
            asked = WorkOrder(
                purpose=words["purpose"],
                step=words["step"],
                round=words["round"],
                model=order.arrays["model"].tobytes(),
                subset=bytes.fromhex(words["subset"]),
            )
            worked = work.perform(asked)
            return Frame({"content": worked.content}, worked.values)


def failed(error: BaseException, words: Mapping[str, Any]) -> Frame:
    """What the site's log is told of an exception; the first frame's words name the task."""
    from flows.task_errors import in_full, what

    task = json.loads(words["plan"])["task"]
    return Frame({"failed": what(error)[:MOST_TEXT], "in full": in_full(error, task)[:MOST_TEXT]})


def _prepare(words: Mapping[str, Any]) -> "LocalWork":
    from flows.local_work import LocalWork
    from flows.plan import Plan

    folder = None if words["folder"] is None else Path(words["folder"])
    return LocalWork(Plan.model_validate_json(words["plan"]), words["site"], folder)


def _only(orders: int, answers: int, output: int) -> tuple[int, int]:
    """Close every descriptor but these; what is printed goes to ``output``."""
    kept = [os.dup2(number, 100 + place) for place, number in enumerate((orders, answers, output))]
    os.dup2(kept[2], 1)
    os.dup2(kept[2], 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.closerange(3, kept[0])
    os.closerange(kept[1] + 1, os.sysconf("SC_OPEN_MAX"))
    return kept[0], kept[1]


def _listed(entry: str) -> bool:
    try:
        os.listdir(entry or ".")
    except NotADirectoryError:
        return True
    except OSError:
        return False
    return True
