"""A flood of inputs, over a fake mailbox: what nobody waits for goes at once, and what is remembered has a bound."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from flows import participation, remote
from flows.collect import Absent
from flows.exchange import Exchange
from flows.mailbox import BATCH, Mailbox, MailboxError, answer_key, pack, request_key
from flows.messages import AskFinish, AskJoin
from flows.participation import Seat, attend
from flows.remote import RemoteSites
from protocols.messages import COORDINATOR, Envelope, envelope
from tests.flows.consortium import plan_for, trial
from tests.flows.server import CONSORTIUM, COORDINATOR_KEY, KEYS

REQUEST = envelope(COORDINATOR_KEY, "ask/join", "1" * 64, "ann", AskJoin("t", "{}"))
ANSWER = envelope(KEYS["ann"], "joined", "1" * 64, COORDINATOR, AskFinish("t"), REQUEST.digest)
MOST_SENT = 20_000
"""Keys that a query may exclude: with more, a database refuses it."""


class FakeMailbox:
    """The inputs of all runs in this process; oldest first, as at the server."""

    inputs: dict[UUID, dict[str, str]]
    looks: list[int]
    flood: Callable[[dict[str, str]], None]
    away: int

    def __init__(self, client: object, run: UUID) -> None:
        self.run = run

    @property
    def box(self) -> dict[str, str]:
        return self.inputs.setdefault(self.run, {})

    def put(self, key: str, text: str) -> None:
        self.box[key] = text

    def take(self, prefix: str, known: Collection[str] = ()) -> dict[str, str]:
        FakeMailbox.flood(self.box)
        FakeMailbox.looks.append(len(known))
        if len(known) > MOST_SENT or FakeMailbox.away > 0:
            FakeMailbox.away -= 1
            raise MailboxError("the Prefect server does not show its messages (HTTP 500)")
        return dict([(key, text) for key, text in list(self.box.items()) if key not in known][:BATCH])

    def delete(self, key: str) -> None:
        self.box.pop(key, None)

    def clear(self, prefix: str) -> None:
        self.box.clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeMailbox]:
    """An empty fake mailbox in the place of the real one; all runs run."""
    FakeMailbox.inputs, FakeMailbox.looks, FakeMailbox.away = {}, [], 0
    FakeMailbox.flood = lambda box: None
    for module in (remote, participation):
        monkeypatch.setattr(module, "Mailbox", FakeMailbox)
        monkeypatch.setattr(module, "run_states", lambda client, runs: dict.fromkeys(runs, StateType.RUNNING))
    return FakeMailbox


@pytest.fixture
def sites(fake: type[FakeMailbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteSites]:
    """The coordinator's way to ann, who has joined."""
    monkeypatch.setattr(remote, "LOOK_S", 0.1)
    client = cast(SyncPrefectClient, object())
    sites = RemoteSites(client, "t", uuid4(), CONSORTIUM, Exchange((tmp_path / "x").as_uri()), threading.Event())
    sites._links["ann"].run, sites._links["ann"].joined = uuid4(), True
    yield sites
    sites.close()


def answers(sites: RemoteSites, key: str) -> None:
    """Ann answers what lies in her run."""
    while not (asked := FakeMailbox.inputs.get(cast(UUID, sites._links["ann"].run))):
        time.sleep(0.01)
    asked.clear()
    FakeMailbox.inputs.setdefault(sites._run, {})[key] = pack((ANSWER,), sites._store, "ann")[0]


def test_an_answer_behind_a_flood_is_heard_and_the_flood_is_neither_kept_nor_remembered(sites: RemoteSites) -> None:
    number = iter(range(10**6))

    def flood(box: dict[str, str]) -> None:
        if len(box) < 2000:
            box.update((f"answer-ann-ask-{next(number)}", "x") for _ in range(10))

    FakeMailbox.flood = flood
    FakeMailbox.inputs[sites._run] = {f"answer-bob-ask-{one}": "x" for one in range(300)}
    key = answer_key("ann", request_key(REQUEST))
    played = threading.Thread(target=answers, args=(sites, key))
    played.start()
    assert sites.ask("ann", REQUEST, 20.0) == (ANSWER,)
    played.join()
    assert max(FakeMailbox.looks) <= 1 and len(sites._read) <= 1
    assert len(FakeMailbox.inputs[sites._run]) < 10 * len(FakeMailbox.looks)


