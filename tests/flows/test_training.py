"""A training through Prefect: dropouts, attempts, finishing after a confirmation, bad input, what Prefect sees."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client

from flows.collect import Unfinished
from flows.report import notes
from ml_tasks.baselines import baseline, pool
from ml_tasks.training import LocalTraining
from protocols.encoding import decode, encode
from protocols.errors import BadInput, BelowThreshold, TooManyFailed, TooMuchClamped
from tests.flows.consortium import always, at, plan_for, trial
from tests.flows.server import graph_nodes
from tests.flows.tasks import LEAK, SITES


def test_protected_and_plain_training_give_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    models, finals = [], []
    for protection in ({"protocol": "secagg"}, {"protocol": "plain", "allow_insecure": True}):
        with trial(tmp_path / protection["protocol"], plan_for(protection=protection)) as run:
            report = run.train()
            assert [record.dropped for record in report.records if record.dropped] == []
            finals.append(report.final)
            models.append(run.live.checkpoint.model)
            lines = list(run.local.sites.sites["ann"].record.read())
        made = "confirmed" if protection["protocol"] == "secagg" else "unmasked"
        assert [line.fields["round"] for line in lines if line.event == made] == [0, 1, 2, 3]
        assert [line.event for line in lines[:2]] == ["asked", "joined"] and [line.event for line in lines].count(
            "finished"
        ) == 1
    assert np.array_equal(models[0].vector, models[1].vector)
    assert np.any(models[0].vector != 0)
    assert finals[0].metrics == finals[1].metrics


def test_the_sum_that_the_coordinator_opens_is_the_sum_of_the_sites_own_values(tmp_path: Path) -> None:
    """The update is recomputed from what each site kept for ``mask``, with plain integers, and averaged by hand."""
    kept: list[np.ndarray] = []
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        before = run.live.checkpoint.model.vector
        context = run.live.context("training", 1, 1)

        def keep(record: object) -> None:
            if not kept:
                for site in SITES:
                    local = run.local.sites.sites[site]
                    key = bytes.fromhex(_rounding_key(run.plan, site))
                    folder = local._work_folder(context.training, context.digest)
                    values = local._values(local._trainings[context.training], context.purpose, folder, "mask")
                    kept.append(encode(site, values, context.segments, key))

        run.live.observe = keep
        run.train()
        total = {name: sum(decode(vector, context.segments)[name] for vector in kept) for name in ("weight", "update")}
    expected = before + total["update"] / total["weight"]
    assert np.allclose(run.live.checkpoint.model.vector, expected, rtol=0, atol=1e-7)


def _rounding_key(plan: object, site: str) -> str:
    from flows.tables import rounding_key

    return rounding_key(plan, site, 1).hex()


@pytest.mark.slow
def test_below_the_threshold_a_new_attempt_is_made_with_fresh_keys(tmp_path: Path) -> None:
    faults = {("ann", "share"): at([1], "lost"), ("bob", "advertise"): at([1], "late")}
    with trial(tmp_path, plan_for("Bare"), faults) as run:
        report = run.train()
        asks = [r for r in run.sites.requests if r.kind == "ask/advertise" and r.receiver == "cat"]
    assert [(record.round, record.attempt) for record in report.rounds] == [(1, 1), (2, 2)]
    assert report.rounds[1].survivors == SITES
    contexts = [json.loads(ask.body)["context"] for ask in asks]
    assert [(c["round"], c["attempt"]) for c in contexts] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert len({ask.context for ask in asks}) == len(asks)


def test_after_max_attempts_the_training_fails_and_says_who_was_missing_and_why(tmp_path: Path) -> None:
    faults = {("ann", "mask"): always("lost"), ("dan", "mask"): always("late")}
    with trial(tmp_path, plan_for("Bare", max_attempts=2), faults) as run:
        with pytest.raises(BelowThreshold, match=r"2 sites, 3 are needed \(ann: not reached; dan: too late\)"):
            run.train()
        assert run.sites.asked["bob", "advertise"] == 2


@pytest.mark.parametrize("step", [pytest.param("confirm", marks=pytest.mark.slow), "reveal"])
def test_once_a_site_may_have_confirmed_the_round_is_finished_and_not_restarted(tmp_path: Path, step: str) -> None:
    """Two of four sites answer too late the first time; the threshold is three: the same round goes on with them."""
    faults = {(site, step): at([0], "late") for site in ("ann", "bob")}
    with trial(tmp_path, plan_for("Bare", rounds=1), faults) as run:
        report = run.train()
        assert run.sites.asked["ann", "advertise"] == 2  # one training round, one evaluation
        assert run.sites.asked["ann", step] == 3
    assert (report.rounds[0].attempt, report.rounds[0].survivors) == (1, SITES)


def test_a_confirmed_round_that_cannot_be_finished_fails_without_another_attempt(tmp_path: Path) -> None:
    faults = {(site, "reveal"): always("lost") for site in ("ann", "bob")}
    plan = plan_for("Bare", deadlines={"step_s": 120, "train_s": 120, "finish_s": 1})
    with trial(tmp_path, plan, faults) as run:
        with pytest.raises(Unfinished, match="ann, bob: not reached"):
            run.train()
        assert run.sites.asked["cat", "advertise"] == 1


@pytest.mark.slow
def test_a_site_that_hangs_is_dropped_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    released = threading.Event()
    plan = plan_for("Bare", rounds=1, deadlines={"step_s": 8, "train_s": 5, "finish_s": 20})
    with trial(tmp_path, plan) as run:
        slow = run.local.sites.sites["dan"]
        handle = slow._steps["ask/train"]
        slow._steps["ask/train"] = lambda request: released.wait(60) and handle(request)  # type: ignore[return-value]
        report = run.train()
        released.set()
    assert report.rounds[0].dropped == {"dan": "no answer within 13 s"}
    assert report.rounds[0].survivors == ("ann", "bob", "cat")
    assert report.final is not None
    assert report.final.survivors == SITES


@pytest.mark.slow
@pytest.mark.parametrize(("task", "site"), [("Diverging", "cat"), ("Broken", "bob")])
def test_work_that_fails_at_a_site_stops_the_training_after_the_sum_and_names_nobody(
    task: str, site: str, tmp_path: Path
) -> None:
    with trial(tmp_path, plan_for(task)) as run:
        with pytest.raises(TooManyFailed, match="the local work of 1 of 4 sites failed, the plan allows 0") as caught:
            run.train()
        assert site not in str(caught.value)
        (record,) = run.live.checkpoint.progress.records[-1:]
        assert (record.failed, record.survivors) == (1, SITES)
        assert set(run.local.failures(run.live.training)) == {site}


@pytest.mark.slow
def test_as_many_sites_may_fail_as_the_plan_allows_and_the_model_is_the_others(tmp_path: Path) -> None:
    with trial(tmp_path / "a", plan_for("Diverging", rounds=1, max_failed=1)) as run:
        report = run.train()
        with_failure = run.live.checkpoint.model.vector
    assert [record.failed for record in report.records] == [0, 1, 0]
    assert report.rounds[0].survivors == SITES
    assert np.isfinite(with_failure).all()
    assert report.rounds[0].metrics["examples"] > 0


@pytest.mark.slow
def test_a_value_of_1e30_fails_its_site_s_work_and_what_is_outside_of_its_bounds_is_counted(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Far", rounds=1, max_failed=1)) as run:
        report = run.train()
        failures = run.local.failures(run.live.training)
    assert report.statistics is not None and report.statistics.outside == {"second": 2}
    assert [record.failed for record in report.records] == [0, 1, 0]
    (reason,) = failures.values()
    assert "more than 1000 times the width of its declared bounds away, in feature second" in reason
    assert "1e+30" not in reason and "1e30" not in reason


@pytest.mark.slow
def test_a_training_whose_updates_are_clamped_stops_and_says_what_to_set(tmp_path: Path) -> None:
    fields = {"rounds": 2, "local": {"steps": 3, "learning_rate": 1e9}}
    with trial(tmp_path / "a", plan_for(**fields)) as run:
        with pytest.raises(TooMuchClamped) as caught:
            run.train()
        assert len(run.live.checkpoint.progress.records) == 2, "the statistics and the first round"
        assert run.live.checkpoint.progress.records[-1].clamped_shares == {"weight": 1.0, "bias": 1.0}
    for words in ("100% of weight", "100% of bias", "max_clamped", "local.learning_rate (1e+09)", "max_abs (8)"):
        assert words in str(caught.value)
    with trial(tmp_path / "a", plan_for(**fields)) as again:
        with pytest.raises(TooMuchClamped):
            again.train()
        assert len(again.live.checkpoint.progress.records) == 2, "resumed, it does not go on either"
    with trial(tmp_path / "b", plan_for(**fields, max_clamped=1)) as run:
        report = run.train()
    assert "clamped to their range: 100% of" in notes(report.rounds[0])[0]


@pytest.mark.slow
def test_running_statistics_of_raw_inputs_cost_no_auroc(tmp_path: Path) -> None:
    """Findings D1: AUROC .500 where every site alone had .84, with variances of 10^5 clamped to 8."""
    plan = plan_for("RawNorm", rounds=5, local={"steps": 20}, protection={"max_examples": 600})
    with trial(tmp_path, plan) as run:
        report, task = run.train(), run.live.task
    parts, settings = [task.load(None, site) for site in SITES], LocalTraining(**plan.local.model_dump())
    test = pool([part.test for part in parts])
    alone = [baseline(task, part.train, test, settings, plan.rounds, plan.seed)["auroc"] for part in parts]
    assert min(alone) > 0.8
    assert report.final.metrics["auroc"] > max(alone) - 0.01
    assert all(record.clamped_shares == {} and notes(record) == [] for record in report.rounds)


@pytest.mark.slow
def test_a_capped_loss_is_counted_and_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Findings D3: with patience 2 a training stopped after 3 of 6 rounds, since the capped loss stood still."""
    fields = {"rounds": 4, "local": {"learning_rate": 1e-6}, "stopping": {"patience": 2, "keep": "best"}}
    with trial(tmp_path, plan_for("Squared", **fields)) as run:
        report = run.train()
    assert not report.stopped
    for record in report.rounds:
        assert record.metrics["loss"] == record.metrics["loss_cap"] == 16.0
        assert record.metrics["capped"] == record.metrics["examples"]
    assert report.best_round == 4, "of losses that are known from below alone, the last round's is kept"


