"""Masks: NIST's blocks of AES-256 through our keystream, masks that cancel, and seeds that differ by a bit."""

from dataclasses import dataclass

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from protocols.masks import CHUNK_BYTES, Mask, apply_masks, keystream
from tests.vectors.load import outside

VECTORS = outside("aes256_ctr")
SEED = bytes(range(32))


@dataclass(frozen=True)
class Stretch:
    """A ring and its bytes on the wire."""

    bits: int
    size: int


STRETCHES = st.lists(
    st.builds(lambda bits, length: Stretch(bits, bits // 8 * length), st.sampled_from((16, 32, 64)), st.integers(1, 9)),
    min_size=1,
    max_size=5,
)
MASKS = st.lists(st.builds(Mask, st.binary(min_size=32, max_size=32), st.sampled_from((1, -1))), max_size=4)


def ecb(key: bytes, plaintext: bytes) -> bytes:
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(plaintext)  # noqa: S305 - the reference


def masked(stretches: list[Stretch], masks: list[Mask], start: bytes | None = None) -> bytes:
    size = sum(stretch.size for stretch in stretches)
    vector = np.frombuffer(start or bytes(size), np.uint8).copy()
    apply_masks(vector, stretches, masks)
    return vector.tobytes()


def test_the_zero_keys_stream_is_the_blocks_of_gcms_test_cases_13_and_14() -> None:
    known = VECTORS["zero_key"]
    assert keystream(bytes.fromhex(known["key"]))(48).hex() == "".join(known["blocks"])


@pytest.mark.parametrize("case", VECTORS["first_blocks"], ids=lambda case: case["section"])
def test_a_stream_starts_with_nists_cipher_of_the_zero_block(case: dict[str, str]) -> None:
    assert keystream(bytes.fromhex(case["key"]))(16).hex() == case["first_block"]


@pytest.mark.parametrize("case", VECTORS["ecb"], ids=lambda case: case["section"])
def test_the_reference_cipher_of_these_tests_is_nists(case: dict[str, str]) -> None:
    assert ecb(bytes.fromhex(case["key"]), bytes.fromhex(case["plaintext"])).hex() == case["ciphertext"]


def test_a_mask_is_the_cipher_of_the_counters_from_zero_across_chunks() -> None:
    size = 2 * CHUNK_BYTES + 48
    counters = b"".join(counter.to_bytes(16, "big") for counter in range(size // 16))
    stream = ecb(SEED, counters)
    assert masked([Stretch(32, size)], [Mask(SEED, 1)]) == stream
    drawn = keystream(SEED)
    assert b"".join(drawn(length) for length in (1, 15, 17, 1000, size - 1033)) == stream


@given(STRETCHES, MASKS, st.data())
def test_masks_are_added_and_subtracted_as_integers_of_each_ring(
    stretches: list[Stretch], masks: list[Mask], data: st.DataObject
) -> None:
    size = sum(stretch.size for stretch in stretches)
    start = data.draw(st.binary(min_size=size, max_size=size))
    streams = [(keystream(seed)(size), sign) for seed, sign in masks]
    expected, place = b"", 0
    for stretch in stretches:
        step = stretch.bits // 8
        for at in range(place, place + stretch.size, step):
            total = int.from_bytes(start[at : at + step], "little")
            total += sum(sign * int.from_bytes(stream[at : at + step], "little") for stream, sign in streams)
            expected += (total % 2**stretch.bits).to_bytes(step, "little")
        place += stretch.size
    assert masked(stretches, masks, start) == expected


@given(STRETCHES, MASKS, st.data())
def test_what_is_added_and_subtracted_in_any_order_cancels(
    stretches: list[Stretch], masks: list[Mask], data: st.DataObject
) -> None:
    size = sum(stretch.size for stretch in stretches)
    start = data.draw(st.binary(min_size=size, max_size=size))
    opposite = [Mask(seed, -1 if sign > 0 else 1) for seed, sign in masks]
    assert masked(stretches, data.draw(st.permutations(masks + opposite)), start) == start


@pytest.mark.parametrize("first", [Stretch(16, 2), Stretch(16, CHUNK_BYTES - 2), Stretch(64, CHUNK_BYTES + 8)])
def test_a_stream_runs_on_through_segments_whose_ends_are_no_block_ends(first: Stretch) -> None:
    rest = Stretch(16, CHUNK_BYTES + 6)
    stream = keystream(SEED)(first.size + rest.size)
    assert masked([first, rest], [Mask(SEED, 1)]) == stream


@given(st.integers(0, 255))
def test_a_seed_with_a_flipped_bit_gives_another_mask_everywhere(bit: int) -> None:
    other = (int.from_bytes(SEED, "little") ^ 1 << bit).to_bytes(32, "little")
    left = masked([Stretch(64, 800)], [Mask(SEED, 1), Mask(other, -1)])
    assert np.count_nonzero(np.frombuffer(left, "<u8")) == 100


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_seed_of_another_length_is_a_mistake_and_leaves_the_vector_alone(length: int) -> None:
    vector = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="key"):
        apply_masks(vector, [Stretch(64, 8)], [Mask(SEED, 1), Mask(bytes(length), 1)])
    assert not vector.any()


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), (0,)])
def test_a_vector_that_is_not_as_long_as_its_segments_is_a_mistake(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="length"):
        apply_masks(np.zeros(shape, np.uint8), [Stretch(64, 8)], [Mask(SEED, 1)])
