"""``fedseal run``: one training in local mode, from a plan to a report (SPEC 6.4)."""

import json
import math
import secrets
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stdout, suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import tags
from pydantic import ValidationError
from safetensors.torch import load, save

from deploy import EXAMPLE, home, machine
from deploy.ending import if_ended
from deploy.reporting import prefect_server, settle, tell_interrupted, way_out
from deploy.show import Screen, plot_metrics
from flows.checkpoint import Checkpoint, CheckpointError
from flows.code_digest import CodeRule, check_same_code, with_code, without_code
from flows.collect import Unfinished, by_reason
from flows.engine import patient_engine
from flows.federated_training import federated_training
from flows.local import open_consortium, prefer
from flows.local_work import InProcess
from flows.model import GlobalModel
from flows.plan import Plan, PlanError, read_plan
from flows.policy import MOST_PARAMETERS, load_task
from flows.privacy import MANY_EXAMPLES, cautions, check_privacy, drowned, fewest_examples
from flows.report import Report
from flows.sandbox.parent import Rules
from flows.sandbox.sandboxed import SandboxedWorkshops
from flows.session import Session, opened
from flows.settings import SettingsError
from flows.tables import first_model, tables_of
from flows.task_errors import in_full
from flows.workshop import Checked, WorkFailed, Workshops
from ml_tasks.averaging import vector_parts
from ml_tasks.baselines import baseline, pool
from ml_tasks.independence import check_stands_alone
from ml_tasks.layout import Sizes
from ml_tasks.task import DataError, Task
from ml_tasks.training import LocalTraining, describe, initial_vector
from protocols.consortium import write_consortium
from protocols.encoding import check_headroom
from protocols.errors import (
    BadInput,
    BelowThreshold,
    ProtocolError,
    Refused,
    RingTooSmall,
    TooManyFailed,
    TooMuchClamped,
)
from protocols.files import write_whole
from protocols.receipt import Tensor, sign_receipt

FAILED, REFUSED = 1, 2
TERMINAL = Path("-")
SQLITE = b"SQLite format 3\0"
"""How a database of SQLite begins."""

Result = TypeVar("Result")


class Failure(Exception):
    """A run that did not succeed: one line and an exit code."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the plan.

    Attributes:
        data: folder with the plan's data set.
        json: where to write the report.
        baselines: whether to train each site alone and all pooled as well.
        accept_code: whether a run may be resumed with other code than its plan names.
        sandbox: whether the sites' local work is done in locked children, as at a site of its own.
    """

    data: Path | None
    json: Path | None
    baselines: bool
    accept_code: bool = False
    sandbox: bool = False


def start(path: Path | None, overrides: tuple[str, ...], options: Options) -> None:
    """Start the training of a plan in a new folder.

    Raises:
        Failure, Unfit: whatever went wrong, as one line and an exit code; bad input leaves no folder.
    """
    plan, task, vector = prepare(lambda: with_code(read_plan(path or EXAMPLE, overrides)), options)
    with prefect_server() as answers:
        workshops = check_data(plan, options)
        answers()
        begin(plan, task, vector, options, workshops)


def begin(plan: Plan, task: Task, vector: NDArray[np.float32], options: Options, workshops: Workshops) -> None:
    """Make a run's folder, and train.

    Raises:
        Failure: as ``start``.
    """
    training = f"{plan.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = runs_folder() / training
    folder.mkdir(parents=True)
    write_whole(folder / "plan.json", plan.to_json().encode())
    checkpoint = Checkpoint.create(folder / "checkpoint", training, plan, first_model(plan, task.features, vector))
    try:
        train(folder, plan, task, checkpoint, options, workshops)
    except Failure as failure:
        if isinstance(failure.__context__, BadInput) and checkpoint.record("training", 1) is None:
            shutil.rmtree(folder)
        raise


