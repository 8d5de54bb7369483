"""The program of a training, which the coordinator's worker alone starts.

The training is named after its plan and its flow run, so that a retry of the run finds the checkpoint and goes on.
"""

import logging
import threading
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.engine import handle_engine_signals
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Failed

from deploy.entries import end_interrupted
from deploy.reporting import way_out
from deploy.run import Failure, begun_plan, check_plan, said_alone, save_model, write_receipt, write_report
from deploy.show import metric_notes, plot_metrics
from flows.authors import fitting_template
from flows.checkpoint import Checkpoint, CheckpointError
from flows.code_digest import with_code
from flows.engine import patient, patient_engine
from flows.federated_training import run_training
from flows.logs import keep_log
from flows.plan import Plan, PlanError
from flows.privacy import cautions
from flows.published import PLAN_NAME, plan_of
from flows.remote import RemoteSites
from flows.report import Report, RoundRecord, metric_text, notes
from flows.session import Session, opened, shown
from flows.settings import TRAINING, CoordinatorFolder, SettingsError
from flows.tables import first_model
from protocols.errors import ProtocolError
from protocols.files import claim

SHOWN = ("loss", "accuracy", "auroc", "auprc")

_live: list[tuple[Session, RemoteSites, Path]] = []


@flow(name=TRAINING, persist_result=False)
def scheduled_training(plan: Plan) -> State[Any]:
    """Train a model across sites that keep their data: fill in the plan, and every site decides whether it takes part.

    The rounds appear below as runs of their own; the graph of each is the protocol.
    """
    ((live, sites, folder),) = _live
    for caution in cautions(plan, live.checkpoint.model.vector.size):
        get_run_logger().warning("%s", caution)
    try:
        with opened(live), closing(sites):  # no message is left when the run is said to have ended
            report = run_training(live.training, plan)
    except (ProtocolError, CheckpointError, OSError) as error:
        out = way_out(live.checkpoint, folder)
        if sites.cancelled:
            return Cancelled(message=f"The training was cancelled{out}.")
        return Failed(message=f"{error}{out}")
    save_model(folder / report.model, live.task, live.checkpoint.model)
    write_receipt(folder / report.receipt, live)
    write_report(folder, report, {}, None)
    with said_alone(f"no plot ({folder} has the rest)", plan.task, get_run_logger().warning):
        plot_metrics(folder / "metrics.png", report)
    create_markdown_artifact(results(report), key="training", description=f"What {live.training} has come to")
    return Completed(message=f"Finished; model and report are in {folder} at the coordinator.")


def results(report: Report) -> str:
    """The rounds and the final metrics as a table: sums over the sites, public to the coordinator and its server."""
    records = report.records
    known = [name for name in SHOWN if any(name in record.metrics for record in records)]
    rows = [
        f"| {record.purpose} {record.round}.{record.attempt} | {', '.join(record.survivors)} | "
        f"{'; '.join(f'{site}: {in_markdown(why)}' for site, why in sorted(record.dropped.items())) or '-'} | "
        + " | ".join([*(metric_text(record, name, 4) for name in known), epsilon_text(record)])
        + " |"
        for record in records
    ]
    head = ["| sum | sites | without | " + " | ".join([*known, "epsilon"]) + " |", "|---" * (4 + len(known)) + "|"]
    odd = [line for record in records for line in odd_lines(record)]
    return "\n".join([f"Plan `{report.plan_digest}`", "", *head, *rows, "", *odd, *metric_notes(report.final)])


def epsilon_text(record: RoundRecord) -> str:
    """Epsilon so far; a dash without privacy."""
    return "-" if record.epsilon is None else f"{record.epsilon:.4g}"


def odd_lines(record: RoundRecord) -> list[str]:
    """What is odd about a sum's numbers, as a list in Markdown."""
    return [f"- {record.purpose} {record.round}.{record.attempt}: {in_markdown(note)}" for note in notes(record)]


def in_markdown(text: str) -> str:
    """What another party has written, as a code span: no link, image, HTML or cell of a table comes of it."""
    return f"`{shown(text) or '-'}`"


def tell(plan: Plan, record: RoundRecord) -> None:
    """Log a finished sum, and keep the epsilon so far as an artifact, for those who watch the run in the UI."""
    figures = ", ".join(f"{name} {metric_text(record, name, 4)}" for name in SHOWN if name in record.metrics)
    without = "".join(f"; without {site}: {why}" for site, why in sorted(record.dropped.items()))
    odd = "".join(f"; {note}" for note in notes(record))
    get_run_logger().info(
        "%s %d.%d over %d sites in %.1f s: %s%s%s",
        record.purpose,
        record.round,
        record.attempt,
        len(record.survivors),
        record.total_s,
        figures or "done",
        without,
        odd,
    )
    if odd:
        create_markdown_artifact("\n".join(odd_lines(record)), key="notes", description="What is odd about the numbers")
    if record.epsilon is not None:
        create_markdown_artifact(spent(plan, record), key="privacy", description="Epsilon so far")


