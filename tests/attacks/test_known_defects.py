"""What other systems got wrong in secure aggregation: one test a defect, the system named in each (PEERS)."""

import base64
import random
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from protocols import site as durable
from protocols.contexts import sha256
from protocols.encoding import CLAMPED, Segment, check_headroom, encode, vector_bytes
from protocols.errors import BadMessage, ProtocolError, Refused, RingTooSmall
from protocols.history import NO_HISTORY
from protocols.keys import Identity, public_of
from protocols.masks import Mask, apply_masks
from protocols.messages import Advert, AskConfirm, AskMask, AskReveal, AskShare, MaskedVector, Reveal, envelope, parse
from protocols.secagg_coordinator import open_roster
from protocols.secagg_site import pair_mask, self_mask_seed
from tests.attacks.hostile import (
    adverts,
    confirm_and_reveal,
    deal,
    make,
    mask,
    secrets_of,
    to_dealings,
    to_masked,
)
from tests.simulator import ROUNDING_KEY, Simulator, gone_from, plain_sum

LONG = (Segment("update", 40_000, 16, 1.0, 100.0), Segment(CLAMPED, 1, 32, 1.0, 40_000.0))


def secret_bytes(simulator: Simulator, site: str) -> dict[str, bytes]:
    walked = secrets_of(simulator.vaults[site], simulator.context.digest)
    return {name: base64.urlsafe_b64decode(text) for name, text in walked}


def stretched(*masks: Mask, segments: tuple[Segment, ...] = LONG) -> np.ndarray:
    """The masks themselves: laid on zeros."""
    vector = np.zeros(vector_bytes(segments), np.uint8)
    apply_masks(vector, segments, masks)
    return vector


def test_fedml_keys_do_not_come_from_a_seeded_generator(tmp_path: Path) -> None:
    """FedML draws its keys after np.random.seed(rank)."""
    seen = []
    for number in range(2):
        np.random.seed(1)
        random.seed(1)
        simulator, _ = make(tmp_path / str(number))
        adverts(simulator)
        for site in "abcde":
            found = secret_bytes(simulator, site)
            seen += [found["mask_secret"], found["channel_secret"]]
    assert len(set(seen)) == 2 * 5 * 2


def test_fedml_what_is_published_is_not_the_secret_key(tmp_path: Path) -> None:
    """FedML's public-key function returns the secret key."""
    simulator, _ = make(tmp_path)
    for site, message in adverts(simulator).items():
        advert, found = parse(Advert, message.body, party=site, step="advertise"), secret_bytes(simulator, site)
        assert advert.mask_key == public_of(found["mask_secret"]).hex()
        assert advert.channel_key == public_of(found["channel_secret"]).hex()
        assert {advert.mask_key, advert.channel_key}.isdisjoint(one.hex() for one in found.values())
        assert simulator.vaults[site].identity.public != simulator.vaults[site].identity.secret.hex()


def test_fedml_the_server_sees_no_share_in_the_clear(tmp_path: Path) -> None:
    """FedML sends the shares to the server as they are."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    relayed = "".join(message.to_json() for inbox in dealings.envelopes.values() for message in inbox.values())
    for site in "abcde":
        held = [one for name, one in secret_bytes(simulator, site).items() if "shares" in name]
        assert len(held) == 10
        for share in held:
            assert share.hex() not in relayed


def test_fedml_no_raw_vector_leaves_beside_the_masked_one(tmp_path: Path) -> None:
    """FedML uploads the plain weights together with the masked ones."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    answer = mask(simulator, dealings, "a", values["a"])
    assert {field.name for field in fields(parse(MaskedVector, answer.body, party="a", step="mask"))} == {
        "vector",
        "size",
    }
    masked, plain = simulator.masked("a", simulator.context.digest).tobytes(), values["a"]
    encoded = encode("a", plain, simulator.context.segments, ROUNDING_KEY).tobytes()
    raw = [array.astype(kind).tobytes() for array in map(np.asarray, plain.values()) for kind in ("<f4", "<f8")]
    for piece in [encoded[start : start + 8] for start in range(len(encoded) - 8)] + raw:
        assert piece not in masked
        assert piece.hex() not in answer.to_json()


