"""``python -m deploy.child PARENT MODULE WORDS...``: run a module that ends with the process that has started it.

A parent that is killed ends nothing of what it has started: that has to notice by itself. It looks at its parent's
number rather than ask the kernel for a signal (``PR_SET_PDEATHSIG``), which would come when the *thread* that has
started it ends, and on Linux alone.
"""

import os
import runpy
import signal
import sys
import threading
import time

LOOK_S = 1.0
"""Seconds after which a program notices that its parent has ended."""
GRACE_S = 6.0
"""Seconds that it then has to end by itself, as after SIGTERM."""


def end_with(parent: int, grace_s: float = 0.0) -> None:
    """Have this process end soon after its parent, however that ended.

    Args:
        parent: its process number, taken before the parent could have ended.
        grace_s: how long this process may take over its end; 0 for one whose threads cannot be ended otherwise.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        if grace_s > 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def command(module: str, *words: str) -> list[str]:
    """The command that runs a module which ends with this process; it imports nothing from where it runs."""
    return [sys.executable, "-P", "-m", "deploy.child", str(os.getpid()), module, *words]


def main(parent: int, module: str, words: list[str]) -> None:
    """Run the module as ``python -m`` would."""
    end_with(parent, GRACE_S)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
