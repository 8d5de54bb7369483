"""Fuzz every target in turn and keep what is worth keeping: ``python -m tests.fuzz.run --minutes 60 [TARGET …]``.

Each target has an equal share of the time, in a process of its own. It starts from its seeds and its corpus, to which
libFuzzer adds what takes a new way through the code. Of that ``corpus/`` keeps the shortest input of each refusal, and
as many more, the shortest first, as there is room for. An input that breaks the property is kept in
``.test-output/fuzz/``, and the target is not fuzzed on. Once the defect is mended, ``--mended TARGET FILE`` adds the
input to those that ``test_corpus.py`` replays for ever.
"""

import argparse
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.corpus import MENDED, read_inputs, write_inputs
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, measure

REPOSITORY = Path(__file__).parent.parent.parent
CRASHES = REPOSITORY / ".test-output" / "fuzz"
HEADER = f"{'target':18} {'executions':>11} {'new':>5} {'kept':>5} {'peak MiB':>9} {'slowest s':>9}  crashes"
LONGEST_INPUT = 64 * 1024
MOST_INPUTS, MOST_CORPUS_BYTES = 65, 130_000
"""Of one target, so that all of them stay below 1,500 inputs and 3 MB."""


def main() -> int:
    """Fuzz, and print a line for each target."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers of bytes from outside.")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--mended", nargs=2, metavar=("TARGET", "FILE"), help="keep an input that broke the property")
    asked = parser.parse_args()
    if unknown := {*asked.targets, *(asked.mended or ())[:1]} - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if asked.mended:
        name, file = asked.mended
        write_inputs(name, [*read_inputs(name, MENDED), Path(file).read_bytes()], MENDED)
        return 0
    names = asked.targets or list(TARGETS)
    CRASHES.mkdir(parents=True, exist_ok=True)
    print(HEADER, flush=True)
    found = [fuzz(name, asked.minutes * 60 / len(names)) for name in names]
    return 1 if any(found) else 0


def fuzz(name: str, seconds: float) -> list[Path]:
    """Fuzz one target and take over what it has found; gives the inputs that broke the property."""
    with TemporaryDirectory() as folder:
        work, costs = Path(folder) / "work", Path(folder) / "costs"
        work.mkdir()
        before = set(read_inputs(name))
        for number, content in enumerate([*seeds()[name], *before, *read_inputs(name, MENDED)]):
            (work / f"start-{number}").write_bytes(content)
        crashes = set(CRASHES.iterdir())
        told = _libfuzzer(name, costs, f"-max_total_time={max(1, round(seconds))}", work)
        new_crashes = sorted(set(CRASHES.iterdir()) - crashes)
        keep(name, [path.read_bytes() for path in work.iterdir()])
        executions = re.search(r"number_of_executed_units: (\d+)", told)
        peak, slowest = costs.read_text().split() if costs.exists() else ("0", "0")
    after = set(read_inputs(name))
    print(
        f"{name:18} {executions[1] if executions else '?':>11} {len(after - before):5} {len(after):5} "
        f"{int(peak) / 2**20:9.1f} {slowest:>9}  {' '.join(path.name for path in new_crashes) or '-'}",
        flush=True,
    )
    if new_crashes:
        print("\n".join(line for line in told.splitlines()[-60:] if "Uncaught" in line or "Error" in line), flush=True)
    return new_crashes


def keep(name: str, inputs: list[bytes]) -> None:
    """Make a target's corpus of these inputs; one that breaks the property is no part of it before that is mended."""
    first: dict[tuple[str, ...], bytes] = {}
    others: list[bytes] = []
    for content in sorted(set(inputs), key=lambda content: (len(content), content)):
        with suppress(Exception):
            if first.setdefault(tuple(measure(TARGETS[name], content).ways), content) != content:
                others.append(content)
    kept, size = [], 0
    for content in [*first.values(), *others][:MOST_INPUTS]:
        size += len(content)
        if size <= MOST_CORPUS_BYTES:
            kept.append(content)
    write_inputs(name, kept)


def _libfuzzer(name: str, costs: Path, *options: str | Path) -> str:
    """Run the fuzzer of a target to its end; gives what it has said."""
    fixed = (f"-max_len={LONGEST_INPUT}", "-timeout=30", "-rss_limit_mb=2048", f"-artifact_prefix={CRASHES}/{name}-")
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", name, *map(str, options), *fixed, "-print_final_stats=1"]
    environment = os.environ | {"FUZZ_COSTS": str(costs)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, errors="replace")
    return ended.stdout + ended.stderr


if __name__ == "__main__":
    sys.exit(main())
