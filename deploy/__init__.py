"""How fedseal is run: the command line and the plans that come with it."""

import os
from pathlib import Path

EXAMPLE = Path(__file__).parent / "plans" / "breast_cancer.toml"
"""The plan of the embedded example."""


def home() -> Path:
    """Where what is run on this machine is kept: ``$FEDSEAL_HOME``, by default ``~/.fedseal``."""
    return Path(os.environ.get("FEDSEAL_HOME", Path.home() / ".fedseal"))
