"""How fedseal is run: the command line and the plans that come with it."""

import os
import sys
from pathlib import Path

from deploy.shadows import tell

sys.excepthook = tell
EXAMPLE = Path(__file__).parent / "plans" / "breast_cancer.toml"
"""The plan of the embedded example."""
SERVER_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # By default every state of every task run is a transaction of its own: a third of the server's work, and in the way
    # of the other writers to SQLite, which are told to come again in two seconds.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # What every round's hundred of task runs say of themselves, kept a second time: most of the database, and in the UI
    # no more than the feed of events. Automations hear of events all the same.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
}
"""How a Prefect server of ours is set, the embedded one too; deploy/README.md recommends it for one of your own."""


def home() -> Path:
    """Where what is run on this machine is kept: ``$FEDSEAL_HOME``, by default ``~/.fedseal``.

    Raises:
        RuntimeError: there is no such user's home.
    """
    named = os.environ.get("FEDSEAL_HOME")
    return Path(named).expanduser() if named else Path.home() / ".fedseal"
