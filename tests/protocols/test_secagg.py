"""A whole secure sum, end to end: it equals the integer sum of the encoded inputs, and one changed byte is noticed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import secagg_coordinator, secagg_site
from protocols.contexts import AttemptContext, sha256
from protocols.encoding import CLAMPED, Segment, add, encode, vector_bytes
from protocols.errors import BadMessage, BelowThreshold
from protocols.history import NO_HISTORY
from protocols.keys import Consortium, Identity
from protocols.messages import COORDINATOR, AskConfirm, AskMask, AskReveal, AskShare, Envelope, Reveal, envelope
from protocols.secagg_coordinator import Dealings
from protocols.secagg_site import Masked, Shared
from tests.simulator import Simulator, plain_sum, small_segments

KEY = bytes(range(32))


@dataclass(frozen=True)
class Dealt:
    """A round after ``share``: the sites' states and what the coordinator holds."""

    identities: Mapping[str, Identity]
    states: Mapping[str, Shared]
    dealings: Dealings


def dealt(sites: int, threshold: int, segments: tuple[Segment, ...]) -> Dealt:
    """Advertise and share with the pure functions."""
    names = [f"site-{number:02}" for number in range(sites)]
    identities = {name: Identity.generate(name) for name in names}
    keys = {name: identity.public for name, identity in identities.items()}
    consortium = Consortium(Identity.generate(COORDINATOR).public, keys)
    context = AttemptContext("training", "trial", 1, 1, sha256("p"), keys, threshold, 1, sha256("m"), segments, {})
    advertised = {
        name: secagg_site.advertise(identity, consortium, context, NO_HISTORY) for name, identity in identities.items()
    }
    roster = secagg_coordinator.open_roster(context, (advert for _, advert in advertised.values()))
    shared = {
        name: secagg_site.share(identities[name], state, AskShare(roster.envelopes))
        for name, (state, _) in advertised.items()
    }
    dealings = secagg_coordinator.inboxes(roster, {name: messages for name, (_, messages) in shared.items()})
    return Dealt(identities, {name: state for name, (state, _) in shared.items()}, dealings)


def masked(round_: Dealt, vectors: Mapping[str, np.ndarray]) -> dict[str, Masked]:
    """Mask each vector in place."""
    return {
        name: secagg_site.mask(
            round_.identities[name], round_.states[name], AskMask(round_.dealings.inbox(name)), vectors[name]
        )[0]
        for name in vectors
    }


def revealed(round_: Dealt, states: Mapping[str, Masked]) -> list[Envelope]:
    """Confirm and reveal among the sites that masked."""
    survivors = tuple(sorted(states))
    confirmed = {
        name: secagg_site.confirm(round_.identities[name], state, AskConfirm(survivors))
        for name, state in states.items()
    }
    request = AskReveal(tuple(message for _, message in confirmed.values()))
    return [secagg_site.reveal(round_.identities[name], state, request) for name, (state, _) in confirmed.items()]


@pytest.mark.parametrize(("sites", "threshold"), [(3, 3), (4, 3), (7, 5)])
def test_a_round_of_honest_sites_gives_the_sum_of_their_encoded_values(
    tmp_path: Path, sites: int, threshold: int
) -> None:
    simulator = Simulator(tmp_path, [f"site-{number}" for number in range(sites)], threshold=threshold)
    values = simulator.random_values(np.random.default_rng(sites), simulator.context.segments)
    outcome = simulator.run(values)
    simulator.close()
    assert outcome.survivors == tuple(simulator.vaults)
    assert outcome.faults == ()
    expected = plain_sum(values, outcome.survivors, simulator.context.segments)
    assert {name: whole.tolist() for name, whole in outcome.integers.items()} == expected
    assert expected[CLAMPED] != [0]


