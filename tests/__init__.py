"""The tests: a folder for each layer, one for the house they stand in, and what they share.

A party's programs import nothing from the folder that they run in: those that run the tests' tasks find them by this.
"""

import os
from pathlib import Path

_paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))