@pytest.mark.slow
def test_where_all_sites_fail_the_model_stays_and_the_training_stops(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Crashing", rounds=1)) as run:
        before = run.live.checkpoint.model.vector.copy()
        with pytest.raises(TooManyFailed, match="4 of 4"):
            run.train()
        assert np.array_equal(run.live.checkpoint.model.vector, before)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Crashing", "Stopping"])
def test_what_a_task_raises_stays_in_the_site_s_own_log(
    task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with trial(tmp_path, plan_for(task, max_attempts=1)) as run, pytest.raises(TooManyFailed) as caught:
        run.train()
    assert LEAK not in str(caught.value)
    assert LEAK in (tmp_path / "sites" / "ann" / "site.log").read_text()
    assert LEAK not in "".join(capfd.readouterr())


def test_prefect_is_given_names_and_numbers_and_nothing_secret(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1), name="canary-trial") as run:
        run.train()
        secrets = [site.identity.secret for site in run.local.sites.sites.values()] + [run.live.identity.secret]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=200)
        mine = [flow_run for flow_run in runs if flow_run.parameters.get("training") == "canary-trial"]
        shown = [node for flow_run in mine for node in graph_nodes(client, flow_run.id).values()]
        assert {"train[ann]", "average", "score"} <= {node["label"] for node in shown}
        tasks = client.read_task_runs(limit=200)
        artifacts = client._client.post("/artifacts/filter", json={}).json()
    assert {"canary-trial", "canary-trial 1.1", "canary-trial evaluation 2.1"} == {flow_run.name for flow_run in mine}
    for flow_run in mine:
        assert set(flow_run.parameters) in ({"plan", "training"}, {"training", "purpose", "round", "attempt"})
    stored = json.dumps([json.loads(one.model_dump_json()) for one in (*runs, *tasks)]) + json.dumps(artifacts)
    for secret in secrets:
        assert secret.hex() not in stored
    finished = [one.state for one in tasks if one.state and one.state.is_completed()]
    assert finished
    assert not any(state.data for state in finished)