def resume(folder: Path, path: Path | None, overrides: tuple[str, ...], options: Options) -> None:
    """Take up a training that was cut off, in its folder; the plan may be given once more, and must be the same.

    Raises:
        Failure: as ``start``; the folder stays as it is.
    """
    check_whole(folder)

    def stored() -> Plan:
        if (plan := begun_plan(folder)) is None:
            raise PlanError(f"{folder}: holds no run's plan: name the folder of a run")
        if not options.accept_code:
            check_resumed_code(plan)
        return plan

    plan, task, vector = prepare(stored, options)
    if overrides or (path is not None and without_code(check_plan(lambda: read_plan(path))[0]) != without_code(plan)):
        raise Failure(f"{folder}: the run has its own plan: resume it without naming or changing one", REFUSED)
    try:
        checkpoint = Checkpoint.resume(folder / "checkpoint", plan, parameters=vector.size, features=len(task.features))
    except CheckpointError as error:
        raise Failure(str(error), REFUSED) from None
    if checkpoint.record("evaluation", plan.rounds + 1) is not None and (folder / "receipt.json").exists():
        checkpoint.close()
        print(f"This training is finished: model, report and receipt are in {folder}", file=sys.stderr)
        return
    with prefect_server() as answers:
        workshops = check_data(plan, options)
        answers()
        train(folder, plan, task, checkpoint, options, workshops)


def begun_plan(folder: Path) -> Plan | None:
    """The plan that the training in a folder has begun with; ``None`` where none reads."""
    try:
        return Plan.model_validate_json((folder / "plan.json").read_bytes())
    except (OSError, ValidationError):
        return None


def check_whole(folder: Path) -> None:
    """See that no party's vault is missing from a run: it would be made anew, in silence and with other keys.

    Raises:
        Failure: with exit code 2: a party's vault is not there, and another's is.
    """
    try:
        sites = json.loads((folder / "plan.json").read_bytes())["sites"]
    except (OSError, ValueError, KeyError):
        return  # no run, or none of ours: said by who reads its plan
    vaults = [folder / "coordinator", *(folder / "sites" / site for site in sites)]
    missing = [vault for vault in vaults if not (vault / "vault.sqlite").exists()]
    if missing and len(missing) < len(vaults):
        raise Failure(f"{missing[0]}: its vault is not there: put it back; with new keys it would be another", REFUSED)
    for vault in vaults:
        if vault not in missing:
            with (vault / "vault.sqlite").open("rb") as file:
                head = file.read(len(SQLITE))
            if head not in (b"", SQLITE):
                raise Failure(f"{vault}: its vault.sqlite is no vault: put it back", REFUSED)


def check_resumed_code(plan: Plan) -> None:
    """See that the code is the one that the run began with.

    Raises:
        PlanError: it is not, with both digests.
    """
    try:
        check_same_code(plan)
    except PlanError as error:
        raise PlanError(f"{error}; or go on with this code, and --accept-code") from None


def prepare(read: Callable[[], Plan], options: Options) -> tuple[Plan, Task, NDArray[np.float32]]:
    """Check everything that can be checked before anything runs; gives plan, task and the model's first vector.

    Raises:
        Failure, Unfit: with exit code 2.
    """
    plan, task, vector = check_plan(read)
    check_paths(task, options)
    machine.check_files(len(plan.sites))
    for line in cautions(plan, vector.size):
        print_line(line)
    return plan, task, vector


@contextmanager
def printed_apart() -> Iterator[None]:
    """Have what a task prints go to standard error: standard output is the report's."""
    with redirect_stdout(sys.stderr):
        yield


@printed_apart()
def check_plan(read: Callable[[], Plan]) -> tuple[Plan, Task, NDArray[np.float32]]:
    """Check a plan, its task and its rings; with privacy for records, that a unit of it stands alone (SPEC 12.4).

    Raises:
        Failure: with exit code 2.
    """
    try:
        plan = read()
        task = import_task(plan)
        vector = first_vector(task, plan)
        check_saving(task, plan, vector)
        check_rings(plan, first_sizes(task, plan))
        if plan.privacy.unit == "record":
            check_stands_alone(task)
        check_privacy(plan, parameters=vector.size, features=len(task.features))
    except DataError as error:
        raise Failure(f"task {plan.task}: {error}", REFUSED) from None
    except (PlanError, RingTooSmall) as error:
        raise Failure(str(error), REFUSED) from None
    return plan, task, vector


def import_task(plan: Plan) -> Task:
    """The plan's task.

    Raises:
        PlanError: it does not import, with the line of it where that failed.
    """
    try:
        return load_task(plan.task)
    except PlanError as error:
        raise PlanError(in_full(error, plan.task)) from None


def first_vector(task: Task, plan: Plan) -> NDArray[np.float32]:
    """The model's first vector.

    Raises:
        PlanError: the task's own code fails, or its model has no parameters.
    """
    with making(plan):
        return initial_vector(task, plan.seed)


