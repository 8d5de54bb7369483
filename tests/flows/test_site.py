"""A site's handler: what it refuses to join, to work on and to answer, and that it checks before it imports."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flows.collect import Absent
from flows.messages import AskJoin, AskWork, join_context
from flows.model import shelf
from flows.plan import Plan
from ml_tasks import training
from protocols.contexts import AttemptContext, sha256
from protocols.errors import Refused
from protocols.keys import Identity
from protocols.messages import COORDINATOR, AskAdvertise, Envelope, Refusal, envelope, parse
from tests.flows.consortium import Trial, plan_for, trial


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium in which nobody has joined yet."""
    with trial(tmp_path, plan_for()) as made:
        yield made


def send(run: Trial, site: str, step: str, context: str, body: object, signer: Identity | None = None) -> Envelope:
    """Ask one site by hand; gives its first message."""
    request = envelope(signer or run.live.identity, f"ask/{step}", context, site, body)
    return run.local.sites.sites[site].answer(request)[0]


def join(run: Trial, site: str, plan: Plan | None = None, training: str | None = None) -> Envelope:
    plan, training = plan or run.plan, training or run.live.training
    return send(run, site, "join", join_context(training, plan.digest), AskJoin(training, plan.to_json()))


def advertise(run: Trial, site: str, context: AttemptContext) -> Envelope:
    """Have a site enter an attempt: it works for no other."""
    answer = send(run, site, "advertise", context.digest, AskAdvertise(context))
    assert answer.kind == "advert"
    return answer


def refusal(message: Envelope) -> str:
    """The reason of a refusal; fails where the site did not refuse."""
    assert message.kind == "refusal"
    return parse(Refusal, message.body, party="site", step="refusal").reason


