"""Whether a long training grows: ``python -m tests.benchmarks.soak --sites 20 --rounds 50``.

One Prefect server, N sites and a coordinator as processes. After every round each process is looked at in /proc: its
memory, open files and threads. What is judged is its anonymous memory: of the libraries' pages it has more or fewer as
other processes come and go. A series *grows* when the median of its second third lies above that of the first, and that
of the third above that of the second: a step, such as a cache that fills once, is no growth.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.processes.harness import TINY, Consortium, consortium, eventually, programs

WARM = 5
"""Rounds that are not judged: what is loaded once is loaded by then."""
LIMIT = 0.001
"""Growth of memory per round, as a share of it, that is still flat: one per cent in ten rounds."""
MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds: bytes of memory (its own; with its share of what others use too; with all of that), open
    files, threads."""

    own: int
    pss: int
    rss: int
    files: int
    threads: int


def sample(pid: int) -> Sample:
    """Look at a process."""
    place = Path(f"/proc/{pid}")
    lines = (line.split() for line in (place / "smaps_rollup").read_text().splitlines()[1:])
    memory = {words[0]: int(words[1]) * 1024 for words in lines}
    return Sample(
        memory["Anonymous:"],
        memory["Pss:"],
        memory["Rss:"],
        len(list((place / "fd").iterdir())),
        len(list((place / "task").iterdir())),
    )


def slope(series: Sequence[float]) -> float:
    """The growth per round, by least squares."""
    return statistics.linear_regression(range(len(series)), series).slope


def grows(series: Sequence[float], limit: float) -> bool:
    """Whether a series rises by more than ``limit`` a round, from each third to the next."""
    third = len(series) // 3
    if third == 0:
        return False
    first, second, last = (statistics.median(series[start : start + third]) for start in (0, third, 2 * third))
    return min(second - first, last - second) > limit * third


def verdict(samples: Sequence[Sample]) -> str:
    """``flat``, or what of a process grows; the first rounds are not judged."""
    judged = samples[WARM:]
    memory = [one.own for one in judged]
    growing = [
        name
        for name, series, limit in (
            ("memory", memory, LIMIT * statistics.mean(memory)),
            ("files", [one.files for one in judged], 0.0),
            ("threads", [one.threads for one in judged], 0.0),
        )
        if grows(series, limit)
    ]
    return f"growing: {', '.join(growing)}" if growing else "flat"


def processes(running: Consortium) -> dict[str, int]:
    """The process of each role, while a training runs."""
    parties = {name: process.pid for name, process in running.home.processes.items()}
    found = {"server": parties.pop("server"), "coordinator's worker": parties.pop("coordinator")}
    found["training"] = programs(found["coordinator's worker"])[-1]
    for site, worker in parties.items():
        found[f"worker of {site}"] = worker
        found[f"participation of {site}"] = programs(worker)[-1]
    return found


def size(*files: Path) -> int:
    """The bytes of files and of what is in folders."""
    inside = [one for file in files for one in (file.rglob("*") if file.is_dir() else [file])]
    return sum(one.stat().st_size for one in inside if one.is_file())


def soak(running: Consortium, rounds: int, task: str = TINY) -> dict[str, Any]:
    """Run one training, and look at all processes after each of its rounds."""
    patience_s = 300 + 10 * len(running.home.sites)
    for site in running.home.sites:
        eventually(lambda site=site: running.online(site), patience_s)
    run = running.submit(running.plan(task=task, rounds=rounds + 1, name="soak"))
    samples: dict[str, list[Sample]] = {}
    sizes: dict[str, list[int]] = {"database": [], "exchange": []}
    for number in range(1, rounds + 1):
        eventually(lambda number=number: done(running, run) >= number, patience_s, 0.05)
        for role, pid in processes(running).items():
            samples.setdefault(role, []).append(sample(pid))
        server = running.home.folder / "server"
        sizes["database"].append(size(*server.glob("prefect.db*")))
        sizes["exchange"].append(size(running.home.folder / "exchange"))
    running.finished(run, 300)
    return {
        "sites": len(running.home.sites),
        "rounds": rounds,
        "verdicts": {role: verdict(series) for role, series in samples.items()},
        "samples": {role: [asdict(one) for one in series] for role, series in samples.items()},
        "sizes": sizes,
    }


def done(running: Consortium, run: UUID) -> int:
    """How many rounds of a training are finished."""
    if not running.sums(run):
        return 0
    return sum(one["purpose"] == "training" for one in running.progress(run)["records"])


def table(found: dict[str, Any]) -> str:
    """The figures for people: after round 5, in the middle and at the end, and the slope."""
    rounds = found["rounds"]
    at = [min(WARM, rounds) - 1, rounds // 2 - 1, rounds - 1]
    lines = [f"after round {', '.join(str(one + 1) for one in at)}; slopes are per round from round {WARM + 1} on"]
    for role, series in found["samples"].items():
        memory = [one["own"] / MB for one in series]
        figures = " ".join(f"{memory[one]:7.1f}" for one in at)
        held = "; ".join(f"{name} " + "/".join(str(series[one][name]) for one in at) for name in ("files", "threads"))
        shared = ", ".join(f"{name} {series[-1][name] / MB:.0f}" for name in ("pss", "rss"))
        growth = f"{slope(memory[WARM:]):+.3f}"
        lines.append(f"{role:32} {figures} MB, {growth} MB; {held}; {shared} MB: {found['verdicts'][role]}")
    lines += [
        f"{name:32} {' '.join(f'{series[one] / MB:7.2f}' for one in at)} MB, {slope(series[WARM:]) / MB:+.3f} MB"
        for name, series in found["sizes"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, consortium(Path(folder), options.sites) as running:
        found = soak(running, options.rounds)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
