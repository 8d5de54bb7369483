"""Whoever has the coordinator's key gets one sum a round, of the survivors that it names first, or none."""

import pytest

from protocols.messages import AskAdvertise, AskConfirm, AskMask, AskReveal
from tests.hostile.hand import Hand, forged, refusal, unmoved

pytestmark = pytest.mark.slow


def test_a_confirmed_round_is_not_made_again_by_a_second_coordinator_with_the_true_key(hand: Hand) -> None:
    round_ = hand.round()
    round_.confirmed()
    with unmoved(hand.home, "north") as north:
        again = hand.context(attempt=2)
        assert "it can be finished, not restarted" in refusal(
            hand.ask("north", "advertise", again.digest, AskAdvertise(again))
        )
        hand.number += 1
        onward = hand.context(model=round_.context.model)
        assert "no other sum is made from it" in refusal(
            hand.ask("north", "advertise", onward.digest, AskAdvertise(onward))
        )
        north.tells("refused advertise: ")
    round_.assert_honest()


def test_a_survivor_set_and_shares_that_break_a_rule_are_refused(hand: Hand) -> None:
    round_ = hand.round()
    dealings = round_.shared()
    context, inbox = dealings.roster.round, dealings.inbox("north")
    east = dealings.envelopes["east"]["north"]
    with unmoved(hand.home, "north"):
        for shares, reason in (
            ((), "this site's own share is missing"),
            (inbox[:2], "sites have shared, 3 are needed"),
            ((*inbox, east), "this sender appears twice"),
            ((*inbox[1:], dealings.envelopes["east"]["south"]), "not the expected one"),
            ((*inbox[1:], forged(east, body="{}")), "the signature does not verify"),
        ):
            said = refusal(hand.ask("north", "mask", context, AskMask(shares)))
            assert reason in said or "own share" in said
    round_.masked()
    with unmoved(hand.home, "north"):
        for survivors, reason in (
            (("north", "east"), "2 survivors, 3 are needed"),
            (("east", "south", "west"), "lacks this site"),
            (("north", "north", "east", "south"), "names a site twice"),
            (("north", "east", "nobody"), "a site that did not share"),
        ):
            assert reason in refusal(hand.ask("north", "confirm", context, AskConfirm(survivors)))
    said = tuple(round_.confirmed().values())
    with unmoved(hand.home, "north"):
        for confirmations in (said[:2], (*said[:2], said[1]), (*said[:2], forged(said[2], body='{"survivors":[]}'))):
            assert refusal(hand.ask("north", "reveal", context, AskReveal(confirmations)))
    round_.assert_honest()