def test_round_secrets_and_local_work_are_gone_when_the_training_has_ended(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        run.train()
        for site in run.local.sites.sites.values():
            contexts = site.vault.of_training(run.live.training)
            assert contexts
            assert all(context.state is None for context in contexts)
            assert not list((site.vault.folder / "masked").iterdir())
            assert not list((site.vault.folder / "work").glob("*/*"))
    assert not list((tmp_path / "exchange").glob("[a-z]*/*"))


def test_a_forged_answer_drops_its_site_and_says_so(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        honest = run.local.sites.sites["bob"]
        step = honest._steps["ask/advertise"]
        honest._steps["ask/advertise"] = lambda request: tuple(
            replace(message, signature="0" * 128) for message in step(request)
        )
        report = run.train()
    assert report.rounds[0].dropped == {"bob": "bob: advert: the signature does not verify"}


@pytest.mark.slow
def test_a_vector_that_is_changed_on_the_exchange_drops_its_site(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        site = run.local.sites.sites["cat"]
        step = site._steps["ask/mask"]

        def corrupt(request):  # type: ignore[no-untyped-def]
            answer = step(request)
            for path in (tmp_path / "exchange" / "cat").iterdir():
                path.write_bytes(b"\x01" + path.read_bytes()[1:])
            return answer

        site._steps["ask/mask"] = corrupt
        report = run.train()
    assert report.rounds[0].dropped == {"cat": "cat: exchange: the object is not what its digest says"}
    assert report.rounds[0].survivors == ("ann", "bob", "dan")


@pytest.mark.slow
def test_a_reveal_in_another_site_s_name_does_not_stop_a_confirmed_round(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        liar = run.local.sites.sites["bob"]
        step = liar._steps["ask/reveal"]
        liar._steps["ask/reveal"] = lambda request: tuple(replace(one, sender="cat") for one in step(request))
        report = run.train()
    assert report.rounds[0].survivors == SITES


@pytest.mark.slow
def test_a_site_that_blames_its_data_at_confirm_does_not_stop_a_round_that_may_be_confirmed(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        liar = run.local.sites.sites["bob"]

        def blame(request):  # type: ignore[no-untyped-def]
            raise BadInput("bob", "confirm", "the data are at fault")

        liar._steps["ask/confirm"] = blame
        report = run.train()
    assert report.rounds[0].survivors == SITES
