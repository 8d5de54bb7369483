"""A training that was cut off goes on where it was, gives the same model, and never starts a confirmed round again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.checkpoint import Checkpoint, CheckpointError, Progress
from flows.collect import Unfinished
from flows.exchange import ExchangeAway
from flows.federated_training import federated_training
from flows.model import GlobalModel
from flows.plan import Plan
from flows.report import RoundRecord
from flows.session import Session, opened
from protocols.contexts import AttemptContext
from protocols.errors import BelowThreshold
from protocols.messages import Advert, Envelope, parse
from protocols.receipt import Evidence, chain_start
from tests.flows.consortium import always, at, plan_for, trial
from tests.flows.tasks import SITES


def uninterrupted(folder: Path, plan: Plan) -> np.ndarray:
    with trial(folder, plan) as run:
        assert [record.dropped for record in run.train().records if record.dropped] == []
        return run.live.checkpoint.model.vector


class Cut(BaseException):
    """What stands for the end of the process: nothing catches it."""


@pytest.mark.slow
def test_a_training_cut_off_between_rounds_goes_on_and_gives_the_same_model(tmp_path: Path) -> None:
    plan = plan_for("Bare", rounds=3)
    expected = uninterrupted(tmp_path / "whole", plan)

    def cut(record: RoundRecord) -> None:
        if record.round == 1:
            raise Cut

    with trial(tmp_path / "cut", plan, name="cut-trial") as run:
        run.live.observe = cut
        with pytest.raises(Cut):
            run.train()
    with trial(tmp_path / "cut", plan, name="cut-trial") as run:
        report = run.train()
        assert run.sites.asked["ann", "train"] == 2
        assert [(one.round, one.attempt) for one in report.rounds] == [(1, 1), (2, 1), (3, 1)]
        assert np.array_equal(run.live.checkpoint.model.vector, expected)


@pytest.mark.parametrize("step", [pytest.param("confirm", marks=pytest.mark.slow), "reveal"])
def test_a_round_that_was_held_is_finished_under_its_own_number(tmp_path: Path, step: str) -> None:
    """The process ends while too few sites answer; another finishes the round from what the first one kept."""
    plan = plan_for("Bare", rounds=2, deadlines={"step_s": 120, "train_s": 120, "finish_s": 0.1})
    expected = uninterrupted(tmp_path / "whole", plan)
    faults = {(site, step): at(range(1, 9), "late") for site in ("ann", "bob")}
    with trial(tmp_path / "cut", plan, faults) as run, pytest.raises(Unfinished):
        run.train()
    with trial(tmp_path / "cut", plan) as run:
        report = run.train()
        assert run.sites.asked["ann", "train"] == 0
        assert run.sites.asked["ann", "advertise"] == 1  # the evaluation's
    assert [(one.round, one.attempt, one.survivors) for one in report.rounds] == [(1, 1, SITES), (2, 1, SITES)]
    with trial(tmp_path / "cut", plan) as run:
        assert np.array_equal(run.live.checkpoint.model.vector, expected)


@pytest.mark.slow
def test_an_attempt_that_was_not_held_is_followed_by_a_higher_number(tmp_path: Path) -> None:
    plan = plan_for("Bare", rounds=1, max_attempts=2)
    faults = {(site, "mask"): always("lost") for site in ("ann", "bob")}
    with trial(tmp_path, plan, faults) as run, pytest.raises(BelowThreshold):
        run.train()
    with trial(tmp_path, plan) as run:
        report = run.train()
    assert [(one.round, one.attempt) for one in report.rounds] == [(1, 3)]


@pytest.mark.slow
def test_a_retry_of_the_flow_run_goes_on_after_the_last_finished_round(tmp_path: Path) -> None:
    plan = plan_for("Bare", rounds=3, max_attempts=1)
    expected = uninterrupted(tmp_path / "whole", plan)
    faults = {(site, "mask"): at([2], "lost") for site in ("ann", "bob")}
    with trial(tmp_path / "retried", plan, faults, name="retried-trial") as run:
        with opened(run.live):
            report = federated_training.with_options(retries=1)(plan, run.live.training)
        assert np.array_equal(run.live.checkpoint.model.vector, expected)
        assert run.sites.asked["cat", "train"] == 4
    assert [(one.round, one.attempt) for one in report.rounds] == [(1, 1), (2, 1), (3, 2)]
    check_parameters("retried-trial", {("training", 1, 1), ("training", 2, 1), ("training", 3, 1), ("training", 3, 2)})


def check_parameters(training: str, expected: set[tuple[str, int, int]]) -> None:
    """Every round's run in Prefect has the parameters that its name says, and none was overwritten."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = [one for one in client.read_flow_runs(limit=200) if one.parameters.get("training") == training]
    rounds = [one for one in runs if "round" in one.parameters]
    for one in rounds:
        given = one.parameters
        purpose = "" if given["purpose"] == "training" else f"{given['purpose']} "
        assert one.name == f"{training} {purpose}{given['round']}.{given['attempt']}"
    found = [(one.parameters["purpose"], one.parameters["round"], one.parameters["attempt"]) for one in rounds]
    assert set(found) == expected | {("evaluation", 4, 1)}
    assert len(found) == len(set(found))


