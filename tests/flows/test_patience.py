"""What a sum outlasts, and what it says meanwhile: who is at fault, that it goes on, that it gives up in the end."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from deploy.export import export, report
from deploy.reporting import way_out
from deploy.run import Failure, Options
from flows import pauses
from flows.federated_training import hold_while_paused
from flows.pauses import retry_pauses
from flows.session import Session
from flows.site import RESUMED
from protocols.errors import BelowThreshold, Refused
from tests.flows.consortium import always, at, plan_for, trial


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses of a tenth of a second instead of some seconds."""
    monkeypatch.setattr(pauses, "LEAST_RETRY_S", 0.1)
    yield


@given(st.integers(1, 400), st.floats(1, 10**5))
def test_pauses_grow_fill_the_patience_and_are_no_more_than_the_attempts(attempts: int, patience_s: float) -> None:
    found = retry_pauses(attempts, patience_s)
    assert len(found) <= attempts - 1
    assert found[:-1] == sorted(found[:-1])
    if attempts > 1:
        assert sum(found) == pytest.approx(patience_s)


def test_by_default_ten_minutes_are_outlasted_with_ten_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert retry_pauses(12, 600) == [2, 4, 8, 16, 32, 64, 128, 256, 90]
    assert retry_pauses(3, 600) == [200, 400], "where an attempt costs privacy"
    assert retry_pauses(3, 0) == [0, 0], "in local mode"


@pytest.mark.slow
def test_two_sites_in_trouble_are_outlasted_beyond_the_plan_s_attempts_and_the_line_says_so(tmp_path: Path) -> None:
    faults = {(site, "share"): at(range(1, 5), "lost") for site in ("ann", "bob")}
    with trial(tmp_path, plan_for("Bare", rounds=1, max_attempts=2), faults) as run:
        said: list[str] = []
        run.live.patience_s, run.live.tell = 30.0, said.append
        run.live.checkpoint.begin(0, 0)
        report = run.train()
    assert report.final.attempt == 5 and report.final.survivors == ("ann", "bob", "cat", "dan")
    assert said[0] == (
        "evaluation 2: coordinator: share: 2 sites, 3 are needed (ann, bob: not reached); it is attempted again in 0 s"
    )
    assert "goes on, after" in said[-1]


@pytest.mark.slow
def test_what_does_not_pass_ends_the_training_within_what_a_site_allows(tmp_path: Path) -> None:
    faults = {(site, "mask"): always("lost") for site in ("ann", "bob")}
    with trial(tmp_path, plan_for("Bare", rounds=1, max_attempts=1), faults) as run:
        run.live.patience_s, began = 1.5, time.monotonic()
        with pytest.raises(BelowThreshold, match=r"2 sites, 3 are needed \(ann, bob: not reached\)"):
            run.train()
        assert time.monotonic() - began >= 1.5
        assert 1 < run.sites.asked["cat", "advertise"] <= RESUMED / 2


def hang(run: object, released: threading.Event) -> Callable[[], None]:
    """Have the exchange of a trial hang, for the coordinator and all sites, from now until it is released."""
    exchange = run.local.exchange  # type: ignore[attr-defined]
    write = exchange._write

    def held(path: str, content: bytes) -> None:
        released.wait(60)
        write(path, content)

    exchange._write = held
    exchange._quiet_s, exchange._hang_s = 0.2, 0.5
    return lambda: setattr(exchange, "_write", write)


@pytest.mark.slow
def test_an_exchange_that_hangs_is_named_waited_for_and_said_to_be_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        said: list[str] = []
        run.live.patience_s, run.live.tell = 60.0, said.append
        released = threading.Event()
        mend = hang(run, released)
        threading.Timer(3.0, lambda: (mend(), released.set())).start()
        report = run.train()
    assert report.rounds[0].survivors == ("ann", "bob", "cat", "dan")
    assert all("the exchange has not answered within" in line for line in said[:-1]), said
    assert "goes on, after" in said[-1]
    logged = [record.getMessage() for record in caplog.records if record.name == "fedseal.exchange"]
    assert any(line.startswith("the exchange has not answered for") for line in logged)
    assert any(line.startswith("the exchange answers again, after") for line in logged)


