"""Rule 4: what a site refuses, whatever the coordinator says and whoever signs (SPEC 8)."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from protocols.contexts import AttemptContext, sha256
from protocols.encoding import CLAMPED, Segment
from protocols.errors import BadMessage, BelowThreshold, ProtocolError, Refused, RingTooSmall
from protocols.history import NO_HISTORY
from protocols.keys import Consortium, Identity, public_of
from protocols.messages import (
    COORDINATOR,
    Advert,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    envelope,
)
from protocols.vault import Vault
from tests.attacks.hostile import adverts, make, to_dealings, to_masked
from tests.simulator import Simulator, durable


def join(simulator: Simulator, context: AttemptContext, site: str = "a") -> None:
    simulator.ask(site, "advertise", context.digest, AskAdvertise(context))


def refused_for_good(simulator: Simulator, context: AttemptContext, error: type[ProtocolError], reason: str) -> None:
    """The refusal names the site, and nothing of the context is left in the vault."""
    with pytest.raises(error, match=reason) as caught:
        join(simulator, context)
    assert caught.value.party in ("a", "plan")
    assert simulator.vaults["a"].find(context.digest) is None
    join(simulator, simulator.context)


@pytest.mark.parametrize("threshold, colluding", [(3, 1), (2, 1), (1, 1), (6, 1), (4, 3), (5, 5), (4, 4)])
def test_an_unsafe_threshold(tmp_path: Path, threshold: int, colluding: int) -> None:
    simulator, _ = make(tmp_path)
    context = replace(simulator.context, threshold=threshold, colluding=colluding)
    refused_for_good(simulator, context, Refused, "threshold|colluding")


def test_a_roster_without_the_site(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    others = {site: key for site, key in simulator.context.sites.items() if site != "a"}
    refused_for_good(simulator, replace(simulator.context, sites=others), Refused, "does not hold this site")


@pytest.mark.parametrize("name", ["b", "stranger"])
def test_an_identity_key_that_is_not_in_the_consortium(tmp_path: Path, name: str) -> None:
    simulator, _ = make(tmp_path)
    keys = {**simulator.context.sites, name: Identity.generate(name).public}
    context = replace(simulator.context, sites=keys, threshold=5)
    refused_for_good(simulator, context, Refused, f"the identity key of {name}")


def test_one_key_under_two_names(tmp_path: Path) -> None:
    """A consortium file that lists one key twice gives one site two votes; not with us."""
    simulator, _ = make(tmp_path)
    key = simulator.context.sites["b"]
    simulator.consortium = Consortium(simulator.coordinator.public, {**simulator.consortium.sites, "twin": key})
    context = replace(simulator.context, sites={**simulator.context.sites, "twin": key})
    refused_for_good(simulator, context, Refused, "two sites of the roster have one identity key")


def test_another_key_of_its_own(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    honest, other = simulator.consortium, Identity.generate("a").public
    simulator.consortium = Consortium(honest.coordinator, {**honest.sites, "a": other})
    context = replace(simulator.context, sites={**simulator.context.sites, "a": other})
    with pytest.raises(Refused, match="gives this site another identity key"):
        join(simulator, context)


def test_another_plan_than_the_one_agreed_to(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    refused_for_good(simulator, replace(simulator.context, plan=sha256("other")), Refused, "not the plan")
    assert not simulator.vaults["a"].agree("trial", sha256("other"))
    with pytest.raises(Refused, match="not the plan"):
        join(simulator, replace(simulator.context, training="never-agreed", attempt=2))


@pytest.mark.parametrize(
    "names", [("update",), (CLAMPED, "update"), ("update", "update", CLAMPED), (CLAMPED, CLAMPED), ()]
)
def test_a_malformed_segment_table(tmp_path: Path, names: tuple[str, ...]) -> None:
    simulator, _ = make(tmp_path)
    table = tuple(Segment(name, 1, 32, 1.0, 10.0) for name in names)
    refused_for_good(simulator, replace(simulator.context, segments=table), Refused, "the segment table")


@pytest.mark.parametrize(
    "segment",
    [
        Segment("update", 1, 16, 1.0, 6553.0),
        Segment("update", 1, 16, 6553.0, 1.0),
        Segment("update", 1, 32, 2.0**20, 500.0),
        Segment("update", 1, 64, 2.0**62, 1.0),
        Segment("update", 1, 64, 2.0**62, 2.0**62),
    ],
)
def test_a_ring_without_headroom_and_the_numbers_are_said(tmp_path: Path, segment: Segment) -> None:
    simulator, _ = make(tmp_path)
    context = replace(simulator.context, segments=(segment, simulator.context.segments[-1]))
    refused_for_good(simulator, context, RingTooSmall, rf"5 sites x .* = \d+ does not stay below 2\^{segment.bits - 1}")


def test_headroom_is_refused_from_the_very_first_element_too_many() -> None:
    from protocols.encoding import check_headroom

    for bits, sites in ((16, 5), (32, 7), (16, 3)):
        most = (2 ** (bits - 1) - 1) // sites - 1
        check_headroom([Segment("update", 1, bits, 1.0, float(most))], sites)
        with pytest.raises(RingTooSmall):
            check_headroom([Segment("update", 1, bits, 1.0, float(most + 1))], sites)


def requests(simulator: Simulator) -> dict[str, tuple[str, object]]:
    """A good request for each step, once every site has masked."""
    dealings = to_dealings(simulator)
    roster = dealings.roster
    return {
        "advertise": (simulator.context.digest, AskAdvertise(simulator.context)),
        "share": (simulator.context.digest, AskShare(roster.envelopes)),
        "mask": (roster.round, AskMask(dealings.inbox("a"))),
        "confirm": (roster.round, AskConfirm(tuple("abcde"))),
        "reveal": (roster.round, AskReveal(())),
    }


def call(simulator: Simulator, step: str, request: Envelope, values: dict) -> object:
    if step == "mask":
        return durable.mask(simulator.vaults["a"], simulator.consortium, request, values["a"], bytes(32))
    return getattr(durable, step)(simulator.vaults["a"], simulator.consortium, request)


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "confirm", "reveal"])
def test_a_request_of_another_signer_receiver_context_or_kind(tmp_path: Path, step: str) -> None:
    simulator, values = make(tmp_path)
    context, body = requests(simulator)[step]
    coordinator, kind = simulator.coordinator, f"ask/{step}"
    peer = simulator.vaults["b"].identity
    good = envelope(coordinator, kind, context, "a", body)
    bad = {
        "the signature does not verify": [
            envelope(Identity.generate(COORDINATOR), kind, context, "a", body),
            envelope(Identity(COORDINATOR, peer.secret), kind, context, "a", body),
            replace(good, body=good.body + " "),
            replace(good, signature=envelope(coordinator, kind, context, "b", body).signature),
            replace(good, context="0" * 64),
        ],
        "the message's sender is not the expected one": [envelope(peer, kind, context, "a", body)],
        "the message's receiver is not the expected one": [
            envelope(coordinator, kind, context, "b", body),
            envelope(coordinator, kind, context, "@everyone", body),
        ],
        "the message's kind is not the expected one": [envelope(coordinator, "ask/other", context, "a", body)],
    }
    for reason, messages in bad.items():
        for message in messages:
            with pytest.raises(BadMessage, match=reason):
                call(simulator, step, message, values)
    with pytest.raises(Refused, match=r"another context|not advertised in this context"):
        call(simulator, step, envelope(coordinator, kind, "1" * 64, "a", body), values)


@pytest.mark.parametrize("step", ["share", "mask", "confirm", "reveal"])
def test_attempt_and_round_context_do_not_stand_in_for_each_other(tmp_path: Path, step: str) -> None:
    simulator, values = make(tmp_path)
    asked = requests(simulator)
    right, body = asked[step]
    wrong = asked["mask" if step == "share" else "share"][0]
    assert right != wrong
    with pytest.raises(Refused, match="signed for another context"):
        call(simulator, step, envelope(simulator.coordinator, f"ask/{step}", wrong, "a", body), values)


def forge(simulator: Simulator, site: str, **changes: str) -> Envelope:
    keys = {"mask_key": public_of(bytes(32)).hex(), "channel_key": public_of(bytes(32)).hex()}
    advert = Advert(**{**keys, **asdict(NO_HISTORY), **changes})
    return envelope(simulator.vaults[site].identity, "advert", simulator.context.digest, "@everyone", advert)


def swap(simulator: Simulator, signed: dict[str, Envelope], site: str, advert: Envelope) -> None:
    ask = AskShare(tuple({**signed, site: advert}.values()))
    simulator.ask("a", "share", simulator.context.digest, ask)


def test_forged_swapped_repeated_and_foreign_adverts(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    signed = adverts(simulator)
    stranger = Identity.generate("stranger")
    body = Advert.of("0" * 63 + "9", "0" * 63 + "9", NO_HISTORY)
    cases = {
        "b: advert: the signature": replace(signed["b"], body=signed["c"].body),
        "b: advert: the signature does": replace(signed["c"], sender="b"),
        "c: roster: this sender appears twice": signed["c"],
        "stranger: roster: this sender is not": envelope(
            stranger, "advert", simulator.context.digest, "@everyone", body
        ),
        "b: advert: the message's context": envelope(
            simulator.vaults["b"].identity, "advert", simulator.at(1, 2).digest, "@everyone", body
        ),
        "b: advert: the message's receiver": envelope(
            simulator.vaults["b"].identity, "advert", simulator.context.digest, "a", body
        ),
        "b: advert: the message does not parse": envelope(
            simulator.vaults["b"].identity, "advert", simulator.context.digest, "@everyone", AskConfirm(("a",))
        ),
    }
    for reason, message in cases.items():
        with pytest.raises(BadMessage, match=reason):
            swap(simulator, signed, "b", message)
    with pytest.raises(Refused, match="own advert"):
        swap(simulator, signed, "a", forge(simulator, "a"))
    without_me = tuple(advert for site, advert in signed.items() if site != "a")
    with pytest.raises(Refused, match="own advert"):
        simulator.ask("a", "share", simulator.context.digest, AskShare(without_me))
    with pytest.raises(BelowThreshold, match="3 sites advertised, 4 are needed"):
        simulator.ask("a", "share", simulator.context.digest, AskShare(tuple(signed.values())[:3]))
    simulator.ask("a", "share", simulator.context.digest, AskShare(tuple(signed.values())))


SMALL_ORDER = [  # all points of order 1, 2, 4 and 8 of Curve25519 and its twist (cr.yp.to/ecdh.html#validate)
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "cdeb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
    "4c9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
]


@pytest.mark.parametrize("point", SMALL_ORDER[:7])
@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_a_key_of_small_order_is_refused_and_its_sender_named(tmp_path: Path, field: str, point: str) -> None:
    simulator, _ = make(tmp_path)
    signed = adverts(simulator)
    for high_bit in (0, 0x80):  # the top bit is ignored by X25519, so it must not help
        key = bytearray.fromhex(point)
        key[31] |= high_bit
        with pytest.raises(BadMessage, match="b: advertise: an advertised key gives no shared secret"):
            swap(simulator, signed, "b", forge(simulator, "b", **{field: key.hex()}))


@pytest.mark.parametrize("count", [1, 3])
def test_an_inbox_below_the_threshold(tmp_path: Path, count: int) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    with pytest.raises(BelowThreshold, match=f"{count} sites have shared, 4 are needed"):
        simulator.ask("a", "mask", dealings.roster.round, AskMask(dealings.inbox("a")[:count]), values["a"])


def test_an_inbox_without_the_sites_own_share_or_with_one_twice(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    inbox = dealings.inbox("a")
    with pytest.raises(Refused, match="own share is missing"):
        simulator.ask("a", "mask", dealings.roster.round, AskMask(inbox[1:]), values["a"])
    with pytest.raises(BadMessage, match="b: mask: this sender appears twice"):
        simulator.ask("a", "mask", dealings.roster.round, AskMask((*inbox, inbox[1])), values["a"])


def test_shares_and_masks_of_an_earlier_round_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    old = to_masked(simulator, values)
    new = to_dealings(simulator, simulator.at(2, 1))
    for replayed in old.sites[1:]:
        inbox = [new.envelopes[dealer]["a"] for dealer in new.sites if dealer != replayed]
        with pytest.raises(BadMessage, match=f"{replayed}: share: the message's context"):
            ask = AskMask((*inbox, old.envelopes[replayed]["a"]))
            simulator.ask("a", "mask", new.roster.round, ask, values["a"])


def test_a_vault_without_identity_or_with_a_second_one(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "new")
    with pytest.raises(ValueError, match="no identity"):
        _ = vault.identity
    vault.keep_identity(Identity.generate("a"))
    with pytest.raises(ValueError, match="already has an identity"):
        vault.keep_identity(Identity.generate("a"))
