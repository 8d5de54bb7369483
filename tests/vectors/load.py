"""Read the vectors: ``outside/`` comes from standards, each file with its source; ``own/`` from ``generate.py``."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def outside(name: str) -> Any:
    """A file of vectors that others made."""
    return json.loads((FOLDER / "outside" / f"{name}.json").read_text())


def own(name: str) -> Any:
    """A file of vectors that we made."""
    return json.loads((FOLDER / "own" / f"{name}.json").read_text())