def test_a_site_joins_a_plan_once_and_no_other_plan_under_the_same_name(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    assert join(run, "ann").kind == "joined"
    assert "agreed to another plan" in refusal(join(run, "ann", plan_for(rounds=3)))


def test_a_task_that_is_not_on_the_list_is_refused_before_it_is_imported(run: Trial, tmp_path: Path) -> None:
    (tmp_path / "evil_task.py").write_text("raise SystemExit('code of the coordinator ran')")
    sys.path.insert(0, str(tmp_path))
    try:
        plan = plan_for(task="Tiny").model_copy(update={"task": "evil_task:Task"})
        assert "is not on this site's list" in refusal(join(run, "ann", plan))
        assert "evil_task" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_a_plan_that_does_not_name_the_site_or_is_plain_against_its_policy_is_refused(run: Trial) -> None:
    assert "does not name this site" in refusal(join(run, "ann", plan_for(sites=["bob", "cat", "dan"])))
    plain = plan_for(protection={"protocol": "plain", "allow_insecure": True})
    assert "does not allow the plain protocol" in refusal(join(run, "ann", plain))


def test_a_request_that_the_coordinator_did_not_sign_is_refused(run: Trial) -> None:
    body = AskJoin(run.live.training, run.plan.to_json())
    context = join_context(run.live.training, run.plan.digest)
    stranger = Identity.generate(COORDINATOR)
    assert "signature does not verify" in refusal(send(run, "ann", "join", context, body, stranger))
    peer = run.local.sites.sites["bob"].identity
    assert "sender is not the expected one" in refusal(send(run, "ann", "join", context, body, peer))


def test_a_request_in_another_context_than_its_body_s_is_refused(run: Trial) -> None:
    body = AskJoin(run.live.training, run.plan.to_json())
    assert "signed for another context" in refusal(send(run, "ann", "join", sha256("else"), body))


@pytest.mark.parametrize("step", ["train", "evaluate", "moments", "advertise", "submit"])
def test_nothing_is_done_for_a_training_that_the_site_has_not_joined(run: Trial, step: str) -> None:
    context = run.live.context("training", 1, 1)
    body = AskAdvertise(context) if step == "advertise" else AskWork(context)
    assert "has not joined" in refusal(send(run, "ann", step, context.digest, body))


def changed(context: AttemptContext) -> dict[str, tuple[AttemptContext, str]]:
    """Contexts that do not follow from the plan, and what a site says to each."""
    others = dict(list(context.sites.items())[:3])
    wide = replace(context.segments[0], scale=1.0)
    return {
        "plan": (replace(context, plan=sha256("another")), "not the plan"),
        "threshold": (replace(context, threshold=4), "not those of the plan"),
        "colluding": (replace(context, threshold=4, colluding=2), "not those of the plan"),
        "sites": (replace(context, sites=others), "not those of the plan"),
        "segments": (replace(context, segments=(wide, *context.segments[1:])), "segment table is not the plan's"),
        "keys": (replace(context, sites={**context.sites, "bob": sha256("mallory")}), "not the one in the consortium"),
    }


@pytest.mark.parametrize("step", ["train", "advertise"])
@pytest.mark.parametrize("what", ["plan", "threshold", "colluding", "sites", "segments", "keys"])
def test_a_context_that_does_not_follow_from_the_agreed_plan_is_refused(run: Trial, step: str, what: str) -> None:
    assert join(run, "ann").kind == "joined"
    context, reason = changed(run.live.context("training", 1, 1))[what]
    body = AskAdvertise(context) if step == "advertise" else AskWork(context)
    assert reason in refusal(send(run, "ann", step, context.digest, body))


def test_a_model_that_is_missing_or_not_what_its_digest_says_is_refused(run: Trial, tmp_path: Path) -> None:
    assert join(run, "ann").kind == "joined"
    context = replace(run.live.context("training", 1, 1), model=sha256("nowhere"))
    advertise(run, "ann", context)
    assert "missing from the exchange" in refusal(send(run, "ann", "train", context.digest, AskWork(context)))
    context = run.live.context("training", 1, 2)
    advertise(run, "ann", context)
    path = tmp_path / "exchange" / shelf(context.training) / context.model
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "not what its digest says" in refusal(send(run, "ann", "train", context.digest, AskWork(context)))


def test_training_twice_gives_the_same_kept_values_and_does_the_work_once(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    context = run.live.context("training", 1, 1)
    advertise(run, "ann", context)
    folder = run.local.sites.sites["ann"].vault.folder / "work" / run.live.training / context.digest
    assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
    kept = (folder / "train.safetensors").stat()
    assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
    assert (folder / "train.safetensors").stat().st_mtime_ns == kept.st_mtime_ns


def test_work_that_the_site_itself_has_ended_is_no_failure(run: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    site = run.local.sites.sites["ann"]
    assert join(run, "ann").kind == "joined"
    context = run.live.context("training", 1, 1)
    advertise(run, "ann", context)

    def ended(*arguments: object, **named: object) -> NDArray[np.float32]:
        site.stop_work(run.live.training)
        raise RuntimeError("it was ended")

    monkeypatch.setattr(training, "train", ended)
    assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
    assert [line.fields["step"] for line in site.record.read() if line.event == "stopped"] == ["train"]
    assert site.record.failures() == [] and site.failures == {}


def test_the_plain_vector_of_a_protected_training_is_never_given(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    context = run.live.context("training", 1, 1)
    advertise(run, "ann", context)
    assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
    assert "not a plain one" in refusal(send(run, "ann", "submit", context.digest, AskWork(context)))


def test_an_unknown_step_is_refused(run: Trial) -> None:
    assert "no such step" in refusal(send(run, "ann", "unload", sha256("x"), AskJoin("t", "{}")))


def test_work_for_an_older_attempt_than_the_newest_is_not_done(run: Trial) -> None:
    """Anyone who can write to the way to a site can send an old, signed request again."""
    assert join(run, "ann").kind == "joined"
    new, old = run.live.context("training", 1, 2), run.live.context("training", 1, 1)
    assert send(run, "ann", "advertise", new.digest, AskAdvertise(new)).kind == "advert"
    assert "a newer attempt has begun" in refusal(send(run, "ann", "train", old.digest, AskWork(old)))


def test_work_that_a_newer_attempt_overtakes_is_refused_in_one_line(
    run: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by chaos: a site stood still in the middle of its training, and the others went on."""
    assert join(run, "ann").kind == "joined"
    old, new = run.live.context("training", 1, 1), run.live.context("training", 1, 2)
    advertise(run, "ann", old)

    def overtaken(*arguments: object, **named: object) -> NDArray[np.float32]:
        advertise(run, "ann", new)
        return honest(*arguments, **named)

    honest = training.train
    monkeypatch.setattr(training, "train", overtaken)
    assert "a newer attempt has begun" in refusal(send(run, "ann", "train", old.digest, AskWork(old)))


def test_a_plain_training_keeps_one_round_s_vector_and_values(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for(protection={"protocol": "plain", "allow_insecure": True})) as run:
        assert join(run, "ann").kind == "joined"
        for number in (1, 2):
            context = run.live.context("training", number, 1)
            for step in ("train", "evaluate", "submit"):
                assert send(run, "ann", step, context.digest, AskWork(context)).kind in ("done", "plain")
        assert len(list((tmp_path / "exchange" / "ann").iterdir())) == 1
        assert len(list((tmp_path / "sites" / "ann" / "work" / run.live.training).iterdir())) == 1


def test_a_site_s_folder_and_log_are_for_their_owner_alone(run: Trial, tmp_path: Path) -> None:
    refusal(join(run, "ann", plan_for(sites=["bob", "cat", "dan"])))
    folder = tmp_path / "sites" / "ann"
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "site.log").read_text()
    assert (folder / "site.log").stat().st_mode & 0o077 == 0


def test_what_a_site_writes_in_a_refusal_cannot_command_a_terminal_or_fill_a_log(run: Trial) -> None:
    site = run.local.sites.sites["ann"]

    def loud(request: Envelope) -> tuple[Envelope, ...]:
        raise Refused("ann", "join", "\x1b[2J\n" + "x" * 10_000)

    site._steps["ask/join"] = loud
    body = AskJoin(run.live.training, run.plan.to_json())
    answer, _ = run.live.ask("ann", "join", join_context(run.live.training, run.plan.digest), body, 10)
    assert isinstance(answer, Absent)
    assert answer.reason.isprintable()
    assert len(answer.reason) < 600


def test_a_full_disk_is_a_refusal_in_one_line_and_the_site_goes_on_when_there_is_room(run: Trial) -> None:
    """SQLite's own limit on pages stands for the disk: it fails in the same way, for real."""
    vault = run.local.sites.sites["ann"].vault
    log = vault.folder / "site.log"
    pages = vault._db.execute("PRAGMA page_count").fetchone()[0]
    assert vault._db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0] == pages
    plan = plan_for(name="a" * 40)
    said = [refusal(join(run, "ann", plan, f"{'t' * 60}-{number}")) for number in range(40) if full(run, plan, number)]
    assert said and set(said) == {"the site's disk is full: when it has room, the site goes on"}
    assert "Traceback" not in log.read_text()
    assert f"refused join: {said[0]}" in log.read_text()
    vault._db.execute("PRAGMA max_page_count = 100000")
    assert join(run, "ann", plan, f"{'t' * 60}-99").kind == "joined"
    assert vault._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def full(run: Trial, plan: Plan, number: int) -> bool:
    """Whether a site no longer joins."""
    return join(run, "ann", plan, f"{'t' * 60}-{number}").kind == "refusal"


def test_an_exchange_that_is_away_is_a_refusal_in_one_line(run: Trial, tmp_path: Path) -> None:
    assert join(run, "ann").kind == "joined"
    context = run.live.context("training", 1, 1)
    advertise(run, "ann", context)
    run.local.exchange._patience_s = 0
    (tmp_path / "exchange").rename(tmp_path / "away")
    (tmp_path / "exchange").touch()
    said = refusal(send(run, "ann", "train", context.digest, AskWork(context)))
    assert said == "the exchange cannot be used (Not a directory)"
    assert "Traceback" not in (tmp_path / "sites" / "ann" / "site.log").read_text()
    (tmp_path / "exchange").unlink()
    (tmp_path / "away").rename(tmp_path / "exchange")
    assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