@pytest.mark.slow
def test_a_model_whose_deletion_was_cut_off_or_failed_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(live: Session, model: str) -> None:
        raise RuntimeError("killed")

    plan, shelves = plan_for("Bare", rounds=3), tmp_path / "exchange" / "@coordinator"
    with monkeypatch.context() as patch, trial(tmp_path, plan) as run:
        patch.setattr(Session, "discard", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run.train()
        assert run.live.checkpoint.rounds == 1
    assert [path for path in shelves.rglob("*") if path.is_file()]
    with trial(tmp_path, plan) as run:
        delete, failures = run.live.exchange.delete, [ExchangeAway("away")]

        def once_away(owner: str, digest: str) -> None:
            if owner.startswith("@") and run.live.checkpoint.rounds == 2 and failures:
                raise failures.pop()
            delete(owner, digest)

        monkeypatch.setattr(run.live.exchange, "delete", once_away)
        run.train()
    assert not failures
    assert not [path for path in shelves.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_no_mask_is_used_twice_over_cuts_and_attempts(tmp_path: Path) -> None:
    plan = plan_for("Bare", rounds=2, max_attempts=1)
    answers: list[Envelope] = []
    for counts in ([0], [1], [2], []):
        faults = {(site, "mask"): at(counts, "late") for site in ("ann", "bob")}
        try:
            with trial(tmp_path, plan, faults) as run:
                answers = run.sites.answers = [*answers]
                run.train()
        except BelowThreshold:
            continue
    for site in SITES:
        adverts = [one for one in answers if (one.sender, one.kind) == (site, "advert")]
        keys = {parse(Advert, one.body, party=site, step="advert").mask_key: one.context for one in adverts}
        assert len(keys) == len(set(keys.values())) == len({one.context for one in adverts}) >= 4
        masked = {(one.context, one.body) for one in answers if (one.sender, one.kind) == (site, "masked")}
        assert len({context for context, _ in masked}) == len(masked) >= 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "progress.json").write_text("{"), "cut short"),
        (lambda folder: (folder / "progress.json").unlink(), "missing"),
        (lambda folder: _cut(folder), "cut short"),
        (lambda folder: _replace_model(folder), "of another model"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    plan, folder = plan_for(), tmp_path / "checkpoint"
    Checkpoint.create(folder, "tiny", plan, GlobalModel(np.zeros(3, np.float32))).close()
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint.resume(folder, plan, parameters=3, features=2)
    assert "\n" not in str(caught.value)


def _cut(folder: Path) -> None:
    model = folder / json.loads((folder / "progress.json").read_text())["model"]
    model.write_bytes(model.read_bytes()[:-1])


def _replace_model(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    Checkpoint.create(folder, "tiny", plan_for(), GlobalModel(np.zeros(5, np.float32))).close()


def test_a_checkpoint_of_another_plan_or_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    first = Checkpoint.create(folder, "tiny", plan_for(), GlobalModel(np.zeros(3, np.float32)))
    with pytest.raises(CheckpointError, match="another process runs"):
        Checkpoint.resume(folder, plan_for(), parameters=3, features=2)
    first.close()
    with pytest.raises(CheckpointError, match="of another plan"):
        Checkpoint.resume(folder, plan_for(rounds=9), parameters=3, features=2)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoint.resume(tmp_path / "nowhere", plan_for(), parameters=3, features=2)


def record_of(round_: int, loss: float) -> RoundRecord:
    return RoundRecord("training", round_, 1, SITES, {}, {"loss": loss}, 0.0, 0.0, 0)


def commit(checkpoint: Checkpoint, plan: Plan, record: RoundRecord, model: GlobalModel) -> None:
    """Commit a sum whose evidence nobody will check."""
    digest = "0" * 64
    context = AttemptContext(
        record.purpose, "tiny", record.round, record.attempt, plan.digest, {}, 3, 1, checkpoint.progress.model, (), {}
    )
    checkpoint.commit(plan, record, model, Evidence(context, (), record.survivors, (), digest))


def test_the_training_stops_when_the_metric_has_not_improved_and_keeps_the_best_model(tmp_path: Path) -> None:
    plan = plan_for(stopping={"patience": 2, "keep": "best"}, rounds=9)
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, GlobalModel(np.full(3, 1, np.float32)))
    for round_, loss in enumerate((0.9, 0.5, 0.6, 0.5), 1):
        assert not checkpoint.progress.stopped
        commit(checkpoint, plan, record_of(round_, loss), GlobalModel(np.full(3, round_ + 1, np.float32)))
    assert checkpoint.progress.stopped
    assert checkpoint.progress.best is not None
    assert (checkpoint.progress.best.round, checkpoint.progress.best.value) == (2, 0.5)
    checkpoint.take_best()
    assert checkpoint.model.vector[0] == 2  # the incoming model of round 2
    checkpoint.close()


def test_losses_at_their_cap_stop_nothing_and_the_first_that_is_whole_is_the_best(tmp_path: Path) -> None:
    plan = plan_for(stopping={"patience": 2, "keep": "best"}, rounds=9)
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, GlobalModel(np.full(3, 1, np.float32)))
    for round_, loss in enumerate((16.0, 16.0, 16.0, 16.0, 0.7, 0.9, 16.0), 1):
        assert not checkpoint.progress.stopped
        capped = {"capped": 60.0, "loss_cap": 16.0} if loss == 16.0 else {}
        record = replace(record_of(round_, loss), metrics={"loss": loss} | capped)
        commit(checkpoint, plan, record, GlobalModel(np.full(3, round_ + 1, np.float32)))
    assert checkpoint.progress.stopped, "a loss beyond the cap is no improvement on one that is whole"
    assert checkpoint.progress.best is not None
    assert (checkpoint.progress.best.round, checkpoint.progress.best.value) == (5, 0.7)
    checkpoint.close()


