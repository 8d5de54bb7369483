"""Messages that are genuine and come twice, too late, too early, or elsewhere: who carries them may do all of it."""

from collections.abc import Iterator

import pytest
from prefect.states import Completed, Running

from flows.mailbox import Mailbox, answer_key, request_key
from flows.messages import AskWork
from protocols.decisions import Decision
from protocols.messages import AskAdvertise, AskConfirm, Envelope
from protocols.vault import Vault
from tests.hostile.hand import Attacker, Hand, Watch, gone, place, refusal, unmoved
from tests.processes.harness import Consortium, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(home: Consortium, attacker: Attacker) -> Iterator[Hand]:
    """Another training, which north alone has joined and advertised in."""
    other = Hand.begin(home, attacker, "other", ["north"]).join()
    other.number = 1
    yield other
    home.client.set_flow_run_state(other.run, Completed(), force=True)


def to_north(attacker: Attacker, since: int) -> list[Envelope]:
    """The requests to north that the attacker has seen since."""
    return [one for one in attacker.seen[since:] if one.kind.startswith("ask/") and one.receiver == "north"]


def replayed(hand: Hand, attacker: Attacker, requests: list[Envelope]) -> list[tuple[Envelope, ...]]:
    """Put requests into north's mailbox that were there before; gives the answers."""
    for request in requests:
        gone(hand.boxes["north"], request_key(request))
        attacker.send(hand.boxes["north"].run, request)
    return [hand.heard(request) for request in requests]


def test_every_request_of_a_finished_round_comes_again_and_gets_the_answer_that_it_got(
    home: Consortium, hand: Hand, attacker: Attacker
) -> None:
    since = len(attacker.seen)
    hand.round().assert_honest()
    answers = [one for one in attacker.seen[since:] if one.sender == "north" and one.kind != "done"]
    with unmoved(home, "north"):
        for again in replayed(hand, attacker, to_north(attacker, since)):
            assert again[0].kind == "done" or set(again) <= set(answers)


def test_requests_of_an_earlier_round_are_refused_and_the_new_one_goes_on(
    home: Consortium, hand: Hand, attacker: Attacker
) -> None:
    since = len(attacker.seen)
    hand.round().assert_honest()
    old, round_ = to_north(attacker, since), hand.round()
    round_.shared()
    with unmoved(home, "north") as north:
        for answer in replayed(hand, attacker, old):
            said = refusal(answer)
            assert "its secrets are erased" in said or "a newer attempt has begun" in said
            north.tells(f": {said}")
    round_.assert_honest()


def test_steps_that_come_too_early_are_refused_and_taken_when_it_is_their_turn(hand: Hand) -> None:
    round_ = hand.round()
    dealings = round_.shared()
    with unmoved(hand.home, "north") as north:
        early = hand.ask("north", "confirm", dealings.roster.round, AskConfirm(dealings.sites))
        assert refusal(early) == "this step does not follow the last one"
        north.tells("refused confirm: this step does not follow the last one")
    round_.masked()
    masked = Watch(hand.home, "north").journal()
    assert hand.ask_again(round_.masking("north"))[0].kind == "masked"
    assert Watch(hand.home, "north").journal() == masked
    round_.assert_honest()


def test_a_request_that_is_taken_away_is_asked_again_and_answered_once(hand: Hand, attacker: Attacker) -> None:
    round_ = hand.round()
    request, box = round_.masking("north"), hand.boxes["north"]
    hand.send(request)
    box.delete(request_key(request))
    attacker.post(box.run, request_key(request), "[]")
    gone(box, request_key(request))
    round_.assert_honest()


def test_requests_of_one_training_are_refused_in_another(
    home: Consortium, hand: Hand, attacker: Attacker, other: Hand
) -> None:
    since = len(attacker.seen)
    context = other.context()
    assert other.ask("north", "advertise", context.digest, AskAdvertise(context))[0].kind == "advert"
    with unmoved(home, "north") as north:
        join, *others = replayed(hand, attacker, [other.joining("north"), *to_north(attacker, since)])
        assert refusal(join) == "this participation is in another training"
        assert {refusal(answer) for answer in others} == {"this site has not joined this training"}
        north.tells("refused join: this participation is in another training")
        north.tells("refused advertise: this site has not joined this training")


def test_a_site_that_has_withdrawn_from_a_training_is_not_asked_through_another(
    home: Consortium, hand: Hand, attacker: Attacker, other: Hand
) -> None:
    vault = Vault(home.home.site("north") / "vault")
    vault.decide(Decision(other.training, other.plan.digest, "", "revoked"))
    vault.close()
    eventually(lambda: other.state(other.boxes["north"].run).value == "CANCELLED", 30)
    newer = other.context(attempt=2)
    with unmoved(home, "north"):
        for step, body in (("advertise", AskAdvertise(newer)), ("train", AskWork(newer))):
            request = other.request("north", step, newer.digest, body)
            attacker.send(hand.boxes["north"].run, request)
            assert refusal(hand.heard(request)) == "this site has not joined this training"


def test_two_participations_of_one_training_say_the_same_wherever_their_answers_go(
    home: Consortium, hand: Hand, attacker: Attacker
) -> None:
    """The second one's training run is the attacker's: it gets nothing there that it could not read elsewhere."""
    round_ = hand.round()
    first = hand.boxes["north"]
    elsewhere = home.client.create_flow_run(place, state=Running()).id
    second = Mailbox(home.client, hand.participate("north", 2, training_run=elsewhere))
    hand.boxes["north"] = first
    stolen = Mailbox(home.client, elsewhere)

    def also_there(request: Envelope) -> str:
        attacker.send(second.run, request)
        key = answer_key("north", request_key(request))
        return eventually(lambda: stolen.take(key).get(key), 60, 0.05)

    assert '"kind":"joined"' in also_there(hand.joining("north"))
    round_.confirmed()
    before = Watch(home, "north").journal()
    assert also_there(round_.masking("north")) == text(hand.ask_again(round_.masking("north")))
    assert Watch(home, "north").journal() == before
    round_.assert_honest()
    home.client.set_flow_run_state(elsewhere, Completed(), force=True)


def test_a_participation_that_is_renamed_goes_on(home: Consortium, hand: Hand) -> None:
    for box in hand.boxes.values():
        home.client.update_flow_run(box.run, name="../../x")
    hand.round().assert_honest()


def text(answer: tuple[Envelope, ...]) -> str:
    """An answer as the text of an input."""
    return f"[{','.join(one.to_json() for one in answer)}]"