def tell_trouble(line: str) -> None:
    """Log what holds a training up, for the coordinator and for those who watch the run in the UI."""
    logging.getLogger("fedseal.coordinator").warning(line)
    get_run_logger().warning(line)


def spent(plan: Plan, record: RoundRecord) -> str:
    """What the sums so far have cost in privacy, and what the plan allows."""
    rules = plan.privacy
    return (
        f"Epsilon **{record.epsilon:.4g}** of {rules.epsilon:g}, at delta {rules.delta:g} for adding or removing one "
        f"{rules.unit}, after {record.purpose} {record.round}.{record.attempt}."
    )


def ready(folder: Path) -> None:
    """Nothing is to be loaded beside this module."""


def started() -> None:
    """Nothing was."""


def main(folder: Path, run_id: UUID) -> None:
    """Run a training, or take it up again, with the folder's key, exchange and consortium."""
    with patient(get_client(sync_client=True)) as client:
        run = client.read_flow_run(run_id)
        try:
            settings = CoordinatorFolder.read(folder)
            keep_log("fedseal", folder / "coordinator.log")
            plan = asked_plan(settings, run.parameters, run_id)
            live, sites, place = prepare(settings, plan, client, run_id)
        except (SettingsError, PlanError, Failure, CheckpointError, OSError) as error:
            client.set_flow_run_state(run_id, Failed(message=str(error)), force=True)
            return
        client.update_flow_run(run_id, name=live.training)
        end_interrupted(client, run_id)
        _live[:] = [(live, sites, place)]
        logging.getLogger("prefect.flow_runs").setLevel(logging.INFO)
        with (
            closing(live.checkpoint),
            closing(live.vault),
            closing(sites),
            patient_engine(),
            handle_engine_signals(run_id),
        ):
            run_flow(scheduled_training, flow_run=run, parameters={"plan": live.plan}, return_type="state")


def asked_plan(settings: CoordinatorFolder, parameters: Mapping[str, object], run_id: UUID) -> Plan:
    """The plan that a run asks for; of a published one that has begun, what it began with: it may be another by now.

    Raises:
        PlanError: there is none.
    """
    name = parameters.get("plan")
    folder = settings.runs / f"{name}-{run_id.hex[:12]}"
    if isinstance(name, str) and PLAN_NAME.fullmatch(name) and (folder / "plan.json").exists():
        if (begun := begun_plan(claimed(folder, run_id))) is None:
            raise PlanError(f"{folder}: its plan.json does not read: start a new training")
        return begun
    return plan_of(parameters, settings.published)


def prepare(
    settings: CoordinatorFolder, plan: Plan, client: SyncPrefectClient, run_id: UUID
) -> tuple[Session, RemoteSites, Path]:
    """Check plan, task, rings and keys, and open the training's session and folder.

    Raises:
        SettingsError, PlanError, Failure, CheckpointError, OSError: one line each.
    """
    settings.check_known(plan.task, plan.sites)
    consortium = settings.consortium
    training = f"{plan.name}-{run_id.hex[:12]}"
    plan, task, vector = check_plan(lambda: planned_code(plan, settings.runs / training))
    template = fitting_template(plan, settings.templates, consortium.authors)
    vault = settings.open_vault()
    settings.check_identity(vault.identity, consortium)
    folder = claimed(settings.runs / training, run_id)
    if not claim(folder / "plan.json", plan.to_json().encode()):
        raise PlanError(f"{folder}: this training has another plan: start a new one")
    if (folder / "checkpoint" / "progress.json").exists():
        checkpoint = Checkpoint.resume(folder / "checkpoint", plan, parameters=vector.size, features=len(task.features))
    else:
        first = first_model(plan, task.features, vector)
        checkpoint = Checkpoint.create(folder / "checkpoint", training, plan, first)
    exchange, ending, paused = settings.open_exchange(), threading.Event(), threading.Event()
    sites = RemoteSites(client, training, run_id, consortium, exchange, ending, paused)
    live = Session(
        training,
        plan,
        task,
        vault,
        consortium,
        exchange,
        sites,
        checkpoint,
        partial(tell, plan),
        ending,
        template,
        settings.patience_s,
        tell_trouble,
        paused,
    )
    sites.returned = live.standings.forgive
    return live, sites, folder


def claimed(folder: Path, run_id: UUID) -> Path:
    """The run's folder, new or its own: whoever writes Prefect's database chooses the ids that its name is made of.

    Raises:
        SettingsError: it is another run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in folder.iterdir()]
    of_nobody = all(name.startswith("flow-run") for name in names)  # new, or a claim was cut off
    if (of_nobody or "flow-run" in names) and claim(folder / "flow-run", run_id.hex.encode()):
        return folder
    raise SettingsError(f"{folder}: is another flow run's: submit the plan again")


def planned_code(plan: Plan, folder: Path) -> Plan:
    """Name the code in a plan: that of the run that is taken up, or what is installed.

    Raises:
        PlanError: other code is installed than the plan names, or than the run began with, with both digests.
    """
    begun = begun_plan(folder)
    return with_code(plan if plan.code or begun is None else plan.model_copy(update={"code": begun.code}))
