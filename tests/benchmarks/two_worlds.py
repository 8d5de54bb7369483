"""Ten thousand scripts of a hostile coordinator, each played in two worlds: ``python -m tests.benchmarks.two_worlds``.

The long form of ``tests/attacks/test_nothing_before_the_sum.py``: prints how many scripts were compared, and the first
thing that differs, where anything does. An argument is the number of scripts.
"""

import sys

from tests.attacks.two_worlds import WORLDS, difference

SCRIPTS = 10_000
PRIVACIES = ("none", "record", "site")
PAIRED = tuple(world for world in WORLDS if world != "a million rows")


def main(scripts: int) -> int:
    """Compare so many scripts; returns 1 where one shows something of the data."""
    for seed in range(scripts):
        one = PAIRED[seed % len(PAIRED)]
        other = PAIRED[(seed // 3) % len(PAIRED)]
        found = difference(seed, PRIVACIES[seed % 3], (one, other if other != one else "other"))
        if found:
            print(found)
            return 1
        if (seed + 1) % 500 == 0:
            print(f"{seed + 1} scripts: nothing differs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SCRIPTS))
