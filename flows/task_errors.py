"""What a task's own code raised, as one line: where in the author's code, what, and on what (SPEC 1, 6.12).

For the people of a site, and for local mode, where one person is all of them. Nothing of it goes to a coordinator: a
text may quote a record, and a place names folders of the machine.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.plan import PlanError
from ml_tasks.task import DataError

OURS = frozenset({"deploy", "flows", "ml_tasks", "protocols"})
"""Our own packages, whose lines tell an author nothing."""


def what(error: BaseException) -> str:
    """The error's kind and text; of our own, which say it all, the text alone."""
    text = " ".join(str(error).split())
    return text if isinstance(error, DataError | PlanError) else f"{type(error).__name__}: {text}"


def place(error: BaseException, task: str) -> str:
    """The innermost line of the author's code that an error went through; empty where there is none.

    Args:
        error: as it was caught.
        task: import path of the task, whose package is the author's wherever it is installed.
    """
    if isinstance(error, PlanError) and error.__cause__ is not None:  # of a task that does not import
        error = error.__cause__
    if isinstance(error, DataError | PlanError):
        return ""
    package = task.partition(":")[0].partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if _is_authors(frame.f_globals.get("__name__", ""), code.co_filename, package):
            return f"{_short(code.co_filename)}, line {line}, in {code.co_name}"
    return ""


def in_full(error: BaseException, task: str) -> str:
    """Where, what, and the notes that say on what; in one line."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    where = place(error, task)
    return (f"{where}: " if where else "") + what(error) + (f" ({notes})" if notes else "")


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Add to whatever is raised what it was about, which ``in_full`` says beside it."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def _is_authors(module: str, file: str, package: str) -> bool:
    top = module.partition(".")[0]
    if top == package:
        return True
    library = "site-packages" in Path(file).parts or file.startswith("<")
    return not (library or top in OURS or top in sys.stdlib_module_names)


def _short(file: str) -> str:
    """A file's path from the working folder where it lies in there; a locked child stands in the root."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if here != Path("/") and path.is_relative_to(here) else file
