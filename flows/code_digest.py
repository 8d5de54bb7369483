"""The digest of a task's code, found without running any of it (SPEC 6.11).

A plan names a task by its import path, and by the digest of the package that holds it: what a data steward approves is
code, not a name. The digest is over every file of the top-level package or module that Python would import, since any
of them may run: a task imports its neighbours, and importing a package runs its ``__init__``. What the package itself
imports from elsewhere (PyTorch, other packages) is not in it: that is the installation, which is the site's own.
"""

import hashlib
import importlib.util
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Literal, NoReturn

from flows.plan import Plan, PlanError
from protocols.contexts import SPEC_VERSION, sha256
from protocols.errors import Refused

CodeRule = Literal["pinned", "named", "any"]
"""Whether a plan must name the code that is installed, must name no other, or is not asked."""

_CACHED = re.compile(r"^[^.]+\..+\.pyc(\.\d+)?$")
"""What Python keeps in ``__pycache__``: no import statement reaches a file of that name."""

_one_at_a_time = threading.Lock()


def code_digest(task: str) -> str:
    """SHA-256 over the names and contents of all files of the top-level package that a task is in.

    Args:
        task: its import path, ``module:Class``.

    Raises:
        PlanError: no package of that name is installed, or it is none of plain files.
    """
    top = task.partition(":")[0].partition(".")[0]
    parts: list[str] = []
    try:
        for name, path in sorted(_files(top)):
            with path.open("rb") as file:
                parts += [name, hashlib.file_digest(file, "sha256").hexdigest()]
        return sha256(SPEC_VERSION, "code", *parts)
    except (OSError, UnicodeEncodeError) as error:
        raise PlanError(f"task {task}: its code cannot be read ({error}): install its package anew") from None


def with_code(plan: Plan) -> Plan:
    """Name in a plan the code that is installed here, where it names none: whoever starts a training does.

    Raises:
        PlanError: the plan names other code, with both digests, or the task is not installed.
    """
    check_same_code(plan)
    return plan if plan.code else plan.model_copy(update={"code": code_digest(plan.task)})


def without_code(plan: Plan) -> Plan:
    """A plan that runs whatever code is installed, for whoever has said that it may."""
    return plan.model_copy(update={"code": ""})


def check_same_code(plan: Plan) -> None:
    """Check that the code that a plan names, if any, is the code that is installed here.

    Raises:
        PlanError: it is not, with both digests.
    """
    if plan.code and plan.code != (here := code_digest(plan.task)):
        raise PlanError(
            f"the code of {plan.task} that is installed here is {here}, the plan is for {plan.code}: install that "
            "version, or plan anew"
        )


def check_code(rule: CodeRule, plan: Plan, site: str) -> None:
    """Refuse a plan for other code than is installed at this site, before any of it is imported.

    Args:
        rule: the policy's.
        plan: the plan.
        site: the site's name.

    Raises:
        Refused: with both digests.
    """
    if rule == "pinned" and not plan.code:
        raise Refused(site, "join", "the plan does not name the digest of its task's code: plan it anew")
    if rule != "any":
        try:
            check_same_code(plan)
        except PlanError as error:
            raise Refused(site, "join", str(error)) from None


def import_from_source(top: str) -> None:
    """Have the modules of a top-level package compiled from their source whenever they are imported.

    Python would run what lies in ``__pycache__`` in their place where it looks as old as they are, and that is not in
    the digest.
    """
    with _one_at_a_time:  # sites that are threads import at the same time
        others = [one for one in sys.meta_path if not (isinstance(one, _FromSource) and one.top == top)]
        sys.meta_path[:] = [_FromSource(top), *others]  # first again, where another was put before it since


class _SourceLoader(SourceFileLoader):
    def path_stats(self, path: str) -> NoReturn:
        """Know no time of change: without one, nothing is read from ``__pycache__`` and nothing written there."""
        raise OSError("not from __pycache__")


class _FromSource:
    """Finds what the other finders find, and loads it from its source."""

    def __init__(self, top: str) -> None:
        self.top = top

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As a finder of ``sys.meta_path``."""
        if name.partition(".")[0] != self.top:
            return None
        for finder in sys.meta_path:
            if not isinstance(finder, _FromSource) and (spec := finder.find_spec(name, path, target)) is not None:
                if isinstance(spec.loader, SourceFileLoader):
                    spec.loader = _SourceLoader(spec.loader.name, spec.loader.path)
                return spec
        return None


def _files(top: str) -> Iterator[tuple[str, Path]]:
    """The files of a top-level package or module, by their path below ``sys.path``, with ``/``.

    ``find_spec`` of a name without dots imports nothing; of a dotted one it would import the parents.
    """
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.name != top:
        raise PlanError(f"task package {top}: is not installed: install it, or correct the plan's task")
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        if not spec.has_location or not path.is_file():
            raise PlanError(f"task package {top}: is no file: install it unpacked")
        yield path.name, path
        return
    seen = set[str]()
    for location in spec.submodule_search_locations:  # several, where a package has no __init__: the first one is found
        root = Path(location).resolve()
        if not root.is_dir():
            raise PlanError(f"task package {top}: is no folder: install it unpacked")
        for name, path in _below(root, top):
            if name not in seen:
                seen.add(name)
                yield name, path


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path, inner = Path(entry.path), f"{name}/{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _below(path, inner)
            elif not stat.S_ISREG(mode):
                raise PlanError(
                    f"task package: {path}: is a link, or no file: what it leads to is not in the digest: install "
                    "a copy"
                )
            elif not (folder.name == "__pycache__" and _CACHED.match(entry.name)):
                yield inner, path
