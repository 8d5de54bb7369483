"""``fedseal export``: the last model of a training that has not finished, out of its checkpoint (SPEC 6.6).

Whatever ends a training, what its finished rounds have come to is not lost with it. The model has no receipt: that is
of a whole training.
"""

from pathlib import Path

from deploy.run import REFUSED, Failure, begun_plan, first_vector, import_task, save_model
from flows.checkpoint import Checkpoint, CheckpointError
from flows.plan import PlanError

MODEL = "last-model.safetensors"
"""The file in the run's folder, where no other is named."""


def export(folder: Path, to: Path | None) -> str:
    """Write the last model of a run that no process works on; says in one line what it is.

    Args:
        folder: the run's, in local mode or at the coordinator.
        to: the file to write; by default ``last-model.safetensors`` in the folder.

    Raises:
        Failure: with exit code 2: it is no run's folder, no round has finished, or another process runs the training.
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
        if not (done := checkpoint.rounds):
            raise Failure(f"{folder}: no round of this training has finished: there is no model yet", REFUSED)
        path = to or folder / MODEL
        save_model(path, task, checkpoint.model)
    finally:
        checkpoint.close()
    return f"{path}: the model after {done} of {plan.rounds} rounds; a training that has not finished has no receipt"
