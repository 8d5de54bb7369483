"""How the coordinator hears a site: whoever can write to the Prefect API may delay an answer, never give one."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Completed, Crashed, Paused, Running

from flows import remote
from flows.collect import Absent
from flows.exchange import Exchange
from flows.mailbox import Mailbox, MailboxError, answer_key, pack, request_key
from flows.messages import AskFinish, AskJoin, Done
from flows.remote import RemoteSites
from protocols.messages import COORDINATOR, Envelope, envelope
from tests.flows.server import CONSORTIUM, COORDINATOR_KEY, KEYS, client, keys_of, new_run, post

__all__ = ["client"]

CONTEXT = "1" * 64
REQUEST = envelope(COORDINATOR_KEY, "ask/finish", CONTEXT, "ann", AskFinish("t"))
ANSWER = envelope(KEYS["ann"], "done", CONTEXT, COORDINATOR, Done(), REQUEST.digest)
TO_ANOTHER = envelope(KEYS["ann"], "done", CONTEXT, COORDINATOR, Done(), ANSWER.digest)


class Line:
    """A coordinator whose site ann has joined, in a participation that the test plays."""

    def __init__(self, client: SyncPrefectClient, folder: Path) -> None:
        self.client, self.exchange = client, Exchange((folder / "exchange").as_uri())
        self.training_run, self.run = new_run(client), new_run(client)
        self.ending = threading.Event()
        self.sites = RemoteSites(client, "t", self.training_run, CONSORTIUM, self.exchange, self.ending)
        self.requests, self.answers = Mailbox(client, self.run), Mailbox(client, self.training_run)
        self.sites._links["ann"].run, self.sites._links["ann"].joined = self.run, True

    def ask(self, play: Callable[[], object], deadline_s: float = 20) -> tuple[Envelope, ...] | Absent:
        """Ask ann, while ``play`` is played."""
        played = threading.Thread(target=play, daemon=True)
        played.start()
        answer = self.sites.ask("ann", REQUEST, deadline_s)
        played.join(20)
        return answer

    def asked(self) -> str:
        """Wait for the request; gives its key."""
        while not self.requests.take("ask-"):
            time.sleep(0.05)
        return request_key(REQUEST)

    def state(self, run: UUID, state: object) -> None:
        """Set a run's state."""
        self.client.set_flow_run_state(run, state, force=True)


@pytest.fixture
def line(client: SyncPrefectClient, tmp_path: Path) -> Iterator[Line]:
    """A line to ann."""
    line = Line(client, tmp_path)
    yield line
    line.sites.close()


def gone(box: Mailbox) -> bool:
    """Whether a mailbox is soon empty: an answer is deleted right after it is handed over."""
    for _ in range(100):
        if not keys_of(box):
            return True
        time.sleep(0.1)
    return False


def text(*messages: Envelope) -> str:
    """Messages as the text of an input."""
    return f"[{','.join(message.to_json() for message in messages)}]"


def test_an_answer_comes_back_and_leaves_no_message(line: Line) -> None:
    assert line.ask(lambda: line.answers.put(answer_key("ann", line.asked()), text(ANSWER))) == (ANSWER,)
    assert gone(line.answers)


FORGED = {
    "unsigned": lambda: text(Envelope(**{**_fields(ANSWER), "signature": "00" * 64})),
    "signed by another site": lambda: text(envelope(KEYS["bob"], "done", CONTEXT, COORDINATOR, Done(), REQUEST.digest)),
    "her own to another request": lambda: text(TO_ANOTHER),
    "her own to no request": lambda: text(envelope(KEYS["ann"], "done", CONTEXT, COORDINATOR, Done())),
    "one to another request of two": lambda: text(ANSWER, TO_ANOTHER),
    "signed by another in her name": lambda: text(Envelope(**{**_fields(ANSWER), "signature": _bobs(ANSWER)})),
    "changed": lambda: text(Envelope(**{**_fields(ANSWER), "kind": "refusal"})),
    "empty": lambda: "[]",
    "garbage": lambda: "garbage",
    "too long": lambda: "x" * 3_000_000,
    "one forged of two": lambda: text(ANSWER, Envelope(**{**_fields(ANSWER), "signature": "00" * 64})),
    "a parcel that is not there": lambda: '{"object": "' + "0" * 64 + '", "size": 10}',
}


