"""A module of the user's that hides one of Python's or of ours, named where starting fails because of it.

``PYTHONPATH`` comes before everything: a ``queue.py`` or ``flows.py`` in it is imported in the place of the real one,
and what breaks is a library that nobody has heard of. Looked for when it has broken, since most such files do no harm.
"""

import os
import sys
from pathlib import Path
from types import TracebackType

OURS = ("deploy", "flows", "ml_tasks", "protocols")


def hidden() -> str | None:
    """Name an imported module of ``PYTHONPATH`` that stands in another's place; ``None`` where there is none."""
    here = Path(__file__).resolve().parents[1]
    folders = {Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    for name in (*OURS, *sorted(sys.stdlib_module_names)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and folders & set(Path(file).resolve().parents[:2]) and not (name in OURS and _is_in(file, here)):
            whose = "fedseal's" if name in OURS else "Python's own"
            return f"{file} hides {whose} {name}: rename it, or take its folder out of PYTHONPATH"
    return None


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say of an error that a hidden module has caused which one it was; of any other what Python says.

    Of Ctrl-C before the command line is there to hear it (``deploy.ending``), a line.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("fedseal: ended by SIGINT: nothing was begun", file=sys.stderr)
        return
    line = hidden() if issubclass(kind, ImportError | AttributeError) else None
    if line is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"fedseal: {line}", file=sys.stderr)


def _is_in(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)