def test_genuine_answers_that_are_remembered_have_a_bound(sites: RemoteSites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_READ", 3)
    monkeypatch.setattr(remote, "TIDY_S", 1e9)
    key = answer_key("ann", request_key(REQUEST))
    for _ in range(3):
        played = threading.Thread(target=answers, args=(sites, key))
        played.start()
        assert sites.ask("ann", REQUEST, 20.0) == (ANSWER,)
        played.join()
        sites._read.update(f"answer-{number}" for number in range(3))
    assert max(FakeMailbox.looks) <= 5


def test_a_look_that_fails_still_tidies(sites: RemoteSites) -> None:
    """More keys than a query may hold made every look fail, and what was read was never deleted."""
    sites._read.update(map(str, range(MOST_SENT + 1)))
    key = answer_key("ann", request_key(REQUEST))
    played = threading.Thread(target=answers, args=(sites, key))
    played.start()
    assert sites.ask("ann", REQUEST, 20.0) == (ANSWER,)
    played.join()


def test_a_forged_answer_every_second_does_not_put_off_the_next_question(
    sites: RemoteSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AGAIN_S", 0.2)
    run, key = cast(UUID, sites._links["ann"].run), answer_key("ann", request_key(REQUEST))

    def play() -> None:
        while not FakeMailbox.inputs.get(run):
            time.sleep(0.01)
        FakeMailbox.inputs[run].clear()  # the question is stolen
        while not FakeMailbox.inputs[run]:
            FakeMailbox.inputs.setdefault(sites._run, {})[key] = "forged"
            time.sleep(0.05)
        while key in FakeMailbox.inputs[sites._run]:
            time.sleep(0.01)
        answers(sites, key)

    played = threading.Thread(target=play)
    played.start()
    assert sites.ask("ann", REQUEST, 10.0) == (ANSWER,)
    played.join()


def test_a_parcel_that_cannot_be_read_now_holds_up_no_other_answer(
    sites: RemoteSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(text: str, exchange: Exchange, owner: str) -> tuple[Envelope, ...]:
        if text == "away":
            raise remote.ExchangeAway("the exchange cannot be reached")
        return (ANSWER,)

    monkeypatch.setattr(remote, "unpack", unpack)
    sites._waiting["answer-bob-ask-1"] = remote.Question("bob", REQUEST)
    FakeMailbox.inputs[sites._run] = {"answer-bob-ask-1": "away"}
    played = threading.Thread(target=answers, args=(sites, answer_key("ann", request_key(REQUEST))))
    played.start()
    assert not isinstance(sites.ask("ann", REQUEST, 10.0), Absent)
    played.join()


def test_a_site_that_is_always_busy_forgets_what_it_has_answered(
    fake: type[FakeMailbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old requests come again without end: there is never a quiet moment to tidy in, and a look fails now and then."""
    monkeypatch.setattr(participation, "MOST_ANSWERED", 4)
    monkeypatch.setattr(participation, "BUSY_S", 0.001)
    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["cat"]
        client = cast(SyncPrefectClient, object())
        seat = Seat(site, "t", client, uuid4(), uuid4(), run.local.exchange, 600.0)
        made = [envelope(COORDINATOR_KEY, "ask/finish", "1" * 64, "cat", AskFinish(f"t{one}")) for one in range(40)]
        FakeMailbox.inputs[seat.run] = {request_key(one): pack((one,), seat.exchange, COORDINATOR)[0] for one in made}

        def handle(key: str) -> object:
            seat.answered.add(key)
            seat.taken.pop(key)
            FakeMailbox.away = int(len(FakeMailbox.looks) == 2)
            if not FakeMailbox.inputs[seat.run].keys() - seat.answered:
                seat.finished = True
            return None

        monkeypatch.setattr(participation, "pauses", lambda *given: iter([0.001] * 100))
        attend(seat, handle=handle)  # type: ignore[arg-type]
    assert max(FakeMailbox.looks) <= 4 + participation.MOST_AT_ONCE + 1
    assert FakeMailbox.inputs[seat.run] == {}


def test_keys_that_the_server_never_deletes_are_passed_over_up_to_a_number() -> None:
    box = Mailbox(cast(SyncPrefectClient, None), uuid4())
    box._stuck.update(map(str, range(4096)))

    def refuse(method: str, path: str, body: object = None) -> int:
        raise MailboxError("the Prefect server refuses a message (HTTP 405)")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Mailbox, "_send", lambda self, *given: refuse(*given))
        box._discard("answer\n")
    assert len(box._stuck) == 4096