def first_sizes(task: Task, plan: Plan) -> Sizes:
    """How long the task's sums are.

    Raises:
        PlanError: the task's own code fails, or what it says of itself cannot be.
    """
    with making(plan):
        return describe(task).sizes


@contextmanager
def making(plan: Plan) -> Iterator[None]:
    """Make something of a plan's task.

    Raises:
        PlanError: the task's own code fails.
    """
    try:
        yield
    except Exception as error:  # a user's module may fail in any way
        why = in_full(error, plan.task)
        raise PlanError(f"task {plan.task}: its model cannot be made: {why}: mend it") from None


def check_saving(task: Task, plan: Plan, vector: NDArray[np.float32]) -> None:
    """Save the first model and load it again, so that what would break the end is found before the first round.

    Raises:
        PlanError: the model cannot be saved, or not loaded from what was saved.
    """
    try:
        task.model().load_state_dict(load(model_file(task, GlobalModel(vector))))
    except Exception as error:  # a user's module may fail in any way
        why = in_full(error, plan.task)
        raise PlanError(f"task {plan.task}: its model cannot be saved and loaded: {why}: mend it") from None


@printed_apart()
def check_data(plan: Plan, options: Options) -> Workshops:
    """Read every site's data and try the task on them; returns the workshops, which have the data now.

    Raises:
        Failure: with exit code 2: the first reason of each site whose data and task do not fit.
    """
    asked = without_code(plan) if options.accept_code else plan
    make: Workshops = InProcess
    if options.sandbox:
        make = SandboxedWorkshops(Rules(tasks=[plan.task], data={plan.data: options.data} if options.data else {}))
    made = {site: make(asked, site, options.data) for site in plan.sites}
    found = {}
    for site, workshop in made.items():
        try:
            check_size(workshop.describe(plan.deadlines.train_s).sizes.parameters)
            found[site] = workshop.check(plan.deadlines.train_s)
        except WorkFailed as error:  # what fails at one would at the others
            mend = "" if error.in_full == str(error) else ": mend the task"
            raise Failure(f"{site}: task {plan.task}: {error.in_full}{mend}", REFUSED) from None
    if wrong := {site: checked.wrong[0] for site, checked in found.items() if checked.wrong}:
        raise Failure(each_once(wrong), REFUSED)
    if not any(checked.examples["train"] for checked in found.values()):
        raise Failure("no site has an example to train on: mend the data, or what load makes of them", REFUSED)
    for line in (*empty_parts(found), *odd_parts(plan, found)):
        print_line(line)
    return prefer(plan, made, make)


def check_size(parameters: int) -> None:
    """See that the sites of local mode, whose policy is the default, take a model of this size.

    Raises:
        Failure: with exit code 2.
    """
    if parameters > MOST_PARAMETERS:
        raise Failure(
            f"the model has {parameters:,} parameters, and in local mode a site takes {MOST_PARAMETERS:,} at most, as "
            "max_parameters in [policy] of site.toml is by default: make it smaller, or train with sites that allow it",
            REFUSED,
        )


def each_once(reasons: Mapping[str, str]) -> str:
    """Each reason once, behind the sites that give it."""
    return "; ".join(by_reason(reasons.items()))


def empty_parts(found: Mapping[str, Checked]) -> list[str]:
    """Warn of sites that add nothing to a sum, and of metrics that will be of nothing."""
    lines = []
    for part, use, result in (("train", "train on", "model"), ("test", "be tested on", "final metrics")):
        empty = [site for site, checked in found.items() if not checked.examples[part]]
        if part == "test" and len(empty) == len(found):
            lines.append("no site has an example to be tested on: there will be no final metrics")
        elif empty:
            lines.append(f"{', '.join(empty)}: no examples to {use}: this adds nothing to the {result}")
    return lines


def odd_parts(plan: Plan, found: Mapping[str, Checked]) -> list[str]:
    """Warn of what can be trained with and is seldom meant, and of examples too few for the plan's bound on them."""
    lines = by_reason((site, line) for site, checked in found.items() for line in checked.odd)
    examples = sum(min(checked.examples["train"], plan.protection.max_examples) for checked in found.values())
    foretold = fewest_examples(plan) >= MANY_EXAMPLES  # of the plan alone
    if plan.privacy.unit == "none" and not foretold and examples < fewest_examples(plan):
        lines.append(drowned(plan, f"{examples:,}"))
    return lines