def _fields(message: Envelope) -> dict[str, str]:
    return {name: getattr(message, name) for name in message.__slots__}


def _bobs(message: Envelope) -> str:
    return KEYS["bob"].sign(message.signed_bytes).hex()


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_answer_is_thrown_away_and_the_true_one_taken(line: Line, forged: str) -> None:
    def play() -> None:
        key = answer_key("ann", line.asked())
        post(line.answers, key, FORGED[forged]())
        while keys_of(line.answers):
            time.sleep(0.05)
        line.answers.put(key, text(ANSWER))

    assert line.ask(play) == (ANSWER,)
    assert gone(line.answers)


def test_a_long_answer_comes_through_the_exchange(line: Line) -> None:
    long = envelope(KEYS["ann"], "done", CONTEXT, COORDINATOR, AskJoin("t", "x" * 100_000), REQUEST.digest)

    def play() -> None:
        message, parcel = pack((long,), line.exchange, "ann")
        assert parcel is not None
        line.answers.put(answer_key("ann", line.asked()), message)

    assert line.ask(play) == (long,)


def test_no_answer_is_an_absence_and_takes_the_request_back(line: Line) -> None:
    began = time.monotonic()
    assert line.sites.ask("ann", REQUEST, 1.0) == Absent("no answer within 1 s")
    assert time.monotonic() - began < 10
    assert gone(line.requests)


def test_answers_that_nobody_waits_for_are_deleted(line: Line) -> None:
    def play() -> None:
        key = line.asked()
        for number in range(20):
            post(line.answers, f"answer-bob-ask-{number}", "late")
        line.answers.put(answer_key("ann", key), text(ANSWER))

    assert line.ask(play) == (ANSWER,)
    assert line.ask(lambda: line.answers.put(answer_key("ann", line.asked()), text(ANSWER))) == (ANSWER,)
    assert gone(line.answers)


def test_an_answer_that_comes_when_all_is_over_is_deleted(line: Line) -> None:
    for number in range(20):
        line.answers.put(answer_key("ann", f"ask-{number}"), text(ANSWER))
    line.sites.close()
    assert keys_of(line.answers) == []


def test_a_site_that_has_not_joined_is_not_waited_for(line: Line) -> None:
    began = time.monotonic()
    assert line.sites.ask("bob", REQUEST, 60) == Absent("has not joined yet")
    assert time.monotonic() - began < 1


def test_a_late_site_is_waited_for_without_holding_up_others_that_ask_it(line: Line) -> None:
    join = envelope(COORDINATOR_KEY, "ask/join", CONTEXT, "bob", AskJoin("t", "{}"))
    late = threading.Thread(target=lambda: line.sites.ask("bob", join, 60))
    late.start()
    time.sleep(1)
    began = time.monotonic()
    answer = line.sites.ask("bob", REQUEST, 60)
    assert isinstance(answer, Absent)
    assert time.monotonic() - began < 5
    line.ending.set()
    late.join(20)
    assert not late.is_alive(), "the end of the training ends the waiting"


def test_a_participation_that_ends_under_a_question_is_told(line: Line) -> None:
    answer = line.ask(lambda: (line.asked(), line.state(line.run, Crashed())))
    assert answer == Absent("is not registered at the Prefect server: fedseal site serve does it")
    assert gone(line.requests)


@pytest.mark.slow
@pytest.mark.parametrize("state", [Cancelling, Crashed])
def test_a_training_whose_run_is_cancelled_or_ended_asks_nobody_anything_more(line: Line, state: type) -> None:
    began = time.monotonic()
    answer = line.ask(lambda: (line.asked(), line.state(line.training_run, state())), 60)
    assert isinstance(answer, Absent)
    assert line.sites.cancelled and line.ending.is_set()
    assert time.monotonic() - began < 30


