"""Rule 2: of each peer a site reveals the self-mask share or the key share, never both (SPEC 8)."""

import json
from pathlib import Path

import pytest

from protocols.errors import BadMessage, BelowThreshold, ProtocolError, Refused
from protocols.messages import Confirmation, envelope
from tests.attacks.hostile import (
    adverts,
    body_of,
    confirm,
    confirm_and_reveal,
    make,
    mask,
    reopen,
    reveal,
    secrets_of,
    to_dealings,
    to_masked,
)


def test_one_reveal_holds_one_kind_of_share_of_each_site(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    for message in confirm_and_reveal(simulator, dealings, "abcd").values():
        body = body_of(message)
        assert set(body.self_shares) == set("abcd")
        assert set(body.key_shares) == {"e"}


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_request_for_the_other_kind_gives_the_first_answer(tmp_path: Path, restart: bool) -> None:
    """The colluder e signs two survivor sets; the honest a answers only for the one that it has confirmed."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    first = confirm_and_reveal(simulator, dealings, "abcd")["a"]
    if restart:
        reopen(simulator, "a")
    digest, other = dealings.roster.round, ("a", "b", "c", "e")
    for identity in [simulator.vaults[site].identity for site in "abce"]:
        forged = [envelope(identity, "confirmation", digest, "@everyone", Confirmation(other))]
        assert reveal(simulator, dealings, forged, "a").body == first.body
    with pytest.raises(Refused, match="answered before"):
        confirm(simulator, dealings, other, "a")


def test_confirmations_of_another_set_open_nothing(tmp_path: Path) -> None:
    """Even all other sites together cannot make a site reveal for a set that it has not confirmed."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirm(simulator, dealings, "abcd", "a")
    other = ("a", "b", "c", "e")
    forged = [
        envelope(
            simulator.vaults[site].identity, "confirmation", dealings.roster.round, "@everyone", Confirmation(other)
        )
        for site in "bce"
    ]
    for message in forged:
        with pytest.raises(BadMessage):
            reveal(simulator, dealings, [message], "a")
    with pytest.raises(ProtocolError):
        reveal(simulator, dealings, forged, "a")


def test_nothing_is_revealed_before_the_site_has_confirmed(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcde", site) for site in "bcde"]
    for restart in (False, True):
        if restart:
            reopen(simulator, "a")
        with pytest.raises(Refused, match="does not follow"):
            reveal(simulator, dealings, confirmations, "a")


def test_too_few_confirmations_open_nothing_and_repeated_ones_do_not_count(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcde", site) for site in "abcde"]
    with pytest.raises(BelowThreshold, match="3 of 4"):
        reveal(simulator, dealings, confirmations[:3], "a")
    with pytest.raises(BadMessage, match="c: reveal: this sender appears twice"):
        reveal(simulator, dealings, [*confirmations[:3], confirmations[2]], "a")
    assert reveal(simulator, dealings, confirmations[1:], "a")


def test_a_confirmation_of_a_site_outside_the_survivors_does_not_count(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcd", site) for site in "abc"]
    outsider = envelope(
        simulator.vaults["e"].identity, "confirmation", dealings.roster.round, "@everyone", Confirmation(tuple("abcd"))
    )
    with pytest.raises(BadMessage, match="e: reveal: this sender is not expected here"):
        reveal(simulator, dealings, [*confirmations, outsider], "a")


def test_a_site_that_was_dropped_reveals_nothing(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcd", site) for site in "abcd"]
    with pytest.raises(Refused, match="lacks this site"):
        confirm(simulator, dealings, "abcd", "e")
    with pytest.raises(Refused, match="does not follow"):
        reveal(simulator, dealings, confirmations, "e")


def test_two_contexts_give_shares_of_different_secrets(tmp_path: Path) -> None:
    """One kind in each of two attempts is safe only because no secret lives in both."""
    simulator, values = make(tmp_path)
    first = to_masked(simulator, values)
    before = dict(secrets_of(simulator.vaults["a"], simulator.context.digest))
    second = to_masked(simulator, values, simulator.at(1, 2))
    after = dict(secrets_of(simulator.vaults["a"], simulator.at(1, 2).digest))
    assert len(before) == len(after) == 3 + 2 * 5
    assert not set(before.values()) & set(after.values())
    for dealings in (first, second):
        for dealer, inbox in dealings.envelopes.items():
            assert dealer in inbox


@pytest.mark.parametrize("restart", [False, True])
def test_an_older_attempt_reveals_nothing_after_a_newer_one(tmp_path: Path, restart: bool) -> None:
    simulator, values = make(tmp_path)
    first = to_masked(simulator, values)
    adverts(simulator, simulator.at(1, 2), ["a"])
    if restart:
        reopen(simulator, "a")
    with pytest.raises(Refused, match="over"):
        confirm(simulator, first, "abcde", "a")
    confirmations = [confirm(simulator, first, "abcde", site) for site in "bcde"]
    with pytest.raises(Refused, match="over"):
        reveal(simulator, first, confirmations, "a")


def test_a_reveal_of_one_round_is_of_no_use_in_the_next(tmp_path: Path) -> None:
    from protocols.secagg_coordinator import recover_masks

    simulator, values = make(tmp_path)
    first = confirm_and_reveal(simulator, to_masked(simulator, values), "abcde")
    dealings = to_masked(simulator, values, simulator.at(2, 1))
    with pytest.raises(BelowThreshold, match="the message's context is not the expected one"):
        recover_masks(dealings, "abcde", first.values())


def test_a_site_opens_only_shares_that_were_sealed_to_it(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    stolen = dealings.envelopes["b"]["c"]
    own = [dealings.envelopes[dealer]["a"] for dealer in "acde"]
    from protocols.messages import AskMask

    for message in (stolen, envelope_to("a", stolen)):
        with pytest.raises(BadMessage, match="b: share: "):
            simulator.ask("a", "mask", dealings.roster.round, AskMask((*own, message)), values["a"])
    assert mask(simulator, dealings, "a", values["a"])


def envelope_to(receiver: str, message: object) -> object:
    """Readdress an envelope without its sender's key."""
    from dataclasses import replace

    return replace(message, receiver=receiver)  # type: ignore[type-var]


def test_a_colluding_dealer_cannot_pass_on_a_share_sealed_to_another(tmp_path: Path) -> None:
    """The dealer b signs c's ciphertext for a: a's key does not open it, and b is named."""
    from protocols.messages import AskMask, SealedShare

    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    identity = simulator.vaults["b"].identity
    stolen = SealedShare(**json.loads(dealings.envelopes["b"]["c"].body))
    resigned = envelope(identity, "share", dealings.roster.round, "a", stolen)
    own = [dealings.envelopes[dealer]["a"] for dealer in "acde"]
    with pytest.raises(BadMessage, match="b: mask: the sealed share does not open"):
        simulator.ask("a", "mask", dealings.roster.round, AskMask((*own, resigned)), values["a"])
