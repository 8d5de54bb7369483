"""Trainings to which everything happens that can: ``python -m tests.chaos.run --seeds 30 [--first SEED]``.

Each training has ten rounds; in a random order and at random moments each fault of ``tests.chaos.faults`` is done to
it. It must end, with the model of a replay in plain arithmetic, and with no mask used twice. A seed decides who and
when, as far as processes let it: to run it again is to try the same again, not to see the same again.
"""

import argparse
import os
import random
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.verify import plan_of, terms_of
from ml_tasks.training import initial_vector
from protocols.audit import check_receipt
from protocols.consortium import read_consortium
from protocols.receipt import parse_receipt
from tests.chaos.faults import FAULTS, Fault, Stage
from tests.chaos.replay import replay
from tests.chaos.tasks import RECORD, Recorded
from tests.processes.harness import Consortium, assert_no_traceback, assert_one_vector_a_mask, consortium, eventually

SITES = ("north", "east", "south", "west")
SMALL_DISK = "west"
IN_PROCESS = dict.fromkeys(SITES, 'sandbox = "none"')
"""The task watches the process of its site (``tests.chaos.tasks``), which in the sandbox it could not."""
TASK = "tests.chaos.tasks:Recorded"
ROUNDS = 10
STEP_S = 8.0
DEADLINES = {"join_s": 90, "step_s": STEP_S, "train_s": STEP_S, "finish_s": 240}
LONGEST_S = 600.0
"""Seconds in which a training must have ended."""


@contextmanager
def founded(folder: Path) -> Iterator[Consortium]:
    """A consortium whose sites record what they mask."""
    os.environ[RECORD] = str(folder / "records")
    (folder / "records").mkdir()
    try:
        with consortium(folder / "home", SITES, tables=IN_PROCESS, tasks=(TASK,), small_disk=SMALL_DISK) as home:
            for site in SITES:
                eventually(lambda site=site: home.online(site), 120)
            yield home
    finally:
        del os.environ[RECORD]


def chaos(
    home: Consortium, records: Path, seed: int, faults: Sequence[Fault] = FAULTS, rounds: int = ROUNDS
) -> list[str]:
    """Run one training through faults, and check what it came to; returns what happened.

    Args:
        home: the consortium, of ``founded``.
        records: where its sites record what they mask.
        seed: decides who and when.
        faults: each of them happens once, in a random order.
        rounds: of the training, which leaves a killed site two of them to come back in.

    Raises:
        AssertionError: with the seed, and with what happened.
    """
    for log in home.home.folder.rglob("*.log"):  # of the seeds before
        os.truncate(log, 0)
    dice = random.Random(seed)
    fields = {"task": TASK, "rounds": rounds, "min_sites": 3, "seed": seed, "max_attempts": 20, "deadlines": DEADLINES}
    fields |= {"max_failed": len(SITES)}  # a site that is halted, or whose clock jumps, has its local work fail
    run = home.submit(home.plan(name=f"chaos-{seed}", **fields))
    stage = Stage(home, run, dice, records, SMALL_DISK, STEP_S)
    try:
        eventually(lambda: home.sums(run) >= 1, 120)
        for place, fault in enumerate(dice.sample(faults, len(faults))):
            due = 1 + place * rounds // len(faults)
            eventually(lambda due=due: stage.take_back() or home.sums(run) >= due, LONGEST_S)
            stage.wait(2.5)
            fault(stage)
        eventually(lambda: stage.take_back() or stage.away is None, LONGEST_S)
        report = home.finished(run, LONGEST_S)
        assert len(report["rounds"]) == rounds
        assert {site for one in report["rounds"] for site in one["survivors"]} == set(SITES), "a site was in no round"
        check(home, records, stage)
    except BaseException:
        print(f"seed {seed}:", *stage.told, sep="\n    ", file=sys.stderr)
        raise
    finally:
        stage.take_back(now=True)
    return stage.told


def check(home: Consortium, records: Path, stage: Stage) -> None:
    """The model is the replay's, the receipt verifies, no mask was used twice, and who ended has said why."""
    folder = home.runs(stage.run)
    receipt = parse_receipt((folder / "receipt.json").read_bytes())
    consortium = read_consortium(home.home.coordinator / "consortium.toml")
    check_receipt(receipt, consortium, terms_of(plan_of(receipt), receipt))
    task = Recorded()
    model = replay(receipt, records, task, initial_vector(task, plan_of(receipt).seed))
    assert home.progress(stage.run)["model"] == model
    assert_one_vector_a_mask(home, stage.run)
    for context in records.glob("*/*"):
        assert len(list(context.iterdir())) == 1, f"{context.parent.name} has masked two vectors in one context"
    home.settled(stage.run)
    for site in SITES:
        for one in home.participations(stage.run, site):
            assert one.state is not None and one.state.message, f"{one.name} has ended and does not say why"
    for name, process in home.home.processes.items():
        assert process.poll() is None, f"{name} has ended"
    for log in home.home.folder.rglob("processes.log"):  # Prefect's loggers have no manners without a server
        os.truncate(log, 0)
    assert_no_traceback(home)


def main() -> None:
    """Run many seeds, and tell of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first", type=int, default=secrets.randbelow(10**6))
    asked = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder, founded(Path(folder)) as home:
        for seed in range(asked.first, asked.first + asked.seeds):
            began = time.monotonic()
            try:
                told = chaos(home, Path(folder) / "records", seed)
                print(f"seed {seed}: {time.monotonic() - began:.0f} s: " + "; ".join(told), flush=True)
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: FAILED: {error}", flush=True)
                traceback.print_exc()
    print(f"{asked.seeds - len(failed)} of {asked.seeds} seeds passed" + (f"; failed: {failed}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