def test_a_participation_whose_worker_is_offline_is_ended_and_its_site_not_waited_for(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("WORKER_S", 0.2), ("OFFLINE_S", 1.0), ("SILENT_S", 0.2)):
        monkeypatch.setattr(remote, name, seconds)
    monkeypatch.setattr(line.sites, "_online", lambda site: False)
    began = time.monotonic()
    assert isinstance(line.ask(lambda: line.asked(), 60), Absent)
    assert time.monotonic() - began < 30
    ended = line.client.read_flow_run(line.run).state
    assert ended is not None and (ended.type, ended.message) == (StateType.CRASHED, "Its worker is offline.")


def test_a_participation_that_is_silent_for_a_while_is_not_ended_while_its_worker_is_online(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("WORKER_S", 0.1), ("OFFLINE_S", 1.5), ("SILENT_S", 0.1)):
        monkeypatch.setattr(remote, name, seconds)
    looks = iter([False, False, True])
    monkeypatch.setattr(line.sites, "_online", lambda site: next(looks, True))
    line.ask(lambda: line.asked(), 5)
    state = line.client.read_flow_run(line.run).state
    assert state is not None and state.type == StateType.RUNNING


def test_while_the_server_hangs_it_is_named_and_not_the_site(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.5)
    hung, released = threading.Event(), threading.Event()
    take = Mailbox.take

    def held(self: Mailbox, *given: object) -> dict[str, str]:
        hung.set()
        released.wait(30)
        return take(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Mailbox, "take", held)
    answer = line.ask(lambda: None, 3)
    released.set()
    assert isinstance(answer, Absent)
    assert re.fullmatch(r"no answer within 3 s: the Prefect server has not answered for \d s", answer.reason)


def test_a_server_that_is_away_is_named_and_said_to_be_back(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Mailbox, *given: object) -> dict[str, str]:
        raise MailboxError("the Prefect server cannot be reached (ConnectError)")

    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "take", away)
        answer = line.ask(lambda: None, 3)
    assert answer == Absent("no answer within 3 s: the Prefect server cannot be reached (ConnectError)")
    assert line.ask(lambda: line.answers.put(answer_key("ann", line.asked()), text(ANSWER))) == (ANSWER,)
    back = r"answers come in again, after \d+ s \(the Prefect server cannot be reached \(ConnectError\)\)"
    assert any(re.fullmatch(back, record.getMessage()) for record in caplog.records)


@pytest.mark.slow
def test_a_paused_run_holds_the_training_and_a_resumed_one_lets_it_go_on(line: Line) -> None:
    paused = line.sites._paused
    line.state(line.training_run, Paused(timeout_seconds=600))
    assert paused.wait(20)
    line.state(line.training_run, Running())
    for _ in range(200):
        if not paused.is_set():
            break
        time.sleep(0.1)
    assert not paused.is_set() and not line.sites.cancelled


def test_a_site_whose_participation_has_ended_is_brought_back_between_questions(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WORKER_S", 0.2)
    back, another, joined = threading.Event(), new_run(line.client), list[UUID]()
    monkeypatch.setattr(line.sites, "_participation", lambda site: another)
    monkeypatch.setattr(line.sites, "_join_again", lambda site, run, join, deadline: joined.append(run))
    line.sites.returned = lambda site: back.set() if site == "ann" else None
    line.sites._links["ann"].join = REQUEST
    line.state(line.run, Crashed())
    assert back.wait(30)
    assert joined == [another] and line.sites._links["ann"].run == another


def test_a_site_that_was_asked_to_finish_is_not_brought_back(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its participation ends by itself, before the training's run does."""
    monkeypatch.setattr(remote, "WORKER_S", 0.2)
    started = list[str]()
    monkeypatch.setattr(line.sites, "_participation", started.append)
    line.sites._links["ann"].join = REQUEST
    assert isinstance(line.sites.ask("ann", REQUEST, 1.0), Absent)
    line.state(line.run, Completed())
    time.sleep(4)  # two looks at the runs, and many at the workers
    assert started == []
