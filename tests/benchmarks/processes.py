"""How long a round takes beside its training, with sites as processes: ``python -m tests.benchmarks.processes``.

One Prefect server, N site workers with their participations and a coordinator, all on this machine. The figure is the
wall time of a round's sub-flow run less its slowest ``train[s]``, as Prefect's API gives both: the median over the
rounds after the first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from prefect.client.schemas.objects import FlowRun, TaskRun

from tests.processes.harness import Consortium, consortium, eventually
from tests.processes.postgresql import postgresql


def seconds(run: FlowRun | TaskRun) -> float:
    """How long a run took."""
    if run.start_time is None or run.end_time is None:
        raise ValueError(f"{run.name} has not ended")
    return (run.end_time - run.start_time).total_seconds()


def step_seconds(tasks: list[TaskRun]) -> dict[str, float]:
    """The wall time of each step: from its first site's begin to its last one's end."""
    steps = defaultdict(list)
    for one in tasks:
        steps[one.name.partition("[")[0]].append(one)
    return {
        name: max(one.end_time.timestamp() for one in runs) - min(one.start_time.timestamp() for one in runs)
        for name, runs in steps.items()
    }


def measure(running: Consortium, rounds: int) -> dict[str, object]:
    """Run one training and take its times from the API."""
    for site in running.home.sites:
        eventually(lambda site=site: running.online(site), 120)
    plan = running.plan(rounds=rounds, name="overhead")
    began = time.time()
    run = running.submit(plan)
    running.finished(run, 300 + 10 * rounds * len(plan.sites))
    training = [one for one in running.rounds(run) if one.parameters["purpose"] == "training"]
    overheads, steps = [], defaultdict(list)
    for one in training[1:]:
        tasks = running.tasks(one.id)
        overheads.append(seconds(one) - max(seconds(task) for task in tasks if task.name.startswith("train[")))
        for name, took in step_seconds(tasks).items():
            steps[name].append(took)
    return {
        "round_overhead_s": statistics.median(overheads),
        "round_overheads_s": overheads,
        "steps": {name: statistics.median(took) for name, took in steps.items()},
        "start_s": training[0].start_time.timestamp() - began,
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--server", choices=["sqlite", "postgresql"], default="sqlite", help="its database")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(postgresql()) if options.server == "postgresql" else None
        found = measure(stack.enter_context(consortium(folder, options.sites, database=database)), options.rounds)
    found["server"] = options.server
    found["sites"] = options.sites
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