def test_fedml_the_sum_is_right_in_every_round_whoever_drops(tmp_path: Path) -> None:
    """FedML resets a flag before it reads it: with a drop the sum is wrong, and nobody is told."""
    simulator, values = make(tmp_path)
    for number, dropped in enumerate(["e", None, "a", None, "c"], 1):
        behaviours = {dropped: gone_from("mask")} if dropped else {}
        outcome = simulator.run(values, behaviours, simulator.at(number, 1))
        expected = plain_sum(values, outcome.survivors, simulator.context.segments)
        assert {name: one.tolist() for name, one in outcome.integers.items()} == expected


def test_flower_every_bit_of_a_seed_counts() -> None:
    """Flower folds a seed to 32 bits for a Mersenne Twister: at most 2^28 masks."""
    seed = bytes(range(32))
    masks = {stretched(Mask(seed, 1))[:64].tobytes()}
    for bit in range(256):
        changed = bytearray(seed)
        changed[bit // 8] ^= 1 << bit % 8
        masks.add(stretched(Mask(bytes(changed), 1))[:64].tobytes())
    folded = [seed[start : start + 4] for start in range(0, 32, 4)]  # any order of its words folds to the same 32 bits
    masks |= {stretched(Mask(b"".join(reversed(folded)), 1))[:64].tobytes()}
    assert len(masks) == 1 + 256 + 1


def test_flower_a_short_seed_is_an_error() -> None:
    """Flower's seeds are 32 bits wide in the end; ours are 32 bytes or nothing."""
    for size in (0, 4, 16, 31, 33):
        with pytest.raises(ValueError, match=r"key size|key must be"):
            stretched(Mask(bytes(size), 1))


def test_flower_no_request_names_the_shares_that_it_wants(tmp_path: Path) -> None:
    """One request to a Flower client may list a peer as active and as dead, and obtains both of its shares."""
    assert [field.name for field in fields(AskReveal)] == ["confirmations"]
    simulator, values = make(tmp_path)
    for message in confirm_and_reveal(simulator, to_masked(simulator, values), "abce").values():
        body = parse(Reveal, message.body, party="", step="reveal")
        assert set(body.self_shares).isdisjoint(body.key_shares)


def test_flower_a_relayed_key_is_signed_by_its_owner(tmp_path: Path) -> None:
    """Flower's server relays unsigned keys, and so can put its own in their place."""
    simulator, _ = make(tmp_path)
    signed = adverts(simulator)
    mine = Advert.of(public_of(b"m" * 32).hex(), public_of(b"c" * 32).hex(), NO_HISTORY)
    server = Identity("b", simulator.coordinator.secret)
    signed["b"] = envelope(server, "advert", simulator.context.digest, "@everyone", mine)
    with pytest.raises(BadMessage, match=r"^b: advert: the signature does not verify$"):
        simulator.ask("a", "share", simulator.context.digest, AskShare(tuple(signed.values())))


@pytest.mark.parametrize("threshold", range(0, 4))
def test_flower_the_server_does_not_pick_a_low_threshold(tmp_path: Path, threshold: int) -> None:
    """Flower's server picks neighbours and threshold (test_agreed_plan.py holds it to the plan besides)."""
    simulator, _ = make(tmp_path, threshold=max(1, threshold))
    with pytest.raises(ProtocolError):
        adverts(simulator, sites=["a"])


@pytest.mark.parametrize("step", ["advertise", "share"])
def test_flower_a_drop_before_the_keys_are_shared_does_not_fail_the_round(tmp_path: Path, step: str) -> None:
    """A Flower round fails when a client drops before key sharing."""
    simulator, values = make(tmp_path)
    assert simulator.run(values, {"b": gone_from(step)}).survivors == tuple("acde")


def test_flower_weights_and_counts_are_masked_with_the_update(tmp_path: Path) -> None:
    """Flower sends num_examples and metrics in the clear: here they are segments, and no answer has room."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    first = mask(simulator, dealings, "a", values["a"])
    second = mask(simulator, dealings, "b", {**values["b"], "counts": np.array([1.0, 2.0, 3.0, 4.0])})
    assert len(first.to_json()) == len(second.to_json())
    counts = simulator.masked("b", simulator.context.digest)[-12:-4].view("<u2")
    assert counts.tolist() != [1, 2, 3, 4]


@pytest.mark.parametrize(("bits", "expansion"), [(16, 0.5), (32, 1.0), (64, 2.0)])
def test_flower_a_parameter_takes_its_rings_bytes_and_no_more(bits: int, expansion: float) -> None:
    """Flower sends 8 bytes a parameter whatever the ring."""
    assert vector_bytes([Segment("update", 1000, bits, 1.0, 10.0)]) == 1000 * 4 * expansion


def test_flower_overflow_is_an_error_before_anything_runs() -> None:
    """Flower writes a line in its log, and goes on with a wrong sum."""
    with pytest.raises(RingTooSmall, match="take a larger ring, a smaller range or a smaller scale"):
        check_headroom([Segment("update", 1, 16, 2.0**12, 8.0)], 5)


def test_openfl_nothing_is_reconstructed_before_the_vectors_are_masked(tmp_path: Path) -> None:
    """OpenFL's aggregator rebuilds every seed and key before the training has begun."""
    simulator, _ = make(tmp_path)
    dealings = to_dealings(simulator)
    for step, body in (("confirm", AskConfirm(tuple("abcde"))), ("reveal", AskReveal(()))):
        for site in "abcde":
            with pytest.raises(Refused, match="does not follow"):
                simulator.ask(site, step, dealings.roster.round, body)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_openfl_every_element_has_a_mask_of_its_own(bits: int) -> None:
    """OpenFL adds one random number to a whole tensor: differences within it stay in the clear."""
    segments = (Segment("update", 4000, bits, 1.0, 10.0),)
    ring = stretched(Mask(bytes(range(32)), 1), segments=segments).view(f"<u{bits // 8}")
    differences = np.diff(ring)
    assert len(set(differences.tolist())) > 3800
    assert len(set(ring.tolist())) > 3800


def test_openfl_a_mask_belongs_to_its_round(tmp_path: Path) -> None:
    """OpenFL's masks have no round in them: equal keys would give equal masks. Ours differ even then."""
    simulator, _ = make(tmp_path)
    roster = to_dealings(simulator).roster
    rounds = [roster.round, sha256("another round")]
    assert len({pair_mask(b"s" * 32, "a", "b", roster.adverts["b"], digest).seed for digest in rounds}) == 2
    assert len({self_mask_seed(b"s" * 32, digest, "a") for digest in rounds}) == 2


def test_fed_biomed_one_pad_serves_one_vector_and_no_two_stretches_of_it(tmp_path: Path) -> None:
    """Fed-BioMed's LOM pads several vectors of a round alike, one of them known: a many-time pad."""
    segments = (
        Segment("one", 64, 32, 1.0, 10.0),
        Segment("two", 64, 32, 1.0, 10.0),
        Segment("three", 64, 16, 1.0, 10.0),
    )
    pad = stretched(Mask(bytes(range(32)), 1), segments=segments)
    pieces = [pad[start : start + 16].tobytes() for start in range(0, len(pad), 16)]
    assert len(set(pieces)) == len(pieces)
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    mask(simulator, dealings, "a", values["a"])
    with pytest.raises(Refused):
        mask(simulator, dealings, "a", {name: np.zeros_like(array) for name, array in values["a"].items()})


def test_fed_biomed_a_failed_round_is_not_repeated_with_the_old_pad(tmp_path: Path) -> None:
    """Fed-BioMed repeats a failed round with its old pad: the difference of the updates is in the clear."""
    simulator, values = make(tmp_path)
    zeros = {name: np.zeros_like(array) for name, array in values["a"].items()}
    pads = []
    for attempt in (1, 2, 3):
        context = simulator.at(1, attempt)
        mask(simulator, to_dealings(simulator, context), "a", zeros)
        pads.append(simulator.masked("a", context.digest))
    for one, other in combinations(pads, 2):
        assert np.mean(one == other) < 0.1


def test_flare_no_two_sites_share_a_key(tmp_path: Path) -> None:
    """FLARE has one homomorphic key for all clients: whoever leaks it opens every vector."""
    simulator, values = make(tmp_path)
    to_masked(simulator, values)
    own = ("mask_secret", "channel_secret", "seed")
    found = [one for site in "abcde" for name, one in secret_bytes(simulator, site).items() if name in own]
    assert len(set(found)) == 15
    assert len(set(simulator.context.sites.values())) == 5


def test_fate_a_masked_vector_is_uniform_in_its_ring(tmp_path: Path) -> None:
    """FATE adds real numbers without a modulus: large inputs show through. Here zeros and maxima look alike."""
    simulator, _ = make(tmp_path)
    for number, value in enumerate((0.0, 100.0, -100.0), 1):
        from dataclasses import replace

        context = replace(simulator.at(number, 1), segments=LONG)
        mask(simulator, to_dealings(simulator, context), "a", {"update": np.full(40_000, value)})
        vector = simulator.masked("a", context.digest)
        assert vector.dtype == np.uint8
        counts = np.bincount(vector, minlength=256)
        expected = len(vector) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 140 < chi_square < 400  # 255 degrees of freedom: beyond this once in 10^9


def test_fate_signatures_are_not_digests(tmp_path: Path) -> None:
    """FATE "signs" with MD5, which anybody can compute."""
    simulator, _ = make(tmp_path)
    message = adverts(simulator)["a"]
    assert len(bytes.fromhex(message.signature)) == 64
    again = envelope(
        Identity.generate("a"),
        message.kind,
        message.context,
        message.receiver,
        parse(Advert, message.body, party="a", step="advertise"),
        message.answers,
    )
    assert again.signed_bytes == message.signed_bytes
    assert again.signature != message.signature


def test_secretflow_and_appfl_one_partys_secrets_do_not_unmask_the_others(tmp_path: Path) -> None:
    """SecretFlow and APPFL derive all masks from one shared secret. Here one site's keys open its own pairs alone."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    roster, segments = dealings.roster, simulator.context.segments
    held = secret_bytes(simulator, "e")
    vector = simulator.masked("a", simulator.context.digest)
    known = pair_mask(held["mask_secret"], "e", "a", roster.adverts["a"], roster.round)
    apply_masks(vector, segments, [known])
    plain = encode("a", values["a"], segments, ROUNDING_KEY)
    assert np.mean(vector == plain) < 0.2


def test_secretflow_and_appfl_a_round_survives_a_drop_after_masking_began(tmp_path: Path) -> None:
    """SecretFlow and APPFL cannot recover the masks of who has dropped."""
    simulator, values = make(tmp_path)
    outcome = simulator.run(values, {"c": gone_from("mask")})
    expected = plain_sum(values, tuple("abde"), simulator.context.segments)
    assert {name: one.tolist() for name, one in outcome.integers.items()} == expected


def test_all_a_retry_reuses_the_answer_not_the_mask(tmp_path: Path) -> None:
    """Every system read: an orchestrator's retry runs the step again, with the same mask on a new vector."""
    simulator, values = make(tmp_path)
    dealings = deal(simulator, open_roster(simulator.context, adverts(simulator).values()))
    body = AskMask(dealings.inbox("a"))
    request = envelope(simulator.coordinator, "ask/mask", dealings.roster.round, "a", body)
    rng = np.random.default_rng(3)
    first = durable.mask(simulator.vaults["a"], simulator.consortium, request, values["a"], rng.bytes(32))
    vector = simulator.masked("a", simulator.context.digest)
    for _ in range(3):
        again = durable.mask(simulator.vaults["a"], simulator.consortium, request, values["a"], rng.bytes(32))
        assert again == first
        noisy = {name: array + rng.normal(size=array.shape) for name, array in values["a"].items()}
        with pytest.raises(Refused):
            durable.mask(simulator.vaults["a"], simulator.consortium, request, noisy, rng.bytes(32))
    assert np.array_equal(simulator.masked("a", simulator.context.digest), vector)