def train(folder: Path, plan: Plan, task: Task, checkpoint: Checkpoint, options: Options, workshops: Workshops) -> None:
    """Run a training to its end; report and save what it gives.

    Raises:
        Failure: as ``start``.
    """
    screen, training = Screen(plan, task, folder, options.json == TERMINAL), checkpoint.progress.training
    code: CodeRule = "any" if options.accept_code else "named"
    again = go_on(folder, options)
    try:
        consortium = open_consortium(folder, plan, options.data, workshops, code)
    except SettingsError as error:
        raise Failure(str(error), REFUSED) from None
    with closing(checkpoint), closing(consortium) as local:
        live = Session(
            training,
            plan,
            task,
            local.vault,
            local.consortium,
            local.exchange,
            local.sites,
            checkpoint,
            screen.finished,
        )
        try:
            with (
                opened(live),
                screen,
                patient_engine(0),
                printed_apart(),
                tags(training),
                if_ended(f"go on with: {again}", partial(tell_interrupted, training)),
            ):
                report = beside(partial(federated_training, plan, training))
        except (BelowThreshold, Unfinished) as error:
            raise Failure(f"{error}. Go on with: {again}", FAILED) from None
        except (BadInput, Refused, CheckpointError) as error:
            raise Failure(str(error), REFUSED) from None
        except TooManyFailed as error:
            failures = local.failures(training)
            why = each_once(failures) if failures else error.reason
            out = way_out(checkpoint, folder)
            raise Failure(f"{error.step}: {why}: mend it and start a new training{out}", FAILED) from None
        except TooMuchClamped as error:
            out = way_out(checkpoint, folder)
            raise Failure(f"{error.step}: {error.reason}, and start a new training{out}", FAILED) from None
        except ProtocolError as error:
            raise Failure(f"{error}: this training cannot go on{way_out(checkpoint, folder)}", FAILED) from None
        except (OSError, sqlite3.Error) as error:
            raise Failure(f"{error}: see to that, and go on with: {again}", FAILED) from None
    save_model(folder / report.model, task, checkpoint.model)
    write_receipt(folder / report.receipt, live)
    shutil.rmtree(folder / "exchange", ignore_errors=True)
    tell(folder, plan, task, report, options, screen)
    settle(training)


def tell(folder: Path, plan: Plan, task: Task, report: Report, options: Options, screen: Screen) -> None:
    """Write and show what a finished training has come to, with baselines and plot; what fails of it is one line."""
    write_report(folder, report, {}, None)
    compared: dict[str, dict[str, float]] = {}
    with said_alone(f"no baselines ({folder} has the rest)", plan.task):
        compared |= compare(plan, task, options.data) if options.baselines else {}
    write_report(folder, report, compared, options.json)
    with said_alone(f"no plot ({folder} has the rest)", plan.task):
        plot_metrics(folder / "metrics.png", report)
    screen.summary(report, compared)


def print_line(line: str) -> None:
    """Tell the operator something in one line, on standard error."""
    print(f"fedseal: {line}", file=sys.stderr)


@contextmanager
def said_alone(what: str, task: str, say: Callable[[str], object] = print_line) -> Iterator[None]:
    """Say in one line what has failed beside a training that is finished, and go on: it stays finished."""
    try:
        yield
    except Exception as error:  # a user's module may fail in any way
        say(f"{what}: {in_full(error, task)}")


def go_on(folder: Path, options: Options) -> str:
    """The command that takes a run up again."""
    data = ["--data", str(options.data)] if options.data else []
    return shlex.join(["fedseal", "run", "--resume", str(folder), *data])


