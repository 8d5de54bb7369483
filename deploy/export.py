"""What is taken out of a run's folder later: an unfinished training's model, a finished one's report (SPEC 6.6).

Whatever ends a training, what its finished rounds have come to is not lost with it; the model has no receipt: that is
of a whole training. And what is made beside a finished training, report, baselines and plot, can be made again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.run import (
    REFUSED,
    TERMINAL,
    Failure,
    Options,
    begun_plan,
    check_paths,
    first_vector,
    go_on,
    import_task,
    save_model,
    tell,
)
from deploy.show import Screen
from flows.checkpoint import Checkpoint, CheckpointError
from flows.plan import Plan, PlanError
from ml_tasks.task import Task

MODEL = "last-model.safetensors"
"""The file in the run's folder, where no other is named."""


def export(folder: Path, to: Path | None) -> str:
    """Write the last model of a run that no process works on; says in one line what it is.

    Args:
        folder: the run's, in local mode or at the coordinator.
        to: the file to write; by default ``last-model.safetensors`` in the folder.

    Raises:
        Failure: with exit code 2: as ``taken_up``, or no round has finished.
    """
    with taken_up(folder) as (plan, task, checkpoint):
        if not (done := checkpoint.rounds):
            raise Failure(f"{folder}: no round of this training has finished: there is no model yet", REFUSED)
        path = to or folder / MODEL
        save_model(path, task, checkpoint.model)
    return f"{path}: the model after {done} of {plan.rounds} rounds; a training that has not finished has no receipt"


def report(folder: Path, options: Options) -> None:
    """Write and show the report of a finished run again, with its plot; in local mode with baselines, if asked for.

    Raises:
        Failure, Unfit: with exit code 2: as ``taken_up``, or it has not finished, or a path is of no use.
    """
    with taken_up(folder) as (plan, task, checkpoint):
        local = (folder / "sites").is_dir()
        if checkpoint.record("evaluation", plan.rounds + 1) is None:
            how = (
                f"go on with: {go_on(folder, options)}"
                if local
                else f"fedseal export {folder} takes its last model out"
            )
            raise Failure(f"{folder}: this training has not finished: {how}", REFUSED)
        options = replace(options, baselines=options.baselines and local)
        if options.baselines or options.json:
            check_paths(task, options)
        screen = Screen(plan, task, folder, options.json == TERMINAL)
        tell(folder, plan, task, checkpoint.report(plan.privacy), options, screen)


@contextmanager
def taken_up(folder: Path) -> Iterator[tuple[Plan, Task, Checkpoint]]:
    """A run's plan, task and checkpoint.

    Raises:
        Failure: with exit code 2: it is no run's folder, its task is not there, or another process runs the training.
    """
    if (plan := begun_plan(folder)) is None:
        raise Failure(f"{folder}: holds no run's plan: name the folder of a run", REFUSED)
    try:
        task = import_task(plan)
        size = first_vector(task, plan).size
        checkpoint = Checkpoint.resume(folder / "checkpoint", plan, parameters=size, features=len(task.features))
    except (PlanError, CheckpointError) as error:
        raise Failure(str(error), REFUSED) from None
    try:
        yield plan, task, checkpoint
    finally:
        checkpoint.close()