@settings(max_examples=20)
@given(st.data())
def test_any_encoded_vectors_add_up_whoever_drops_out_above_the_threshold(data: st.DataObject) -> None:
    segments = small_segments()
    sites = data.draw(st.integers(3, 5))
    threshold = data.draw(st.integers(sites // 2 + 2, sites))
    round_ = dealt(sites, threshold, segments)
    gone = data.draw(st.sets(st.sampled_from(round_.dealings.sites), max_size=sites - threshold))
    whole = st.binary(min_size=vector_bytes(segments), max_size=vector_bytes(segments))
    vectors = {
        name: np.frombuffer(data.draw(whole), np.uint8).copy() for name in round_.dealings.sites if name not in gone
    }
    expected = np.zeros(vector_bytes(segments), np.uint8)
    for vector in vectors.values():
        add(expected, vector, segments)

    states = masked(round_, vectors)
    total = secagg_coordinator.sum_vectors(round_.dealings.roster.context, vectors.values())
    recovered = secagg_coordinator.recover_masks(round_.dealings, tuple(vectors), revealed(round_, states))
    secagg_coordinator.unmask(total, round_.dealings.roster.context, recovered)
    assert total.tobytes() == expected.tobytes()


def test_a_masked_vector_looks_like_noise_and_no_two_are_alike() -> None:
    segments = (Segment("x", 4096, 32, 1.0, 1.0), Segment(CLAMPED, 1, 32, 1.0, 100.0))
    round_ = dealt(3, 3, segments)
    vectors = {name: encode(name, {"x": np.zeros(4096)}, segments, KEY) for name in round_.dealings.sites}
    masked(round_, vectors)
    for vector in vectors.values():
        counts = np.bincount(vector, minlength=256)
        expected = vector.nbytes / 256
        # Chi squared with 255 degrees of freedom: its mean is 255 and 10 standard deviations are 226.
        assert float(((counts - expected) ** 2 / expected).sum()) < 255 + 226
    one, two, three = vectors.values()
    assert not (one == two).all()
    assert not (two == three).all()


def test_the_sum_of_masked_vectors_is_noise_until_the_self_masks_are_taken_out() -> None:
    segments = small_segments()
    round_ = dealt(3, 3, segments)
    vectors = {name: np.zeros(vector_bytes(segments), np.uint8) for name in round_.dealings.sites}
    states = masked(round_, vectors)
    context = round_.dealings.roster.context
    total = secagg_coordinator.sum_vectors(context, vectors.values())
    recovered = secagg_coordinator.recover_masks(round_.dealings, tuple(vectors), revealed(round_, states))
    assert total.any()
    secagg_coordinator.unmask(total, context, replace(recovered, masks=recovered.masks[:-1]))
    assert total.any()
    secagg_coordinator.unmask(total, context, replace(recovered, masks=recovered.masks[-1:]))
    assert not total.any()


def test_one_changed_byte_of_a_masked_vector_changes_the_sum_there_alone() -> None:
    segments = small_segments()
    round_ = dealt(3, 3, segments)
    vectors = {name: np.zeros(vector_bytes(segments), np.uint8) for name in round_.dealings.sites}
    states = masked(round_, vectors)
    vectors["site-01"][0] += 1
    total = secagg_coordinator.sum_vectors(round_.dealings.roster.context, vectors.values())
    recovered = secagg_coordinator.recover_masks(round_.dealings, tuple(vectors), revealed(round_, states))
    secagg_coordinator.unmask(total, round_.dealings.roster.context, recovered)
    assert total.any()
    assert not total[8:].any()


def spoiled(message: Envelope) -> Envelope:
    """The same message with a changed body under the old signature."""
    return replace(message, body=message.body.replace('"sealed":"', '"sealed":"00'))


def test_a_share_that_was_changed_on_its_way_to_the_coordinator_names_the_dealer() -> None:
    round_ = dealt(3, 3, small_segments())
    messages = list(round_.dealings.envelopes["site-00"].values())
    messages[1] = spoiled(messages[1])
    with pytest.raises(BadMessage, match=r"^site-00: share: the signature does not verify$"):
        secagg_coordinator.check_dealing(round_.dealings.roster, "site-00", messages)


def test_a_share_that_was_changed_on_its_way_to_a_site_names_the_dealer_and_masks_nothing() -> None:
    round_ = dealt(3, 3, small_segments())
    inbox = round_.dealings.inbox("site-01")
    vector = np.zeros(vector_bytes(small_segments()), np.uint8)
    request = AskMask((spoiled(inbox[0]), *inbox[1:]))
    with pytest.raises(BadMessage, match=r"^site-00: share: the signature does not verify$"):
        secagg_site.mask(round_.identities["site-01"], round_.states["site-01"], request, vector)
    assert not vector.any()


def test_a_reveal_with_one_changed_digit_is_set_aside_with_its_sender_named() -> None:
    segments = small_segments()
    round_ = dealt(4, 3, segments)
    vectors = {name: np.zeros(vector_bytes(segments), np.uint8) for name in round_.dealings.sites}
    reveals = revealed(round_, masked(round_, vectors))
    body = json.loads(reveals[0].body)
    share = body["self_shares"]["site-02"]
    body["self_shares"]["site-02"] = ("1" if share[0] == "0" else "0") + share[1:]
    lie = Reveal(body["self_shares"], body["key_shares"])
    reveals[0] = envelope(round_.identities["site-00"], "reveal", reveals[0].context, COORDINATOR, lie)
    recovered = secagg_coordinator.recover_masks(round_.dealings, tuple(vectors), reveals)
    (fault,) = recovered.faults
    assert str(fault) == "site-00: reveal: the self-mask share of site-02 does not match its commitment"
    with pytest.raises(BelowThreshold, match=r"2 good reveals, 3 are needed; site-00: reveal"):
        secagg_coordinator.recover_masks(round_.dealings, tuple(vectors), reveals[:3])