def beside(do: Callable[[], Result]) -> Result:
    """Do something in another thread, in this one's context: this one hears signals at once, and Prefect takes none."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(copy_context().run, do).result()


def check_rings(plan: Plan, sizes: Sizes) -> None:
    """Prove the headroom of every sum before anything runs.

    Raises:
        RingTooSmall: with the numbers.
    """
    for table in tables_of(plan, sizes).values():
        for segment in table:
            try:
                check_headroom((segment,), len(plan.sites))
            except RingTooSmall as error:
                if not segment.name.startswith(("count.", "moments", "values.")):
                    raise
                numbers = error.reason.rpartition(": ")[0]  # the ring is not the plan's to choose
                raise RingTooSmall(error.party, error.step, f"{numbers}: lower protection.max_examples") from None


def check_paths(task: Task, options: Options) -> None:
    """Look at the paths that were given before anything runs.

    Raises:
        Failure, Unfit: with exit code 2.
    """
    data, json_path = options.data, options.json
    if task.needs_data and data is None:
        raise Failure(f"the task {task.title} needs its data: name the folder with --data DIR", REFUSED)
    if data is not None and not data.is_dir():
        raise Failure(f"--data {data}: there is no such folder", REFUSED)
    if json_path is not None and not is_stream(json_path):
        machine.check_file(json_path, "--json")


def runs_folder() -> Path:
    """``$FEDSEAL_HOME/runs``, by default ``~/.fedseal/runs``."""
    return home() / "runs"


@printed_apart()
def compare(plan: Plan, task: Task, data: Path | None) -> dict[str, dict[str, float]]:
    """Train each site alone and all pooled, and test on the pooled test data: only where all data are local."""
    parts = {site: task.load(data, site) for site in plan.sites}
    test = pool([part.test for part in parts.values()])
    settings = LocalTraining(**plan.local.model_dump())
    trains = {f"{site} alone": part.train for site, part in parts.items()}
    trains["pooled"] = pool([part.train for part in parts.values()])
    compared = {}
    for name, examples in trains.items():
        with suppress(FloatingPointError):  # one that diverges alone is left out
            compared[name] = baseline(task, examples, test, settings, plan.rounds, plan.seed)
    return compared


@printed_apart()
def save_model(path: Path, task: Task, model: GlobalModel) -> None:
    """Write the model's named tensors, the features' standardisation and an adaptive clip, as safetensors."""
    write_whole(path, model_file(task, model))


def model_file(task: Task, model: GlobalModel) -> bytes:
    """The bytes of ``save_model``: each entry of the vector under its own name, tied weights under both of theirs."""
    module = task.model()
    parts = vector_parts(module)
    entries = np.split(model.vector, np.cumsum([math.prod(shape) for _, shape in parts])[:-1])
    tensors = {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}
    for (name, shape), entry in zip(parts, entries, strict=True):
        tensors[name] = torch.tensor(entry).reshape(shape)
    if model.standardisation is not None:
        tensors["standardisation.mean"] = torch.from_numpy(model.standardisation.mean)
        tensors["standardisation.scale"] = torch.from_numpy(model.standardisation.scale)
    if model.clip is not None:
        tensors["privacy.clip"] = torch.from_numpy(model.clip)
    return save(tensors)


@printed_apart()
def write_receipt(path: Path, live: Session) -> None:
    """Sign a finished training's receipt and write it, with the consortium file that it is checked with (SPEC 11).

    Raises:
        Failure: if the checkpoint has lost an entry.
    """
    sites = {site: live.consortium.sites[site] for site in live.plan.sites}
    tensors = [Tensor(name, shape) for name, shape in vector_parts(live.task.model())]
    try:
        entries = live.checkpoint.entries()
    except CheckpointError as error:
        raise Failure(str(error), FAILED) from None
    receipt = sign_receipt(live.identity, live.training, live.plan.to_json(), sites, entries, tensors)
    write_consortium(path.with_name("consortium.toml"), live.consortium)
    write_whole(path, receipt.to_json().encode())


def write_report(folder: Path, report: Report, compared: dict[str, Any], json_path: Path | None) -> None:
    """Write the report into the run's folder, and where ``--json`` says; what fails there is only said."""
    text = json.dumps(report.to_json() | {"baselines": compared, "folder": str(folder)}, indent=2) + "\n"
    write_whole(folder / "report.json", text.encode())
    try:
        if json_path == TERMINAL:
            print(text, end="")
        elif json_path is not None and is_stream(json_path):
            json_path.write_text(text, encoding="utf-8")
        elif json_path is not None:
            write_whole(json_path, text.encode())
    except OSError as error:
        print_line(f"--json {json_path}: {error.strerror}: the report is in {folder}")


def is_stream(path: Path) -> bool:
    """Whether a path is no plain file's, which can be replaced, but the terminal's, a device's, a pipe's or a link."""
    return path == TERMINAL or path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir())