@pytest.mark.slow
def test_a_training_that_stops_early_says_so_and_evaluates_its_best_model(tmp_path: Path) -> None:
    """So small a step changes the model and no prediction: the accuracy of round 1 is never improved on."""
    local = {"steps": 1, "batch_size": 99, "learning_rate": 1e-4}
    stopping = {"patience": 1, "keep": "best", "metric": "accuracy"}
    plan = plan_for("Bare", rounds=6, local=local, stopping=stopping, protection={"max_examples": 20})
    with trial(tmp_path, plan) as run:
        first = run.live.checkpoint.model.vector
        report = run.train()
        assert np.array_equal(run.live.checkpoint.model.vector, first)
    assert report.stopped
    assert report.best_round == 1
    assert [one.round for one in report.rounds] == [1, 2]


def test_patience_that_runs_out_in_the_last_round_is_no_early_stop(tmp_path: Path) -> None:
    plan = plan_for(stopping={"patience": 1}, rounds=2)
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, GlobalModel(np.full(3, 1, np.float32)))
    for round_, loss in enumerate((0.5, 0.5), 1):
        commit(checkpoint, plan, record_of(round_, loss), GlobalModel(np.full(3, round_ + 1, np.float32)))
    evaluation = replace(record_of(3, 0.9), purpose="evaluation")
    commit(checkpoint, plan, evaluation, checkpoint.model)
    assert not checkpoint.report(plan.privacy).stopped
    checkpoint.close()


