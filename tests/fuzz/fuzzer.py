"""The fuzzer of one target, in a process of its own: ``python -m tests.fuzz.fuzzer TARGET [libFuzzer's options]``.

It needs atheris (``pip install -e '.[fuzz]'``), which shows libFuzzer the branches that our Python takes. What happens
in pydantic's Rust it cannot see: there, each way to refuse counts as a branch. The file that ``FUZZ_COSTS`` names gets
the costliest input's bytes and seconds.
"""

import os
import sys
import zlib
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["protocols", "flows", "deploy", "ml_tasks", "tomllib", "gzip"]):
    from tests.fuzz.targets import TARGETS, measure

WAYS = [atheris._reserve_counter() for _ in range(4096)]
"""libFuzzer's counters for the ways to refuse."""


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, *options = sys.argv[1:]
    target, costs, most = TARGETS[name], Path(os.environ["FUZZ_COSTS"]), [0, 0.0]

    def enter(content: bytes) -> None:
        outcome = measure(target, content)
        for way in outcome.ways:
            atheris._trace_branch(WAYS[zlib.crc32(way.encode()) % len(WAYS)])
        if outcome.peak > most[0] or outcome.seconds > most[1]:
            most[:] = max(most[0], outcome.peak), max(most[1], outcome.seconds)
            costs.write_text(f"{most[0]} {most[1]:.3f}")

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        changed = target.mutate(content, random) if target.mutate and random.random() < 0.8 else None
        return atheris.Mutate(content, longest) if changed is None else changed[:longest]

    atheris.Setup([sys.argv[0], *options], enter, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
