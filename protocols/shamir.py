"""Shamir's secret sharing of 32-byte secrets (SPEC 4.2; Shamir 1979).

Over the prime field of 2^256 + 297 elements, the smallest prime above every 32-byte secret. A share is the value of a
random polynomial at the holder's point: 33 bytes, little-endian. Any ``threshold`` shares give the secret, fewer give
nothing at all. Not constant time: a site runs it on its own host, and the host is trusted (SPEC 1).
"""

from collections.abc import Mapping

from protocols.keys import Entropy, system_entropy

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_COEFFICIENT_BYTES = 48  # reduced modulo PRIME these are uniform but for 2^-127


def split(secret: bytes, *, threshold: int, holders: int, entropy: Entropy = system_entropy) -> list[bytes]:
    """Share ``secret`` among ``holders``, of whom any ``threshold`` can give it back (SPEC 4.2).

    Args:
        secret: 32 bytes.
        threshold: how many shares give the secret, 1 to ``holders``.
        holders: how many shares to make; share ``i`` of the list is the value at the point ``i + 1``.

    Raises:
        ValueError: if the secret is not 32 bytes or the threshold is impossible.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError("a secret is 32 bytes")
    if not 1 <= threshold <= holders:
        raise ValueError("the threshold must lie between 1 and the number of holders")
    coefficients = [int.from_bytes(secret, "little")]
    coefficients += [int.from_bytes(entropy(_COEFFICIENT_BYTES), "little") % PRIME for _ in range(threshold - 1)]
    return [_evaluate(coefficients, point).to_bytes(SHARE_BYTES, "little") for point in range(1, holders + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Interpolate at zero the shares given by point (1-based); ``None`` if they give no 32-byte secret (SPEC 4.6).

    A wrong share gives a wrong secret, not an error: the caller compares the result with the dealer's commitment.

    Raises:
        ValueError: if a share is not 33 bytes.
    """
    if any(len(share) != SHARE_BYTES for share in shares.values()):
        raise ValueError("a share is 33 bytes")
    total = 0
    for point, share in shares.items():
        numerator = denominator = 1
        for other in shares:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        total += int.from_bytes(share, "little") * numerator * pow(denominator, -1, PRIME)
    secret = total % PRIME
    return secret.to_bytes(SECRET_BYTES, "little") if secret < 2**256 else None


def _evaluate(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value