def test_a_disk_that_is_full_leaves_model_and_records_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a retry in the same process would add a held round's update twice."""
    plan = plan_for()
    before = GlobalModel(np.zeros(3, np.float32))
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, before)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows.checkpoint.write_whole", full)
    with pytest.raises(OSError, match="No space"):
        commit(checkpoint, plan, record_of(1, 0.5), GlobalModel(np.ones(3, np.float32)))
    assert checkpoint.model is before
    assert checkpoint.progress.records == checkpoint.progress.receipt == ()
    checkpoint.close()


def test_an_entry_of_the_receipt_is_on_disk_before_the_progress_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the sum is finished again and has one entry all the same."""
    plan = plan_for("Bare", rounds=1)
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, GlobalModel(np.zeros(3, np.float32)))
    write = Checkpoint._write
    on_disk: list[int] = []

    def killed(self: Checkpoint, progress: Progress) -> None:
        on_disk.append(sum((tmp_path / digest).exists() for digest in progress.receipt))
        if len(on_disk) == 1:
            raise Cut
        write(self, progress)

    monkeypatch.setattr(Checkpoint, "_write", killed)
    with pytest.raises(Cut):
        commit(checkpoint, plan, record_of(1, 0.5), GlobalModel(np.ones(3, np.float32)))
    checkpoint.close()
    resumed = Checkpoint.resume(tmp_path, plan, parameters=3, features=0)
    commit(resumed, plan, record_of(1, 0.5), GlobalModel(np.ones(3, np.float32)))
    commit(resumed, plan, replace(record_of(2, 0.5), purpose="evaluation"), resumed.model)
    first, second = resumed.entries()
    assert on_disk == [1, 1, 2]
    assert first.previous == chain_start("tiny", plan.digest)
    assert second.previous == first.digest
    assert first.model == second.context.model
    resumed.close()


def test_a_checkpoint_whose_sums_have_no_entries_is_refused(tmp_path: Path) -> None:
    plan = plan_for("Bare")
    checkpoint = Checkpoint.create(tmp_path, "tiny", plan, GlobalModel(np.zeros(3, np.float32)))
    checkpoint._write(replace(checkpoint.progress, records=(record_of(1, 0.5),)))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="of another version"):
        Checkpoint.resume(tmp_path, plan, parameters=3, features=0)


def test_a_model_that_stops_changing_ends_the_training_early_and_is_evaluated(tmp_path: Path) -> None:
    """The sites would refuse another round from the same model."""
    plan = plan_for("Bare", rounds=5, local={"steps": 1, "batch_size": 99, "learning_rate": 1e-30})
    with trial(tmp_path, plan) as run:
        report = run.train()
    assert report.stopped
    assert [one.round for one in report.rounds] == [1]
    assert report.final.metrics["examples"] > 0


@pytest.mark.slow
def test_a_run_s_folder_may_have_spaces_and_letters_beyond_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "Müller's runs % 1"
    with trial(folder, plan_for("Bare", rounds=1)) as run:
        assert run.train().rounds[0].survivors == SITES
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
