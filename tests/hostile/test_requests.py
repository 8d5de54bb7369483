"""A site's mailbox, where anybody can write: what the coordinator has not signed, to this site, now, changes nothing.

All attacks come in the midst of one round, with the Prefect API and all that has passed there, and without a key of the
consortium. When they are over, the round is finished, and its sum is the honest one.
"""

import pickle

import pytest

from flows.mailbox import request_key
from flows.messages import AskFinish, AskJoin, AskWork, join_context
from protocols.messages import AskAdvertise, Envelope, envelope
from tests.hostile.hand import Attacker, Hand, Round, forged, gone, keys, memory, refusal, signed_by, unmoved
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow


def attack(hand: Hand, attacker: Attacker, request: Envelope) -> str:
    """Put a request into north's mailbox; gives the reason for which it is refused."""
    attacker.send(hand.boxes["north"].run, request)
    return refusal(hand.heard(request, "north"))


FORGERIES = {
    "without a signature": lambda attacker, true: forged(true, signature="0" * 128),
    "signed by the attacker": lambda attacker, true: signed_by(attacker.key, true),
    "of another kind": lambda attacker, true: forged(true, kind="ask/confirm"),
    "with another body": lambda attacker, true: forged(true, body='{"shares":[]}'),
    "with one space more": lambda attacker, true: forged(true, body=true.body + " "),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_request_is_refused(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round, forgery: str
) -> None:
    request = FORGERIES[forgery](attacker, standing.masking("north"))
    with unmoved(home, "north") as north:
        assert attack(hand, attacker, request) == "the signature does not verify"
        north.tells(f"refused {request.kind[4:]}: the signature does not verify")


def test_a_request_of_another_context_is_refused(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    request = forged(standing.masking("north"), context="0" * 64)
    with unmoved(home, "north") as north:
        assert "has not advertised in this context" in attack(hand, attacker, request)
        north.tells("refused mask: this site has not advertised in this context")


def test_a_request_for_another_site_is_refused(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    with unmoved(home, "north") as north:
        assert "receiver is not the expected one" in attack(hand, attacker, standing.masking("east"))
        north.tells("refused mask: the message's receiver is not the expected one")


def test_a_request_for_an_unlisted_task_is_refused_before_it_is_imported(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    plan = hand.plan.model_copy(update={"task": "os:system"})
    ask = AskJoin(hand.training, plan.to_json())
    request = envelope(attacker.key, "ask/join", join_context(hand.training, plan.digest), "north", ask)
    with unmoved(home, "north") as north:
        assert attack(hand, attacker, request) == "the signature does not verify"
        north.tells("refused join: the signature does not verify")


def test_a_forged_end_of_the_training_erases_nothing(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    context = join_context(hand.training, hand.plan.digest)
    request = envelope(attacker.key, "ask/finish", context, "north", AskFinish(hand.training))
    with unmoved(home, "north") as north:
        assert attack(hand, attacker, request) == "the signature does not verify"
        north.tells("refused finish: the signature does not verify")


def test_a_forged_attempt_does_not_supersede_the_true_one(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    newer = hand.context(attempt=7)
    with unmoved(home, "north") as north:
        for step, body in (("advertise", AskAdvertise(newer)), ("train", AskWork(newer))):
            request = envelope(attacker.key, f"ask/{step}", newer.digest, "north", body)
            assert attack(hand, attacker, request) == "the signature does not verify"
            north.tells(f"refused {step}: the signature does not verify")


def test_an_answer_sent_back_as_a_request_is_refused(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    with unmoved(home, "north") as north:
        for advert in standing.advertised().envelopes:
            assert attack(hand, attacker, advert) == "this site knows no such step"
        north.tells("refused advert: this site knows no such step")


def test_a_request_under_another_s_key_is_deleted(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    box, key = hand.boxes["north"], "ask-" + "0" * 40
    with unmoved(home, "north") as north:
        attacker.post(box.run, key, f"[{standing.masking('north').to_json()}]")
        gone(box, key)
        north.tells(f"deleted {key}, which is no request: it lies under the key of another")
    assert keys(hand.answers) == []


def two(true: Envelope) -> str:
    """Two requests in one text."""
    return f"[{true.to_json()},{true.to_json()}]"


NO_REQUESTS = {
    "nothing": lambda true: "",
    "an empty list": lambda true: "[]",
    "two requests": two,
    "no list": lambda true: true.to_json(),
    "half a request": lambda true: f"[{true.to_json()}"[:-40],
    "one field more": lambda true: f'[{true.to_json()[:-1]},"run":"os:system"}}]',
    "a field twice": lambda true: f'[{true.to_json()[:-1]},"kind":"ask/{"x" * 40}"}}]',
    "a number for a text": lambda true: f"[{true.to_json()}]".replace('"@coordinator"', "1e400"),
    "deep JSON": lambda true: "[" * 65_000,
    "deep objects": lambda true: '{"a":' * 13_000,
    "a pickle": lambda true: pickle.dumps(print, 0).decode("latin-1"),
    "a record of Prefect's": lambda true: '{"metadata":{"serializer":{"type":"pickle"}},"result":"gA=="}',
    "NUL and DEL": lambda true: "\x00\x7f" * 100,
    "emoji": lambda true: "\U0001f600" * 10_000,
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_what_is_no_request_is_deleted_with_a_line_in_the_log(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round, what: str
) -> None:
    request = standing.masking("north")
    key, box = request_key(request), hand.boxes["north"]
    with unmoved(home, "north") as north:
        attacker.post(box.run, key, NO_REQUESTS[what](request))
        gone(box, key)
        north.tells(f"deleted {key}, which is no request: ")
    assert keys(hand.answers) == []


def test_a_hundred_megabytes_are_deleted_unread_and_cost_the_site_no_memory(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    key, box = request_key(standing.masking("north")), hand.boxes["north"]
    process = hand.process("north")
    before = memory(process)
    with unmoved(home, "north") as north:
        attacker.post(box.run, key, "x" * 100_000_000)
        gone(box, key, 120)
        north.tells(f"deleted an input that is no message, unread: {key}")
    assert memory(process) - before < 32_000_000


@pytest.mark.parametrize(("value", "count"), [("x", 20), ("x" * 500_000, 3)])
def test_a_key_that_the_server_never_deletes_is_in_nobody_s_way(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round, value: str, count: int
) -> None:
    with unmoved(home, "north") as north:
        for number in range(count):
            attacker.post(hand.boxes["north"].run, f"ask-{number}-{len(value)}\n", value)
        true = forged(standing.masking("north"), signature="1" * 128)
        assert attack(hand, attacker, true) == "the signature does not verify"
        north.tells(rf"deleted an input that is no message, unread: 'ask-0-{len(value)}\n'")


def test_a_flood_of_messages_is_worked_off_and_the_true_ones_are_read(
    home: Consortium, hand: Hand, attacker: Attacker, standing: Round
) -> None:
    with unmoved(home, "north"):
        for number in range(50):
            attacker.post(hand.boxes["north"].run, f"ask-{number}", "[]")
        assert attack(hand, attacker, forged(standing.masking("north"), signature="2" * 128))
        gone(hand.boxes["north"], "ask-49")
