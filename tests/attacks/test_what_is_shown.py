"""A coordinator that shows different things to different sites reads nothing (SPEC 2.3).

Positive controls beside them: the same decoding reads the one sum that an honest round is meant to give.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocols.encoding import Segment, add, encode, integers
from protocols.errors import BadMessage, BelowThreshold, ProtocolError
from protocols.masks import Mask, apply_masks
from protocols.messages import AskAdvertise, AskMask, AskShare, Confirmation, envelope
from protocols.secagg_coordinator import open_roster
from protocols.secagg_site import pair_mask, self_mask_seed
from tests.attacks.hostile import (
    adverts,
    confirm,
    confirm_and_reveal,
    deal,
    make,
    mask,
    readable,
    reveal,
    to_dealings,
    to_masked,
)
from tests.simulator import ROUNDING_KEY


@pytest.mark.parametrize("survivors", ["abcde", "abcd", "acde"])
def test_an_honest_round_gives_its_one_sum_and_no_other(tmp_path: Path, survivors: str) -> None:
    """The dropped site's vector is known to the coordinator, and stays noise."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    reveals = confirm_and_reveal(simulator, dealings, survivors)
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in "abcde"}
    assert readable(simulator, values, dealings, vectors, reveals.values()) == {tuple(survivors)}


def test_one_colluder_beside_the_coordinator_adds_no_sum(tmp_path: Path) -> None:
    """The colluder e signs and reveals what is wanted, both kinds of each share that it holds; the honest do not."""
    from protocols.messages import Reveal
    from tests.attacks.hostile import secrets_of

    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    reveals = list(confirm_and_reveal(simulator, dealings, "abcde").values())
    import base64

    held = {"self_shares": {}, "key_shares": {}}
    for name, text in secrets_of(simulator.vaults["e"], simulator.context.digest):
        kind, _, dealer = name.partition(" ")
        if kind in held:
            held[kind][dealer] = base64.urlsafe_b64decode(text).hex()
    assert len(held["key_shares"]) == 5
    everything = envelope(
        simulator.vaults["e"].identity, "reveal", dealings.roster.round, "@coordinator", Reveal(**held)
    )
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in "abcde"}
    read = readable(simulator, values, dealings, vectors, [*reveals[:4], everything])
    assert read == {tuple("abcde")}


CHANGES = {
    "model": {"model": "ab" * 32},
    "threshold": {"threshold": 5},
    "colluding": {"colluding": 2, "threshold": 4},
    "attempt": {"attempt": 2},
    "purpose": {"purpose": "evaluation"},
}


@pytest.mark.parametrize("change", [*CHANGES, "segments", "sites"])
def test_sites_that_were_shown_different_contexts_do_not_take_each_others_adverts(tmp_path: Path, change: str) -> None:
    simulator, _ = make(tmp_path)
    base = simulator.context
    if change == "segments":
        other = replace(base, segments=(Segment("wide", 3, 64, 2.0**21, 1000.0), *base.segments[1:]))
    elif change == "sites":
        other = replace(base, sites={site: key for site, key in base.sites.items() if site != "e"})
    else:
        other = replace(base, **CHANGES[change])
    assert other.digest != base.digest
    mine, theirs = adverts(simulator, base, "ab"), adverts(simulator, other, "cd")
    with pytest.raises(BadMessage, match="c: advert: the message's context is not the expected one"):
        simulator.ask("a", "share", base.digest, AskShare((*mine.values(), *theirs.values())))
    with pytest.raises(BelowThreshold):
        simulator.ask("a", "share", base.digest, AskShare(tuple(mine.values())))
    relabelled = [replace(advert, context=base.digest) for advert in theirs.values()]
    with pytest.raises(BadMessage, match="c: advert: the signature does not verify"):
        simulator.ask("a", "share", base.digest, AskShare((*mine.values(), *relabelled)))


