"""Local work is for advertised attempts, bounded at the site, silent on the data (attacks.md, 1, 5, 12, 16)."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from flows.local_work import LocalWork
from flows.messages import AskFinish, AskWork, join_context
from flows.model import GlobalModel, shelf
from flows.settings import SettingsError
from flows.site import RESUMED
from flows.workshop import WorkOrder
from ml_tasks.tabular import Standardisation
from protocols.messages import AskAdvertise
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_site import join, refusal, send

ENDLESS = {"local": {"steps": 10**15, "batch_size": 4}}


def work(run: Trial, step: str, number: int = 1, attempt: int = 1) -> str:
    """Advertise an attempt and ask for work in it; returns the answer's kind."""
    context = run.live.context("training", number, attempt)
    assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
    return send(run, "ann", step, context.digest, AskWork(context)).kind


def test_no_work_is_done_for_an_attempt_that_was_not_advertised_and_nothing_is_kept(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare")) as run:
        assert join(run, "ann").kind == "joined"
        run.local.sites.sites["ann"].advert_s = 0.0
        for attempt in range(1, 20):
            context = run.live.context("training", 1, attempt)
            said = refusal(send(run, "ann", "train", context.digest, AskWork(context)))
            assert said == "this site has not advertised in this context"
        assert not list((run.local.sites.sites["ann"].vault.folder / "work").rglob("*.safetensors"))


def test_work_that_is_asked_first_waits_for_the_advert_and_for_no_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> NoReturn:
        raise SettingsError("site.toml: no such file")

    with trial(tmp_path, plan_for("Bare")) as run, ThreadPoolExecutor() as threads:
        assert join(run, "ann").kind == "joined"
        ann = run.local.sites.sites["ann"]
        ann.advert_s = 60.0
        for number in (1, 2):
            good = run.live.context("training", number, 1)
            early = threads.submit(send, run, "ann", "train", good.digest, AskWork(good))
            assert not wait([early], timeout=1).done
            assert send(run, "ann", "advertise", good.digest, AskAdvertise(good)).kind == "advert"
            assert early.result(timeout=30).kind == "done"
        bad = run.live.context("training", 2, 2)
        monkeypatch.setattr(ann, "_settings", unreadable)
        early = threads.submit(send, run, "ann", "train", bad.digest, AskWork(bad))
        assert not wait([early], timeout=1).done
        assert "settings" in refusal(send(run, "ann", "advertise", bad.digest, AskAdvertise(bad)))
        assert "has not advertised" in refusal(early.result(timeout=30))


@pytest.mark.parametrize("ended", ["its time", "the training"])
def test_work_waits_for_its_advert_no_longer_than_its_time_and_the_training_last(tmp_path: Path, ended: str) -> None:
    train_s = 1.0 if ended == "its time" else 90.0
    with trial(tmp_path, plan_for("Bare", deadlines={"train_s": train_s})) as run, ThreadPoolExecutor() as threads:
        assert join(run, "ann").kind == "joined"
        run.local.sites.sites["ann"].advert_s = 60.0
        context, name = run.live.context("training", 1, 1), run.live.training
        early = threads.submit(send, run, "ann", "train", context.digest, AskWork(context))
        if ended == "the training":
            assert not wait([early], timeout=1).done
            finish = join_context(name, run.plan.digest)
            assert send(run, "ann", "finish", finish, AskFinish(name)).kind == "done"
        assert "has not advertised" in refusal(early.result(timeout=10))


def test_work_ends_when_its_time_is_over_and_the_answer_is_the_same(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", deadlines={"train_s": 0.5}, **ENDLESS)) as run:
        assert join(run, "ann").kind == "joined"
        began = time.monotonic()
        assert work(run, "train") == "done"
        assert 0.5 <= time.monotonic() - began < 5
        assert "not done within" in run.local.failures(run.live.training)["ann"]


def test_the_site_s_own_bound_on_work_holds_whatever_the_plan_says(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", deadlines={"train_s": 3600}, **ENDLESS)) as run:
        site = run.local.sites.sites["ann"]
        site._policy = site._policy.model_copy(update={"max_train_s": 3600.0})
        assert join(run, "ann").kind == "joined"
        context = run.live.context("training", 1, 1)
        assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        site._policy = site._policy.model_copy(update={"max_train_s": 0.5})
        began = time.monotonic()
        assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
        assert time.monotonic() - began < 5


def test_work_ends_when_the_training_is_finished(tmp_path: Path) -> None:
    plan = plan_for("Bare", deadlines={"train_s": 60}, **ENDLESS)
    with trial(tmp_path, plan) as run:
        assert join(run, "ann").kind == "joined"
        context = run.live.context("training", 1, 1)
        assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        ask = (run, "ann", "train", context.digest, AskWork(context))
        working = threading.Thread(target=lambda: send(*ask), daemon=True)
        working.start()
        time.sleep(0.5)
        assert working.is_alive()
        over = join_context(run.live.training, plan.digest)
        assert send(run, "ann", "finish", over, AskFinish(run.live.training)).kind == "done"
        working.join(10)
        assert not working.is_alive()


def test_a_sum_takes_only_the_work_of_its_purpose(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for()) as run:
        assert join(run, "ann").kind == "joined"
        context = run.live.context("training", 1, 1)
        assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        said = refusal(send(run, "ann", "moments", context.digest, AskWork(context)))
        assert said == "a sum of the training takes no such work"


def test_a_site_takes_part_in_as_many_attempts_at_a_round_as_the_plan_allows(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", max_attempts=2)) as run:
        assert join(run, "ann").kind == "joined"
        assert {work(run, "train", attempt=number) for number in range(1, 1 + 2 * RESUMED)} == {"done"}
        context = run.live.context("training", 1, 1 + 2 * RESUMED)
        said = refusal(send(run, "ann", "advertise", context.digest, AskAdvertise(context)))
        assert said.startswith("the plan allows 2 attempts at a round")
        assert work(run, "train", number=2) == "done"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (GlobalModel(np.array([2e9, 0, 0], np.float32)), "an entry of the model is beyond"),
        (
            GlobalModel(np.zeros(3, np.float32), Standardisation(np.full(2, 9, np.float32), np.ones(2, np.float32))),
            "a mean is beyond its feature's bounds",
        ),
        (
            GlobalModel(
                np.zeros(3, np.float32), Standardisation(np.zeros(2, np.float32), np.full(2, 1e-9, np.float32))
            ),
            "a scale is smaller",
        ),
    ],
)
def test_a_model_is_refused_only_for_what_it_says_itself(model: GlobalModel, why: str, tmp_path: Path) -> None:
    with trial(tmp_path, plan_for()) as run:
        assert join(run, "ann").kind == "joined"
        digest = run.live.exchange.put(shelf(run.live.training), model.to_bytes())
        context = replace(run.live.context("training", 1, 1), model=digest)
        assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        assert why in refusal(send(run, "ann", "train", context.digest, AskWork(context)))


def test_with_fixed_timing_an_answer_comes_when_its_time_has_passed_however_long_the_work_took(
    tmp_path: Path,
) -> None:
    plan = plan_for("Bare", deadlines={"train_s": 1.5}, protection={"timing": "fixed"})
    with trial(tmp_path, plan) as run:
        assert join(run, "ann").kind == "joined"
        began = time.monotonic()
        assert work(run, "evaluate") == "done"
        assert time.monotonic() - began >= 1.5


def test_a_site_with_more_examples_than_the_plan_s_bound_takes_some_at_random_the_same_in_each_round() -> None:
    plan = plan_for("Bare", protection={"max_examples": 5})
    model = GlobalModel(np.zeros(3, np.float32)).to_bytes()

    def weight(subset: bytes, number: int = 1) -> tuple[float, bytes]:
        order = WorkOrder(purpose="training", step="train", round=number, model=model, subset=subset)
        values = LocalWork(plan, "ann", None).perform(order).values
        return float(values["weight"][0]), values["update"].tobytes()

    assert weight(bytes(32)) == weight(bytes(32))
    assert weight(bytes(32))[0] == 1.0
    assert weight(bytes(32))[1] != weight(b"\1" * 32)[1]
