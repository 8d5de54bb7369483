"""Our own vectors are what the code gives, byte for byte, and what SPEC's formulas give without the code."""

import decimal
import hashlib
import hmac
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from protocols.encoding import integers
from protocols.keys import Identity, verify
from protocols.messages import COORDINATOR, Envelope
from tests.vectors.generate import FOLDER, SEGMENTS, differences, entropy, vectors
from tests.vectors.load import own

EXACT = decimal.Context(prec=200)
ROUNDS = ("round_of_3", "round_of_4_one_dropped")


def framed(*parts: bytes | str) -> bytes:
    """SPEC 2.2, written again."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in raw)


def digest(*parts: bytes | str) -> str:
    return hashlib.sha256(framed("fedseal/1", *parts)).hexdigest()


def hkdf(secret: bytes, salt: str, *info: str) -> str:
    """RFC 5869 for one block of output, from HMAC alone."""
    extracted = hmac.digest(bytes.fromhex(salt), secret, "sha256")
    return hmac.digest(extracted, framed("fedseal/1", *info) + b"\1", "sha256").hex()


def keystream(seed: bytes) -> Callable[[int], bytes]:
    """AES-256-CTR from zero, as long as asked each time."""
    encryptor = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
    return lambda length: encryptor.update(bytes(length))


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def exp(exponent: Fraction) -> Decimal:
    return EXACT.exp(EXACT.divide(Decimal(exponent.numerator), Decimal(exponent.denominator)))


def test_the_files_are_what_the_code_gives_byte_for_byte() -> None:
    assert differences(FOLDER) == []


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*")) < 200_000


@pytest.mark.parametrize("spoil", ["changed", "missing", "superfluous"])
def test_a_file_that_differs_is_named(tmp_path: Path, spoil: str) -> None:
    for name, text in vectors().items():
        (tmp_path / name).write_text(text)
    assert differences(tmp_path) == []
    match spoil:
        case "changed":
            text = (tmp_path / "masks.json").read_text()
            (tmp_path / "masks.json").write_text(text.replace("0", "1", 1))
        case "missing":
            (tmp_path / "masks.json").unlink()
        case "superfluous":
            (tmp_path / "masks.json").rename(tmp_path / "old.json")
    assert differences(tmp_path) == (["masks.json", "old.json"] if spoil == "superfluous" else ["masks.json"])


def test_the_command_finds_the_files_as_they_should_be() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "tests.vectors.generate", "--check"], cwd=root, check=True, timeout=60)


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "outside").glob("*.json")), ids=lambda path: path.stem)
def test_every_outside_file_names_its_source(path: Path) -> None:
    assert len(json.loads(path.read_text())["source"]) > len("RFC 0000")


def test_contexts_and_commitments_follow_from_the_formulas_of_the_spec() -> None:
    given = own("digests")
    context, round_ = given["attempt_context"], given["round_context"]
    assert digest("attempt context", context["canonical"]) == context["digest"]
    adverts = sorted(bytes.fromhex(advert) for advert in round_["adverts"])
    assert digest("round context", context["digest"], *adverts) == round_["digest"]
    assert digest("empty ledger") == given["empty_ledger"]
    assert digest("no confirmed sum") == given["no_confirmed_sum"]
    confirmed = given["confirmed_sum"]
    parts = confirmed["before"], confirmed["round"], *confirmed["survivors"]
    assert digest("confirmed sum", *parts) == confirmed["head"]
    for case in given["commitments"]:
        parties = case["round"], case["what"], case["dealer"], case["receiver"]
        assert digest("commitment", *parties, bytes.fromhex(case["secret"])) == case["commitment"]


@pytest.mark.parametrize("case", own("shamir"), ids=lambda case: case["entropy"])
def test_shares_are_values_of_the_polynomial_that_the_label_draws(case: dict[str, Any]) -> None:
    draw = entropy(case["entropy"])
    coefficients = [int.from_bytes(bytes.fromhex(case["secret"]), "little")]
    coefficients += [int.from_bytes(draw(48), "little") for _ in range(case["threshold"] - 1)]
    for point, share in enumerate(case["shares"], 1):
        value = sum(factor * point**power for power, factor in enumerate(coefficients)) % (2**256 + 297)
        assert value.to_bytes(33, "little").hex() == share


def test_mask_seeds_follow_from_the_formulas_of_the_spec() -> None:
    given = own("masks")
    ann, bob = (X25519PrivateKey.from_private_bytes(bytes.fromhex(one)) for one in given["mask_secrets"].values())
    agreed = ann.exchange(X25519PublicKey.from_public_bytes(bob.public_key().public_bytes_raw()))
    seed = hkdf(agreed, given["round"], "pair mask", "ann", "bob")
    assert given["pair_masks"] == {"ann": {"seed": seed, "sign": 1}, "bob": {"seed": seed, "sign": -1}}
    assert (
        hkdf(bytes.fromhex(given["self_mask"]["b"]), given["round"], "self mask", "ann") == given["self_mask"]["seed"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", own("gaussian"), ids=lambda case: case["entropy"])
def test_noise_follows_from_the_exact_algorithm_of_the_spec(case: dict[str, Any]) -> None:
    """In fractions and decimals. The first bits of every draw decide, or the test says that they do not."""
    sigma, stream, samples = Fraction(case["sigma"]), keystream(entropy(case["entropy"])(32)), []
    shift = next(j for j in itertools.count() if sigma / 2**j < 512)
    weights: list[Decimal] = []
    while not weights or weights[-1] >= Decimal(2) ** -200:
        weights.append(exp(-Fraction(len(weights) ** 2) / (2 * (sigma / 2**shift) ** 2)))
    sums = list(itertools.accumulate(weights, EXACT.add))
    boundaries = [int(EXACT.divide(EXACT.multiply(2**192, one), sums[-1])) for one in sums[:-1]]
    tops = {boundary >> 128 for boundary in boundaries}
    while (missing := len(case["samples"]) - len(samples)) > 0:
        draws = [number(stream(8)) for _ in range(missing)]
        assert not tops & set(draws), "a tie, once in 2^50 samples: take another label"
        coarse = [sum(boundary >> 128 < draw for boundary in boundaries) for draw in draws]
        signs = [number(stream(4)) for _ in range(missing)]
        kept = [number(stream(4)) for _ in range(missing)] if shift else [2**32 - 1] * missing
        for x, bits, v in zip(coarse, signs, kept, strict=True):
            y, minus = bits % 2**shift, bits >> 31
            rejection = (1 - exp(-Fraction(y * (y + 2 ** (shift + 1) * x)) / (2 * sigma**2))) * 2**32
            assert not v < rejection < v + 1, "undecided by 32 bits: take another label"
            magnitude = 2**shift * x + y
            if v >= rejection and (magnitude or not minus):
                samples.append(-magnitude if minus else magnitude)
    assert samples == case["samples"]


@pytest.mark.parametrize("case", own("rotation"), ids=lambda case: len(case["values"]))
def test_a_rotation_is_signs_and_a_hadamard_matrix_on_each_block(case: dict[str, Any]) -> None:
    vector, stream = [Fraction(value) for value in case["values"]], keystream(bytes.fromhex(case["seed"]))
    size = next(4**power for power in (6, 5, 4, 3, 2, 1, 0) if 4**power <= len(vector))
    whole = len(vector) // size
    overlapping = [range(len(vector) - size, len(vector))] if len(vector) % size else []
    for places in [range(whole * size), *overlapping]:
        bits = number(stream(-(-len(places) // 8)))
        signed = [vector[place] * (-1) ** (bits >> i & 1) for i, place in enumerate(places)]
        for start in range(0, len(places), size):
            for i in range(size):
                turned = sum(signed[start + k] * (-1) ** (i & k).bit_count() for k in range(size))
                vector[places[start + i]] = Fraction(turned, math.isqrt(size))
    assert vector == case["rotated"]


@pytest.mark.parametrize("case", own("privacy"), ids=lambda case: case["length"])
def test_sensitivity_and_noise_follow_from_the_formulas_of_the_spec(case: dict[str, Any]) -> None:
    n, d, steps = case["summed"], case["length"], case["clip"] * case["scale"]
    moved = (steps * (1 + n**2 * 2**-51 + n * 2**-38 + d * 2**-52) + d**0.5) * (1 + 2**-45)
    assert case["sensitivity"] == pytest.approx(moved, rel=1e-14)
    assert case["share"] == pytest.approx(case["sigma"] / (case["threshold"] - case["colluding"]) ** 0.5, rel=1e-13)
    noise = case["share"] * (case["survivors"] - case["colluding"]) ** 0.5
    assert case["noise_multiplier"] == pytest.approx(noise / moved, rel=1e-13)
    assert case["tail"] == math.ceil(case["share"] * (2 * math.log(2e9)) ** 0.5)


def test_the_heads_of_a_ledger_follow_from_the_formulas_of_the_spec() -> None:
    given = own("ledger")
    heads = [digest("empty ledger")]
    for line_number, (line, salt) in enumerate(zip(given["lines"], given["salts"], strict=True), start=1):
        heads.append(digest("ledger entry", heads[-1], str(line_number), bytes.fromhex(salt), canonical(line)))
    assert heads == given["heads"]


@pytest.mark.parametrize("name", ROUNDS)
def test_every_envelope_of_a_round_is_signed_by_its_sender(name: str) -> None:
    given = own(name)
    request = json.loads(given["envelopes"]["ask/advertise"][0]["body"])
    coordinator = Identity(COORDINATOR, bytes.fromhex(given["identity_secrets"][COORDINATOR]))
    keys = request["context"]["sites"] | {COORDINATOR: coordinator.public}
    for kind, sent in given["envelopes"].items():
        assert sent
        for fields in sent:
            message = Envelope(**fields)
            parts = kind, message.context, message.sender, message.receiver, message.answers, message.body
            signed = framed("fedseal/1", "envelope", *parts)
            verify(keys[message.sender], signed, bytes.fromhex(message.signature))


@pytest.mark.parametrize("name", ROUNDS)
def test_every_answer_of_a_round_names_its_request(name: str) -> None:
    sent = own(name)["envelopes"]
    for step, kind in [("advertise", "advert"), ("share", "share"), ("mask", "masked"), ("confirm", "confirmation")]:
        asked = {one["receiver"]: Envelope(**one).digest for one in sent[f"ask/{step}"]}
        assert all(one["answers"] == "" for one in sent[f"ask/{step}"])
        assert all(one["answers"] == asked[one["sender"]] for one in sent[kind])


@pytest.mark.parametrize("name", ROUNDS)
def test_the_contexts_of_a_round_follow_from_its_messages(name: str) -> None:
    given = own(name)
    canonical = json.dumps(
        json.loads(given["envelopes"]["ask/advertise"][0]["body"])["context"], sort_keys=True, separators=(",", ":")
    )
    assert digest("attempt context", canonical) == given["attempt_context"]
    adverts = sorted(
        framed(
            "fedseal/1",
            "envelope",
            "advert",
            *(one[name] for name in ("context", "sender", "receiver", "answers", "body")),
        )
        + bytes.fromhex(one["signature"])
        for one in given["envelopes"]["advert"]
    )
    assert digest("round context", given["attempt_context"], *adverts) == given["round_context"]


@pytest.mark.parametrize("name", ROUNDS)
def test_the_sum_of_a_round_is_the_integer_sum_of_its_encoded_vectors(name: str) -> None:
    given = own(name)
    expected: dict[str, np.ndarray] = {}
    for vector in given["encoded"].values():
        for segment, whole in integers(np.frombuffer(bytes.fromhex(vector), np.uint8), SEGMENTS).items():
            expected[segment] = expected.get(segment, 0) + whole
    assert {segment: whole.tolist() for segment, whole in expected.items()} == given["sum_integers"]
    assert given["masked_sum"] != given["sum"]


@pytest.mark.parametrize("name", ROUNDS)
def test_the_masked_vectors_of_a_round_are_those_that_the_sites_signed(name: str) -> None:
    given = own(name)
    for fields in given["envelopes"]["masked"]:
        vector = bytes.fromhex(given["masked"][fields["sender"]])
        assert json.loads(fields["body"]) == {"vector": hashlib.sha256(vector).hexdigest(), "size": len(vector)}
    assert given["dropped"] == sorted(given["identity_secrets"].keys() - given["masked"].keys() - {COORDINATOR})


def test_the_digests_and_the_signature_of_a_receipt_follow_from_the_formulas_of_the_spec() -> None:
    given, finished = own("receipt"), own("round_of_3")
    signed, signature = given.pop("signed_bytes"), given.pop("signature")
    (entry,) = given["rounds"]
    assert entry["adverts"] == finished["envelopes"]["advert"]
    assert entry["confirmations"] == finished["envelopes"]["confirmation"]
    assert entry["sum"] == hashlib.sha256(bytes.fromhex(finished["sum"])).hexdigest()
    assert entry["previous"] == digest("receipt start", given["training"], entry["context"]["plan"])
    fields = {name: value for name, value in entry.items() if name != "digest"}
    assert entry["digest"] == digest("receipt entry", canonical(fields))
    assert framed("fedseal/1", "receipt", canonical(given)).hex() == signed
    verify(given["coordinator"], bytes.fromhex(signed), bytes.fromhex(signature))


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
