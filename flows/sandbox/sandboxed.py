"""The site's side of the sandbox: a ``Workshop`` whose work is done by a locked child (SPEC 8.1, ADR 0011).

A site has one warm parent and, for each training, one child at a time. A child is killed when its work is not done in
time, when it sends anything but what was asked, and at ``stop``; the next order gets a new one. Why work failed goes to
the site's own log and nowhere else.
"""

import contextlib
import math
import os
import re
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flows.plan import Plan
from flows.sandbox import landlock, view
from flows.sandbox.frames import Frame, FrameError, receive, send
from flows.sandbox.parent import START_S, Child, Rules, WarmParent, keep_output
from flows.workshop import Checked, Described, Worked, WorkFailed, WorkOrder
from ml_tasks.layout import Sizes

BESIDE_MODEL = 2**20
"""Bytes of an answer beside vectors of the model's length: weight, counts, moments."""
DIGEST = re.compile(r"[0-9a-f]{64}")


class SandboxedWorkshops:
    """Makes sandboxed workshops for one site (``flows.workshop.Workshops``).

    One warm parent serves them all where Landlock narrows the view of each child. Where only bubblewrap restricts
    files, the view is the parent's, and each task and data set gets one of its own.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._shared = landlock.version() > 0
        self._parents: dict[tuple[str, Path | None], WarmParent] = {}
        self._lock = threading.Lock()

    def __call__(self, plan: Plan, site: str, folder: Path | None) -> "Sandboxed":
        """The workshop of a plan; nothing of it runs before its first order."""
        return Sandboxed(plan, site, folder, self)

    def warm(self) -> None:
        """Have PyTorch loaded beside whatever this process does next; what fails shows at the first order."""
        if self._shared:
            with contextlib.suppress(WorkFailed, OSError):
                self.parent("", None)

    def fits(self, rules: Rules) -> bool:
        """Whether this is warm, and what a new one with these rules would be."""
        parents = self._parents.values()
        return self.rules == rules and bool(parents) and all(not one.ended and one.current for one in parents)

    def let_go(self) -> None:
        """Leave what is warm to a process that was forked from this one."""
        while self._parents:
            self._parents.popitem()[1].let_go()

    def parent(self, task: str, folder: Path | None) -> WarmParent:
        """The warm parent for a task and a data set; a new one where it has ended.

        Raises:
            WorkFailed: the host cannot hold what the site requires.
        """
        key = ("", None) if self._shared else (task, folder)
        with self._lock:
            if (known := self._parents.get(key)) is None or known.ended:
                tasks, data = tuple(self.rules.tasks), tuple(self.rules.data.values())
                if not self._shared:
                    tasks, data = (task,), () if folder is None else (folder,)
                known = self._parents[key] = WarmParent(self.rules, tasks, data)
            return known

    def close(self) -> None:
        """End the warm parents and every child."""
        with self._lock:
            while self._parents:
                self._parents.popitem()[1].close()


def _sizes(words: object) -> Sizes:
    """The sizes that a child has told.

    Raises:
        TypeError, ValueError, OverflowError: these are none.
    """
    if not isinstance(words, dict):
        raise TypeError("no sizes")
    cap = float(words.pop("loss_cap"))
    sizes = Sizes(**{str(name): int(number) for name, number in words.items()}, loss_cap=cap)
    if min(asdict(sizes).values()) < 0 or not 0 < cap < math.inf:
        raise ValueError("no sizes")
    return sizes


class Sandboxed:
    """One training's local work at one site, in a locked child. See ``flows.workshop.Workshop``."""

    def __init__(self, plan: Plan, site: str, folder: Path | None, made_by: SandboxedWorkshops) -> None:
        self._plan, self._site, self._folder, self._made_by = plan, site, folder, made_by
        self._child: Child | None = None
        self._one = threading.Lock()
        self._stopped = threading.Event()

    def describe(self, limit_s: float) -> Described:
        """As ``Workshop``."""
        words = self._ask(Frame({"do": "describe"}), limit_s, most=0).words
        try:
            bounds = tuple((float(low), float(high)) for low, high in words["bounds"])
            return Described(_sizes(words["sizes"]), bounds)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._lied("what describes no task") from None

    def check(self, limit_s: float) -> Checked:
        """As ``Workshop``."""
        words = self._ask(Frame({"do": "check"}), limit_s, most=0).words
        reasons, odd, examples = words.get("reasons"), words.get("odd"), words.get("examples")
        if not isinstance(reasons, list) or not isinstance(odd, list) or not isinstance(examples, dict):
            raise self._lied("no reasons")
        if not reasons and not {"train", "test"} <= examples.keys():
            raise self._lied("no numbers of examples")
        try:
            numbers = {str(part): int(number) for part, number in examples.items()}
            return Checked(tuple(map(str, reasons)), numbers, tuple(map(str, odd)))
        except (TypeError, ValueError, OverflowError):
            raise self._lied("no numbers of examples") from None

    def work(self, order: WorkOrder, limit_s: float) -> Worked:
        """As ``Workshop``."""
        words = {"do": "work", "purpose": order.purpose, "step": order.step, "round": order.round}
        model = np.frombuffer(order.model, np.uint8)
        asked = Frame({**words, "subset": order.subset.hex()}, {"model": model})
        answer = self._ask(asked, limit_s, most=2 * len(order.model) + BESIDE_MODEL)
        content = answer.words.get("content")
        if not isinstance(content, str) or not DIGEST.fullmatch(content):
            raise self._lied("no digest of its data")
        return Worked(dict(answer.arrays), content)

    def stop(self) -> None:
        """As ``Workshop``: the child is killed, whatever it does."""
        self._stopped.set()
        child = self._child
        if child is not None:
            child.parent.kill(child.number)  # whoever waits for its answer sees its pipe closed
        with self._one:
            self._end()
            self._stopped.clear()

    def _ask(self, order: Frame, limit_s: float, *, most: int) -> Frame:
        """Send an order and wait for its answer, ``most`` bytes of arrays, for ``limit_s`` seconds."""
        with self._one:
            if self._child is None:
                self._child = self._begin()
            child = self._child
            if self._stopped.is_set():
                raise WorkFailed(self._end())
            ends = time.monotonic() + limit_s
            child.parent.tell("go", child.number)
            try:
                send(child.orders, order, ends=ends)
                answer = receive(child.answers, most=most, ends=ends)
            except FrameError as error:
                raise WorkFailed(f"{error} ({self._end()})") from None
            except BaseException:
                self._end()
                raise
            child.parent.tell("pause", child.number)
            if "failed" in answer.words:
                raise failed(answer)
            return answer

    def _lied(self, what: str) -> WorkFailed:
        with self._one:
            self._end()
        return WorkFailed(f"the task's process has answered with {what}")

    def _begin(self) -> Child:
        """Start a child, have it lock itself and import the task.

        Raises:
            WorkFailed: one of these has failed; there is no child then.
        """
        parent, package = self._made_by.parent(self._plan.task, self._folder), view.find_package(self._plan.task)
        if package is None:
            raise WorkFailed(f"task {self._plan.task}: its package is not installed here")
        theirs, orders = os.pipe()
        answers, theirs_too = os.pipe()
        said, output = os.pipe()
        os.set_blocking(orders, False)
        try:
            number = parent.start(theirs, theirs_too, output)
        except BaseException:
            for descriptor in (orders, answers, said):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (theirs, theirs_too, output):
                os.close(descriptor)
        threading.Thread(target=keep_output, args=(said, parent.rules.log), daemon=True).start()
        child = Child(number, orders, answers, parent)
        ends = time.monotonic() + START_S
        try:
            send(orders, Frame(self._allowed(parent, package)), ends=ends)
            answer = receive(answers, most=0, ends=ends)
        except BaseException as error:
            how = child.end()
            if isinstance(error, FrameError):
                raise WorkFailed(f"the task's process did not start: {error} ({how})") from None
            raise
        if "failed" in answer.words:
            child.end()
            raise failed(answer)
        return child

    def _allowed(self, parent: WarmParent, package: view.Package) -> dict[str, object]:
        """What a child is told before it locks itself."""
        folder = None if self._folder is None else self._folder.resolve()
        data = [] if folder is None else [str(folder)]
        return {
            "plan": self._plan.to_json(),
            "site": self._site,
            "folder": None if folder is None else str(folder),
            "package": [package.name, package.origin, list(package.folders)],
            "readable": [*map(str, parent.view.python), *data],
            "landlock": "landlock" in parent.holds,
            "seccomp": "seccomp" in parent.holds,
        }

    def _end(self) -> str:
        """End the child, if there is one; the lock is held."""
        child, self._child = self._child, None
        if child is None:
            return "it has ended"
        said = child.end()
        return "it was stopped" if self._stopped.is_set() else said


def failed(answer: Frame) -> WorkFailed:
    """Why a child's work failed, in its own words."""
    return WorkFailed(str(answer.words["failed"]), str(answer.words.get("in full", "")))
