"""The membership audit finds the claim kept, though not by far, and catches half the noise."""

from protocols.masks import keystream
from tests.benchmarks.audit import audit

TRIALS = 8_000_000


def test_the_audit_finds_epsilon_between_half_the_claim_and_the_claim() -> None:
    report = audit(TRIALS, entropy=keystream(bytes(32)))
    assert 0.99 < report["claim"] <= 1
    assert report["claim"] / 2 < report["lower_bound"] <= report["claim"]


def test_the_audit_catches_half_the_noise() -> None:
    report = audit(TRIALS, noise=0.5, entropy=keystream(bytes(32)))
    assert report["lower_bound"] > report["claim"]