def test_every_field_of_the_context_changes_its_digest(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    base = simulator.context
    first, *rest = base.segments
    changed = [replace(base, **change) for change in CHANGES.values()]
    changed += [replace(base, training="other"), replace(base, round=2), replace(base, plan="ab" * 32)]
    changed += [
        replace(base, segments=(replace(first, **change), *rest))
        for change in ({"name": "w"}, {"length": 4}, {"bits": 32}, {"scale": 2.0}, {"max_abs": 9.0})
    ]
    changed += [replace(base, segments=(*rest, first)), replace(base, sites={**base.sites, "f": "ab" * 32})]
    digests = {context.digest for context in (base, *changed)}
    assert len(digests) == 1 + len(changed) - 0


def test_masks_made_for_different_rounds_do_not_cancel(tmp_path: Path) -> None:
    """Had a site been talked past the checks, its sum would be noise: every mask is bound to the round context."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    roster, segments = dealings.roster, simulator.context.segments
    secret = bytes(range(32))
    one = pair_mask(secret, "a", "b", roster.adverts["b"], roster.round)
    other = pair_mask(secret, "a", "b", roster.adverts["b"], "0" * 64)
    assert one.seed != other.seed
    assert self_mask_seed(secret, roster.round, "a") != self_mask_seed(secret, "0" * 64, "a")
    total = encode("a", values["a"], segments, ROUNDING_KEY)
    plain = integers(total.copy(), segments)["wide"].tolist()
    apply_masks(total, segments, [one, Mask(one.seed, -1)])
    assert integers(total, segments)["wide"].tolist() == plain  # the control: in one round they do
    apply_masks(total, segments, [one, Mask(other.seed, -1)])
    assert integers(total, segments)["wide"].tolist() != plain


def test_sites_that_were_shown_different_rosters_do_not_take_each_others_shares(tmp_path: Path) -> None:
    """Six sites: a–d see U1 = abcdef, e–f see abcdef less a; the colluder signs in both."""
    simulator, values = make(tmp_path, "abcdef", threshold=4)
    signed = adverts(simulator)
    whole = open_roster(simulator.context, signed.values())
    other = open_roster(simulator.context, [signed[site] for site in "bcdef"])
    assert whole.round != other.round
    first = deal(simulator, whole, "abcd")
    ask = AskShare(other.envelopes)
    theirs = {site: simulator.ask(site, "share", simulator.context.digest, ask) for site in "ef"}
    strange = [message for messages in theirs.values() for message in messages if message.receiver == "b"]
    inbox = [first.envelopes[dealer]["b"] for dealer in "abcd"]
    with pytest.raises(BadMessage, match="e: share: the message's context"):
        simulator.ask("b", "mask", whole.round, AskMask((*inbox, strange[0])), values["b"])
    for site in "bcd":  # nor can they be moved to the other roster
        with pytest.raises(ProtocolError):
            simulator.ask(site, "share", simulator.context.digest, ask)


@pytest.mark.parametrize("left_out", ["e", "f"])
def test_different_inboxes_give_only_the_one_sum_or_noise(tmp_path: Path, left_out: str) -> None:
    """a masks without ``left_out``, the others with it. Nothing but the sum over the one survivor set may come out."""
    simulator, values = make(tmp_path, "abcdef", threshold=4)
    dealings = to_dealings(simulator)
    narrow = [site for site in "abcdef" if site != left_out]
    mask(simulator, dealings, "a", values["a"], dealers=narrow)
    for site in "bcdef":
        mask(simulator, dealings, site, values[site])
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in "abcdef"}
    confirmations = [confirm(simulator, dealings, narrow, site) for site in narrow]
    reveals = [reveal(simulator, dealings, confirmations, site) for site in narrow]
    assert set(simulator_body(reveals[0])) == set()
    read = readable(simulator, values, dealings, vectors, reveals, {"a": narrow})
    assert read <= {tuple(narrow)}
    with pytest.raises(ProtocolError):
        confirm(simulator, dealings, "abcdef", "a")


def simulator_body(message: object) -> object:
    from tests.attacks.hostile import body_of

    return body_of(message).key_shares  # type: ignore[arg-type]


def test_an_inbox_cannot_shrink_to_one_honest_site(tmp_path: Path) -> None:
    """With one colluder (e) every inbox still holds three honest sites, whose pair masks nobody else knows."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    with pytest.raises(BelowThreshold):
        mask(simulator, dealings, "a", values["a"], dealers="ade")
    mask(simulator, dealings, "a", values["a"], dealers="abce")
    vectors = {"a": simulator.masked("a", simulator.context.digest)}
    assert readable(simulator, values, dealings, vectors, [], {"a": "abce"}) == set()


def test_a_survivor_set_that_a_lone_site_confirms_opens_nothing(tmp_path: Path) -> None:
    """The coordinator and its colluder cannot make up the confirmations of the honest."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    survivors = ("a", "b", "c", "e")
    mine = confirm(simulator, dealings, survivors, "a")
    colluder = simulator.vaults["e"].identity
    body = Confirmation(survivors)
    theirs = envelope(colluder, "confirmation", dealings.roster.round, "@everyone", body)
    made_up = [replace(theirs, sender=site) for site in "bc"]
    for messages in ([mine, theirs], [mine, theirs, *made_up], [mine, mine, mine, theirs]):
        with pytest.raises(ProtocolError):
            reveal(simulator, dealings, messages, "a")


def test_a_second_attempt_adds_nothing_to_the_first(tmp_path: Path) -> None:
    """Attempt 1 was masked by all and not confirmed; attempt 2 is finished: only its sum is read."""
    simulator, values = make(tmp_path)
    first = to_masked(simulator, values)
    old = {site: simulator.masked(site, simulator.context.digest) for site in "abcde"}
    second = simulator.at(1, 2)
    dealings = to_masked(simulator, values, second)
    reveals = confirm_and_reveal(simulator, dealings, "abcd").values()
    new = {site: simulator.masked(site, second.digest) for site in "abcde"}
    assert readable(simulator, values, dealings, new, reveals) == {tuple("abcd")}
    assert readable(simulator, values, first, old, reveals) == set()
    mixed = {site: new[site] - old[site] for site in "abcde"}
    assert readable(simulator, values, dealings, mixed, reveals) == set()


def test_a_single_masked_vector_less_all_the_others_is_noise(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    reveals = confirm_and_reveal(simulator, dealings, "abcde").values()
    segments = simulator.context.segments
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in "abcde"}
    rest = np.zeros_like(vectors["a"])
    for site in "bcde":
        add(rest, vectors[site], segments)
    assert readable(simulator, values, dealings, {"a": rest}, reveals) == set()


def test_a_context_is_signed_for_what_it_says(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    with pytest.raises(ProtocolError, match="signed for another context"):
        simulator.ask("a", "advertise", simulator.at(2, 1).digest, AskAdvertise(simulator.context))
