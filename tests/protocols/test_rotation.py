"""The rotation: SciPy's Hadamard matrix, exact on small integers, and norms, sums and inverses to the stated error."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from protocols.masks import keystream
from protocols.rotation import ERROR, reach, rotate, turn_back

SEED = bytes(range(32))
LENGTHS = st.integers(1, 70) | st.sampled_from((255, 256, 257, 1000, 4095, 4096, 4097, 5000, 65536, 70_001))
SEEDS = st.binary(min_size=32, max_size=32)
SCALES = st.floats(1e-6, 1e6)


def rotated(vector: np.ndarray, seed: bytes = SEED) -> np.ndarray:
    result = vector.astype(np.float64)
    rotate(result, seed)
    return result


def turned_back(vector: np.ndarray, seed: bytes = SEED) -> np.ndarray:
    result = vector.copy()
    turn_back(result, seed)
    return result


def drawn(length: int, scale: float = 1.0, number: int = 1) -> np.ndarray:
    return scale * np.random.default_rng(number).normal(size=length)


@pytest.mark.parametrize(("length", "block"), [(1, 1), (3, 1), (4, 4), (16, 16), (64, 64), (1024, 1024), (4096, 4096)])
def test_a_block_is_signed_and_multiplied_by_the_hadamard_matrix(length: int, block: int) -> None:
    vector = drawn(length)
    bits = np.unpackbits(np.frombuffer(keystream(SEED)(-(-length // 8)), np.uint8), bitorder="little")[:length]
    expected = (hadamard(block) @ np.where(bits, -vector, vector).reshape(-1, block).T).T / math.isqrt(block)
    assert np.abs(rotated(vector) - expected.ravel()).max() <= ERROR * np.linalg.norm(vector)


def test_a_rest_is_rotated_with_what_comes_before_it_and_nothing_is_padded() -> None:
    vector, stream = drawn(4096 + 100), keystream(SEED)
    expected = vector.copy()
    for part in (expected[:4096], expected[-4096:]):
        bits = np.unpackbits(np.frombuffer(stream(512), np.uint8), bitorder="little")
        part[:] = hadamard(4096) @ np.where(bits, -part, part) / 64
    assert rotated(vector).shape == vector.shape
    assert np.abs(rotated(vector) - expected).max() <= ERROR * np.linalg.norm(vector)


@given(LENGTHS, SEEDS, SCALES)
def test_norms_stay_and_turning_back_gives_the_vector(length: int, seed: bytes, scale: float) -> None:
    vector = drawn(length, scale)
    turned, norm = rotated(vector, seed), np.linalg.norm(vector)
    assert abs(np.linalg.norm(turned) - norm) <= ERROR * norm
    assert np.linalg.norm(turned_back(turned, seed) - vector) <= 2 * ERROR * norm


@given(LENGTHS, SEEDS)
def test_the_sum_of_rotated_vectors_is_the_rotated_sum(length: int, seed: bytes) -> None:
    vectors = [drawn(length, number=number) for number in range(5)]
    total = sum(rotated(vector, seed) for vector in vectors)
    bound = 10 * ERROR * sum(np.linalg.norm(vector) for vector in vectors)
    assert np.linalg.norm(turned_back(total, seed) - sum(vectors)) <= bound


@given(LENGTHS, SEEDS)
def test_small_integers_are_rotated_and_turned_back_without_any_error(length: int, seed: bytes) -> None:
    vector = np.random.default_rng(length).integers(-(2**20), 2**20, length).astype(np.float64)
    turned = rotated(vector, seed)
    assert (turned * turned).sum() == pytest.approx((vector * vector).sum(), rel=1e-12)
    assert (turned_back(turned, seed) == vector).all()


def test_the_seed_gives_the_same_rotation_on_every_machine() -> None:
    vector = rotated(np.arange(10_000) % 1000)
    digest = hashlib.sha256(vector.astype("<f8").tobytes()).hexdigest()
    assert digest == "da67c6ffe84878122af063c1324fa5365f2092bbd087710107d35fa98713138b"


def test_another_seed_rotates_otherwise() -> None:
    vector = np.ones(4096)
    assert np.linalg.norm(rotated(vector) - rotated(vector, bytes(32))) > 60


@pytest.mark.parametrize("place", [0, 4095, 4096, 8191])
def test_one_large_coordinate_is_spread_over_its_block(place: int) -> None:
    vector = np.zeros(8192)
    vector[place] = 64.0
    turned = rotated(vector)
    block = slice(0, 4096) if place < 4096 else slice(4096, 8192)
    assert (np.abs(turned[block]) == 1).all()
    assert np.abs(turned).sum() == 4096


@pytest.mark.parametrize("length", [16, 5000, 20_000])
@pytest.mark.parametrize("shape", [lambda length: np.ones(length), lambda length: 1.0 * (np.arange(length) < 8)])
def test_no_more_vectors_than_promised_reach_past_the_bound(length: int, shape: object) -> None:
    vector, trials, probability = shape(length), 400, 0.1
    bound = reach(float(np.linalg.norm(vector)), length, probability)
    past = sum(
        np.abs(rotated(vector, bytes([number % 256, number // 256] * 16))).max() > bound for number in range(trials)
    )
    assert past <= probability * trials


def test_no_coordinate_is_larger_than_the_norm() -> None:
    assert reach(3.0, 2, 1e-30) == 3.0
    assert reach(0.0, 10, 0.5) == 0.0


@pytest.mark.parametrize(
    "vector", [np.zeros(0), np.zeros(4, np.float32), np.zeros(8)[::2], np.zeros((2, 2)), np.zeros(4, np.int64)]
)
def test_what_cannot_be_rotated_in_place_is_a_mistake(vector: np.ndarray) -> None:
    for turn in (rotate, turn_back):
        with pytest.raises(ValueError, match="contiguous vector of float64"):
            turn(vector, SEED)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_seed_of_another_length_is_a_mistake_and_leaves_the_vector_alone(length: int) -> None:
    vector = drawn(5000)
    with pytest.raises(ValueError, match="key"):
        rotate(vector, bytes(length))
    assert (vector == drawn(5000)).all()


@pytest.mark.parametrize(
    ("norm", "length", "probability"),
    [(-1.0, 1, 0.5), (math.inf, 1, 0.5), (math.nan, 1, 0.5), (1.0, 0, 0.5), (1.0, 1, 0.0)],
)
def test_a_reach_of_nothing_is_a_mistake(norm: float, length: int, probability: float) -> None:
    with pytest.raises(ValueError, match="norm"):
        reach(norm, length, probability)
