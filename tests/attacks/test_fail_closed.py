"""Rule 5: a typed error that names who is to blame, never a silent wrong sum (SPEC 9)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocols import secagg_coordinator as coordinator
from protocols import shamir
from protocols.errors import BadDealer, BadInput, BadMessage, BelowThreshold, Refused
from protocols.keys import seal
from protocols.messages import (
    AskMask,
    Envelope,
    MaskedVector,
    Reveal,
    SealedShare,
    envelope,
    parse,
)
from protocols.secagg_coordinator import Dealings
from protocols.secagg_site import _channel, _channel_key, commit
from tests.attacks.hostile import body_of, confirm_and_reveal, make, mask, to_dealings, to_masked
from tests.simulator import Behaviour, Simulator, gone_from, plain_sum


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_nan_and_infinity_name_the_site_and_leave_nothing(tmp_path: Path, poison: float, place: int) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    bad = np.array(values["b"]["update"])
    bad[place] = poison
    with pytest.raises(BadInput, match=r"^b: encode: segment update holds NaN or infinity$"):
        mask(simulator, dealings, "b", {**values["b"], "update": bad})
    assert not simulator.vaults["b"].masked_path(simulator.context.digest).exists()


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), (1, 5), (0,), ()])
def test_a_wrong_shape_names_the_site_and_the_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    with pytest.raises(BadInput, match=r"^b: encode: segment update has shape \(.*\), not \(5,\)$"):
        mask(simulator, dealings, "b", {**values["b"], "update": np.zeros(shape)})


@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "clamped"])
def test_wrong_segments_are_refused_and_blame_no_data(tmp_path: Path, change: str) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    mine = dict(values["b"])
    if change in ("missing", "renamed"):
        mine.pop("update")
    if change != "missing":
        mine["clamped" if change == "clamped" else "other"] = np.zeros(5)
    with pytest.raises(Refused, match=r"^b: encode: this site has not done its local work for this attempt$"):
        mask(simulator, dealings, "b", mine)


def test_values_beyond_the_range_are_clamped_and_counted_not_wrapped(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    huge = {site: {name: np.full(np.shape(array), 1e30) for name, array in one.items()} for site, one in values.items()}
    outcome = simulator.run(huge)
    assert outcome.integers["counts"].tolist() == [5 * 500] * 4
    assert outcome.integers["clamped"].tolist() == [5 * 12]


def resigned(simulator: Simulator, site: str, message: Envelope, **changes: object) -> Envelope:
    """What the liar ``site`` signs instead of its honest reveal."""
    body = replace(body_of(message), **changes)
    return envelope(simulator.vaults[site].identity, "reveal", message.context, "@coordinator", body)


def flip(share: str) -> str:
    return f"{int(share[0], 16) ^ 1:x}{share[1:]}"


@pytest.mark.parametrize("kind, dealer", [("self_shares", "b"), ("self_shares", "a"), ("key_shares", "e")])
def test_a_wrong_share_blames_its_revealer_and_the_rest_suffice(tmp_path: Path, kind: str, dealer: str) -> None:
    sites = "abcdef"
    simulator, values = make(tmp_path, sites, threshold=4)
    dealings = to_masked(simulator, values)
    survivors = tuple("abcdf")
    reveals = confirm_and_reveal(simulator, dealings, survivors)
    held = getattr(body_of(reveals["b"]), kind)
    reveals["b"] = resigned(simulator, "b", reveals["b"], **{kind: {**held, dealer: flip(held[dealer])}})
    recovered = coordinator.recover_masks(dealings, survivors, reveals.values())
    word = "self-mask" if kind == "self_shares" else "key"
    assert [str(fault) for fault in recovered.faults] == [
        f"b: reveal: the {word} share of {dealer} does not match its commitment"
    ]
    total = coordinator.sum_vectors(
        simulator.context, (simulator.masked(site, simulator.context.digest) for site in survivors)
    )
    coordinator.unmask(total, simulator.context, recovered)
    from protocols.encoding import integers

    expected = plain_sum(values, survivors, simulator.context.segments)
    assert {name: one.tolist() for name, one in integers(total, simulator.context.segments).items()} == expected


def test_too_many_wrong_shares_end_in_an_error_that_names_each_liar(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    reveals = confirm_and_reveal(simulator, dealings, "abcde")
    for liar in "bd":
        held = body_of(reveals[liar]).self_shares
        reveals[liar] = resigned(simulator, liar, reveals[liar], self_shares={**held, "a": flip(held["a"])})
    with pytest.raises(BelowThreshold) as caught:
        coordinator.recover_masks(dealings, tuple("abcde"), reveals.values())
    assert "3 good reveals, 4 are needed" in str(caught.value)
    for liar in "bd":
        assert f"{liar}: reveal: the self-mask share of a does not match" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: replace(body, self_shares={}),
        lambda body: replace(body, self_shares={site: body.self_shares[site] for site in "abcd"}),
        lambda body: replace(body, key_shares={"e": body.self_shares["e"]}),
        lambda body: replace(body, self_shares={**body.self_shares, "zz": body.self_shares["e"]}),
    ],
)
def test_an_incomplete_reveal_blames_its_revealer(tmp_path: Path, change: Callable[[Reveal], Reveal]) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    reveals = confirm_and_reveal(simulator, dealings, "abcde")
    identity = simulator.vaults["b"].identity
    lie = envelope(identity, "reveal", dealings.roster.round, "@coordinator", change(body_of(reveals["b"])))
    recovered = coordinator.recover_masks(dealings, tuple("abcde"), {**reveals, "b": lie}.values())
    assert [fault.party for fault in recovered.faults] == ["b"]


def lying_dealer(simulator: Simulator, dealings: Dealings, dealer: str, which: str) -> Dealings:
    """Let ``dealer`` deal shares of another secret, sealed and committed to as they should be."""
    vault, roster = simulator.vaults[dealer], dealings.roster
    import base64
    import json

    found = vault.find(simulator.context.digest)
    assert found is not None
    state = json.loads(found.state or "")["state"]["advertised"]
    channel_secret = base64.urlsafe_b64decode(state["channel_secret"])
    forged = shamir.split(bytes(range(32)), threshold=4, holders=len(roster.sites))
    envelopes, bodies = dict(dealings.envelopes[dealer]), dict(dealings.shares[dealer])
    for receiver, false in zip(roster.sites, forged, strict=True):
        key = _channel_key(channel_secret, roster.adverts[receiver], roster.round, dealer, receiver)
        from protocols.keys import unseal

        associated = _channel(roster.round, dealer, receiver)
        honest = bodies[receiver]
        plain = unseal(key, bytes.fromhex(honest.sealed), associated)
        self_share, key_share = (false, plain[33:]) if which == "self" else (plain[:33], false)
        body = SealedShare(
            seal(key, self_share + key_share, associated).hex(),
            honest.seed_commitment,
            commit(roster.round, "self share", dealer, receiver, self_share),
            commit(roster.round, "key share", dealer, receiver, key_share),
        )
        bodies[receiver] = body
        envelopes[receiver] = envelope(vault.identity, "share", roster.round, receiver, body)
    return replace(
        dealings,
        envelopes={**dealings.envelopes, dealer: envelopes},
        shares={**dealings.shares, dealer: bodies},
    )


@pytest.mark.parametrize("which, survivors", [("self", "abcde"), ("key", "abcd"), ("self", "abce")])
def test_matching_shares_of_another_secret_blame_the_dealer(tmp_path: Path, which: str, survivors: str) -> None:
    """The dealer is e where it survives or drops out, c where it survives: nobody else is named."""
    simulator, values = make(tmp_path)
    dealer = "e"
    dealings = lying_dealer(simulator, to_dealings(simulator), dealer, which)
    for site in "abcde":
        mask(simulator, dealings, site, values[site])
    reveals = confirm_and_reveal(simulator, dealings, survivors)
    what = "self-mask seed" if which == "self" else "masking key"
    with pytest.raises(BadDealer, match=f"^e: unmask: the shares do not give the {what}"):
        coordinator.recover_masks(dealings, tuple(survivors), reveals.values())


def test_a_share_that_does_not_match_its_commitment_blames_the_dealer_at_the_receiver(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    honest = parse(SealedShare, dealings.envelopes["c"]["a"].body, party="c", step="share")
    for field in ("self_commitment", "key_commitment"):
        lie = replace(honest, **{field: flip(getattr(honest, field))})
        message = envelope(simulator.vaults["c"].identity, "share", dealings.roster.round, "a", lie)
        inbox = [dealings.envelopes[dealer]["a"] for dealer in "abde"]
        with pytest.raises(BadMessage, match=r"^c: mask: the sealed share does not match its commitment$"):
            simulator.ask("a", "mask", dealings.roster.round, AskMask((*inbox, message)), values["a"])


@pytest.mark.parametrize("sealed", ["", "00" * 11, "00" * 12, "00" * 28, "00" * 94])
def test_a_sealed_text_of_any_length_is_a_bad_message(tmp_path: Path, sealed: str) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    honest = parse(SealedShare, dealings.envelopes["c"]["a"].body, party="c", step="share")
    lie = replace(honest, sealed=sealed)
    message = envelope(simulator.vaults["c"].identity, "share", dealings.roster.round, "a", lie)
    inbox = [dealings.envelopes[dealer]["a"] for dealer in "abde"]
    with pytest.raises(BadMessage, match=r"^c: mask: the sealed share does not open$"):
        simulator.ask("a", "mask", dealings.roster.round, AskMask((*inbox, message)), values["a"])


def test_a_dealer_that_skips_repeats_or_contradicts_itself_is_named(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    dealings = to_dealings(simulator)
    mine = list(dealings.envelopes["c"].values())
    other_seed = replace(dealings.shares["c"]["a"], seed_commitment="0" * 64)
    contradiction = envelope(simulator.vaults["c"].identity, "share", dealings.roster.round, "a", other_seed)
    for lie in (mine[:-1], [*mine, mine[0]], [], [contradiction, *(m for m in mine if m.receiver != "a")]):
        with pytest.raises(BadMessage, match=r"^c: share: "):
            coordinator.check_dealing(dealings.roster, "c", lie)


def test_a_masked_vector_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    honest = mask(simulator, dealings, "c", values["c"])
    size = parse(MaskedVector, honest.body, party="c", step="mask").size
    for wrong in (0, size - 1, size + 1, 2**63):
        lie = envelope(
            simulator.vaults["c"].identity, "masked", honest.context, "@coordinator", MaskedVector("0" * 64, wrong)
        )
        with pytest.raises(BadMessage, match=r"^c: mask: the masked vector has the wrong size$"):
            coordinator.check_masked(dealings, "c", lie)
    with pytest.raises(BadMessage, match=r"^c: masked: the signature does not verify$"):
        coordinator.check_masked(dealings, "c", replace(honest, body=honest.body.replace('"size"', ' "size"')))


def test_below_the_threshold_names_who_is_missing_and_why(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    liar = Behaviour(lies={"mask": lambda answer: (replace(answer[0], signature="0" * 128),)})
    with pytest.raises(BelowThreshold) as caught:
        simulator.run(values, {"b": gone_from("mask"), "d": liar})
    assert str(caught.value) == (
        "coordinator: mask: 3 sites, 4 are needed (b: not reached; d: d: masked: the signature does not verify)"
    )


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "confirm", "reveal"])
def test_two_silent_sites_of_five_end_the_round_at_any_step(tmp_path: Path, step: str) -> None:
    simulator, values = make(tmp_path)
    with pytest.raises(BelowThreshold, match=rf"{step}: 3 sites, 4 are needed \(a, e: not reached\)"):
        simulator.run(values, {"a": gone_from(step), "e": gone_from(step)})


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "confirm"])
def test_a_liar_is_dropped_and_the_sum_over_the_others_is_right(tmp_path: Path, step: str) -> None:
    simulator, values = make(tmp_path)
    liar = Behaviour(lies={step: lambda answer: tuple(replace(one, signature="0" * 128) for one in answer)})
    outcome = simulator.run(values, {"c": liar})
    survivors = tuple("abcde") if step == "confirm" else tuple("abde")
    assert outcome.survivors == survivors
    expected = plain_sum(values, survivors, simulator.context.segments)
    assert {name: one.tolist() for name, one in outcome.integers.items()} == expected
