"""Signing, agreement, derivation and sealing: RFC 8032, 7748, 5869 and NIST's GCM vectors through our own doors."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.keys import NONCE_BYTES, Identity, InvalidKey, agree, derive, framed, public_of, seal, unseal, verify
from tests.vectors.load import outside

X25519 = outside("x25519")
GCM = outside("aes256_gcm")
SECRETS = st.binary(min_size=32, max_size=32)
# The u-coordinates of small order: 0, 1, two of order 8, p - 1, and p and p + 1, which are 0 and 1 again.
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
    2**255 - 19,
    2**255 - 18,
]


def hexes(case: dict[str, str], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


def section(case: dict[str, str]) -> str:
    return case.get("section") or case["test"]


@pytest.mark.parametrize("case", X25519["scalar_multiplication"])
def test_agreement_gives_the_products_of_rfc_7748(case: dict[str, str]) -> None:
    scalar, u, output = hexes(case, "scalar", "u", "output")
    assert agree(scalar, u) == output


def test_a_thousand_agreements_in_a_row_end_where_rfc_7748_says() -> None:
    start, after_1, after_1000 = hexes(X25519["iterated"], "start", "after_1", "after_1000")
    scalar = u = start
    for count in range(1, 1001):
        scalar, u = agree(scalar, u), scalar
        if count == 1:
            assert scalar == after_1
    assert scalar == after_1000


def test_alice_and_bob_of_rfc_7748_agree() -> None:
    names = ("alice_secret", "alice_public", "bob_secret", "bob_public", "shared")
    alice, alice_public, bob, bob_public, shared = hexes(X25519["diffie_hellman"], *names)
    assert (public_of(alice), public_of(bob)) == (alice_public, bob_public)
    assert agree(alice, bob_public) == agree(bob, alice_public) == shared


@given(SECRETS, SECRETS)
def test_two_parties_agree_on_one_secret(ours: bytes, theirs: bytes) -> None:
    assert agree(ours, public_of(theirs)) == agree(theirs, public_of(ours))


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_public_key_of_small_order_is_refused(point: int) -> None:
    with pytest.raises(InvalidKey):
        agree(bytes(range(32)), point.to_bytes(32, "little"))


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidKey):
        agree(bytes(range(32)), bytes(31))


@pytest.mark.parametrize("case", outside("hkdf_sha256")["cases"], ids=section)
def test_derived_keys_start_as_the_output_of_rfc_5869(case: dict[str, str]) -> None:
    ikm, salt, info, okm = hexes(case, "ikm", "salt", "info", "okm")
    assert derive(ikm, salt=salt, info=info) == okm[:32]


@given(SECRETS, SECRETS, st.binary(max_size=64), st.integers(0, 2), st.integers(0, 255))
def test_a_derived_key_depends_on_every_bit_of_its_inputs(
    secret: bytes, salt: bytes, info: bytes, which: int, bit: int
) -> None:
    key = derive(secret, salt=salt, info=b"info" + info)
    inputs = [secret, salt, b"info" + info]
    inputs[which] = flip(inputs[which], bit)
    assert derive(inputs[0], salt=inputs[1], info=inputs[2]) != key


@pytest.mark.parametrize("case", outside("ed25519")["cases"], ids=section)
def test_signatures_are_those_of_rfc_8032(case: dict[str, str]) -> None:
    secret, message, signature = hexes(case, "secret", "message", "signature")
    identity = Identity("site", secret)
    assert identity.public == case["public"]
    assert identity.sign(message) == signature
    verify(case["public"], message, signature)


@pytest.mark.parametrize("case", outside("ed25519")["cases"], ids=section)
def test_no_signature_of_rfc_8032_verifies_once_a_bit_is_flipped(case: dict[str, str]) -> None:
    message, signature, public = hexes(case, "message", "signature", "public")
    with pytest.raises(InvalidKey):
        verify(case["public"], message + b"\0", signature)
    with pytest.raises(InvalidKey):
        verify(case["public"], message, signature[:-1])
    for bit in range(0, 512, 37):
        with pytest.raises(InvalidKey):
            verify(case["public"], message, flip(signature, bit))
        with pytest.raises(InvalidKey):
            verify(flip(public, bit).hex(), message, signature)


@given(SECRETS, st.binary(), st.integers(0))
def test_a_signature_verifies_for_its_message_alone(secret: bytes, message: bytes, bit: int) -> None:
    identity = Identity("site", secret)
    signature = identity.sign(message)
    verify(identity.public, message, signature)
    with pytest.raises(InvalidKey):
        verify(identity.public, flip(message or b"\0", bit), signature)


def test_an_identity_does_not_print_its_secret() -> None:
    identity = Identity("site", b"0123456789abcdef" * 2)
    assert "0123" not in f"{identity} {identity!r}"


@pytest.mark.parametrize("case", GCM["cases"], ids=section)
def test_sealing_gives_nists_ciphertext_and_unsealing_its_plaintext(case: dict[str, str]) -> None:
    names = ("key", "iv", "plaintext", "associated", "ciphertext", "tag")
    key, iv, plaintext, associated, ciphertext, tag = hexes(case, *names)
    assert seal(key, plaintext, associated, lambda _: iv) == iv + ciphertext + tag
    assert unseal(key, iv + ciphertext + tag, associated) == plaintext


@pytest.mark.parametrize("case", GCM["must_fail"], ids=section)
def test_what_nist_says_must_fail_does_not_open(case: dict[str, str]) -> None:
    key, iv, associated, ciphertext, tag = hexes(case, "key", "iv", "associated", "ciphertext", "tag")
    with pytest.raises(InvalidKey):
        unseal(key, iv + ciphertext + tag, associated)


@given(SECRETS, st.binary(max_size=99), st.binary(max_size=99), st.integers(0))
def test_a_sealed_text_opens_unless_a_bit_is_flipped(key: bytes, plaintext: bytes, associated: bytes, bit: int) -> None:
    sealed = seal(key, plaintext, associated)
    assert unseal(key, sealed, associated) == plaintext
    with pytest.raises(InvalidKey):
        unseal(key, flip(sealed, bit), associated)
    with pytest.raises(InvalidKey):
        unseal(key, sealed, associated + b"\0")
    with pytest.raises(InvalidKey):
        unseal(flip(key, bit), sealed, associated)


@given(SECRETS, st.binary(max_size=40))
def test_bytes_that_nobody_sealed_do_not_open(key: bytes, sealed: bytes) -> None:
    with pytest.raises(InvalidKey):
        unseal(key, sealed, b"")


def test_sealing_twice_uses_two_nonces() -> None:
    key = bytes(32)
    assert seal(key, b"text", b"")[:NONCE_BYTES] != seal(key, b"text", b"")[:NONCE_BYTES]


@given(st.lists(st.binary(max_size=9)))
def test_framed_parts_can_be_read_back_so_that_no_two_lists_are_alike(parts: list[bytes]) -> None:
    text, found = framed(*parts), list[Any]()
    while text:
        length = int.from_bytes(text[:4], "little")
        found.append(text[4 : 4 + length])
        text = text[4 + length :]
    assert found == parts


def flip(text: bytes, bit: int) -> bytes:
    """Flip one bit, counted around the end."""
    place = bit % (8 * len(text))
    return text[: place // 8] + bytes([text[place // 8] ^ 1 << place % 8]) + text[place // 8 + 1 :]