def test_an_exchange_that_hangs_for_too_long_ends_the_training_under_its_own_name(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        run.live.patience_s = 2.0
        released = threading.Event()
        hang(run, released)
        with pytest.raises(BelowThreshold, match="the exchange has not answered within"):
            run.train()
        released.set()


@pytest.mark.slow
def test_a_coordinator_s_full_disk_is_waited_for_and_the_same_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from flows import checkpoint as module

    whole, left = module.write_whole, [3]

    def write(path: Path, content: bytes) -> None:
        if path.name == "held.json" and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(module, "write_whole", write)
    with trial(tmp_path, plan_for("Bare", rounds=1)) as run:
        said: list[str] = []
        run.live.patience_s, run.live.tell = 30.0, said.append
        report = run.train()
    assert report.rounds[0].survivors == ("ann", "bob", "cat", "dan")
    assert "this machine's disk is full" in said[0]


@pytest.mark.slow
def test_a_begun_training_goes_on_with_its_threshold_though_a_site_has_left(tmp_path: Path) -> None:
    """``min_sites`` is all four by default: it was asked when the training began."""
    plan = plan_for("Bare", rounds=2, max_attempts=1)
    with trial(tmp_path, plan, {(site, "mask"): at([1], "lost") for site in ("ann", "bob")}) as run:
        with pytest.raises(BelowThreshold):
            run.train()
    with trial(tmp_path, plan, {("dan", "join"): always("lost")}) as run:
        report = run.train()
    assert [one.survivors for one in report.rounds] == [("ann", "bob", "cat", "dan"), ("ann", "bob", "cat")]


def test_a_new_training_needs_min_sites(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare"), {("dan", "join"): always("lost")}) as run:
        with pytest.raises(Refused, match="3 sites, 4 are needed"):
            run.train()


@pytest.mark.slow
def test_a_begun_training_waits_for_its_sites(tmp_path: Path) -> None:
    faults = {(site, "join"): at(range(3), "lost") for site in ("ann", "bob")}
    with trial(tmp_path, plan_for("Bare", rounds=1), faults) as run:
        said: list[str] = []
        run.live.patience_s, run.live.tell = 30.0, said.append
        run.live.checkpoint.begin(0, 1)
        assert run.train().rounds[0].survivors == ("ann", "bob", "cat", "dan")
    assert "2 sites, 3 are needed (ann, bob: not reached); its sites are asked again in" in said[0]


def test_a_training_that_ends_leaves_its_last_model(tmp_path: Path) -> None:
    faults = {(site, "mask"): at(range(1, 99), "lost") for site in ("ann", "bob")}
    plan = plan_for("Bare", rounds=2)
    with trial(tmp_path, plan, faults) as run:
        with pytest.raises(BelowThreshold):
            run.train()
        vector = run.live.checkpoint.model.vector
        assert way_out(run.live.checkpoint, tmp_path) == f"; its model after 1 rounds: fedseal export {tmp_path}"
        with pytest.raises(Failure, match="another process runs this training"):
            (tmp_path / "plan.json").write_text(plan.to_json())
            export(tmp_path, None)
    with pytest.raises(Failure, match=f"has not finished: go on with: fedseal run --resume {tmp_path}"):
        report(tmp_path, Options(None, None, baselines=True))
    line = export(tmp_path, None)
    assert line.startswith(f"{tmp_path / 'last-model.safetensors'}: the model after 1 of 2 rounds")
    saved = load_file(tmp_path / "last-model.safetensors")
    assert sorted(np.concatenate([one.ravel() for one in saved.values()])) == sorted(vector)


def test_a_training_without_a_finished_round_has_no_model(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for("Bare")) as run:
        (tmp_path / "plan.json").write_text(run.plan.to_json())
        assert way_out(run.live.checkpoint, tmp_path) == ""
    with pytest.raises(Failure, match="no round of this training has finished"):
        export(tmp_path, None)


def test_no_sum_is_begun_while_the_run_is_paused() -> None:
    said: list[str] = []
    live = SimpleNamespace(paused=threading.Event(), ending=threading.Event(), tell=said.append)
    hold_while_paused(cast(Session, live), "training 3")
    assert said == []
    live.paused.set()
    held = threading.Thread(target=hold_while_paused, args=(live, "training 3"))
    held.start()
    held.join(1.5)
    assert held.is_alive()
    live.paused.clear()
    held.join(5)
    assert not held.is_alive()
    assert said == ["paused before training 3, until the run is resumed or cancelled", "goes on with training 3"]
