"""Find a dealer's secret among shares of which some are wrong (SPEC 4.6; Gao 2003, "A new algorithm for decoding
Reed-Solomon codes").

Shares are the values of a polynomial of a degree below ``threshold``: a Reed-Solomon code. Of r shares, up to
(r - threshold) / 2 wrong ones are put right in a time that grows with r², whichever they are; trying sets of shares
would take more than anybody's time from some twenty sites on. A secret that is found is not trusted: the caller
compares it with what the dealer has committed to.
"""

from collections.abc import Mapping, Sequence

from protocols.shamir import PRIME, SECRET_BYTES, SHARE_BYTES

Polynomial = list[int]
"""Coefficients modulo the prime, the constant term first, the last one not zero; empty for zero."""


def decode(shares: Mapping[int, bytes], *, threshold: int) -> bytes | None:
    """Decode the secret from shares by point (1-based); ``None`` if more than (r - threshold) / 2 of them are wrong.

    Args:
        shares: 33 bytes each.
        threshold: how many right ones give the secret, at most as many as there are.

    Raises:
        ValueError: if a share is not 33 bytes, or there are too few.
    """
    if any(len(share) != SHARE_BYTES for share in shares.values()):
        raise ValueError("a share is 33 bytes")
    if len(shares) < threshold:
        raise ValueError("there are fewer shares than the threshold")
    points, values = list(shares), [int.from_bytes(share, "little") % PRIME for share in shares.values()]
    product, through = _vanishing(points), _interpolate(points, values)
    remainder, factor = _half_way(product, through, (len(points) + threshold + 1) // 2)
    found, rest = _divide(remainder, factor)
    if rest or len(found) > threshold:
        return None
    secret = found[0] if found else 0
    return secret.to_bytes(SECRET_BYTES, "little") if secret < 2**256 else None


def _vanishing(points: Sequence[int]) -> Polynomial:
    """The polynomial that is zero at these points and nowhere else."""
    product = [1]
    for point in points:
        product = _times_root(product, point)
    return product


def _interpolate(points: Sequence[int], values: Sequence[int]) -> Polynomial:
    """The polynomial of the least degree through all of them: Newton's divided differences."""
    differences = list(values)
    inverses = {gap: pow(gap, -1, PRIME) for gap in {one - other for one in points for other in points} - {0}}
    for order in range(1, len(points)):
        for at in range(len(points) - 1, order - 1, -1):
            step = differences[at] - differences[at - 1]
            differences[at] = step * inverses[points[at] - points[at - order]] % PRIME
    found: Polynomial = []
    for point, difference in zip(reversed(points), reversed(differences), strict=True):
        found = _times_root(found, point) or [0]
        found[0] = (found[0] + difference) % PRIME
    return _trimmed(found)


def _half_way(first: Polynomial, second: Polynomial, most: int) -> tuple[Polynomial, Polynomial]:
    """Run Euclid's algorithm to the first remainder of at most ``most`` coefficients; give it with its factor.

    The factor is the one at ``second``: zero where a share is wrong.
    """
    before, factor = list[int](), [1]
    while len(second) > most:
        quotient, remainder = _divide(first, second)
        first, second = second, remainder
        before, factor = factor, _less_product(before, quotient, factor)
    return second, factor


def _divide(numerator: Polynomial, denominator: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder."""
    rest, inverse = list(numerator), pow(denominator[-1], -1, PRIME)
    quotient = [0] * max(0, len(rest) - len(denominator) + 1)
    for at in range(len(quotient) - 1, -1, -1):
        quotient[at] = times = rest[at + len(denominator) - 1] * inverse % PRIME
        for place, coefficient in enumerate(denominator, start=at):
            rest[place] = (rest[place] - times * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _less_product(one: Polynomial, left: Polynomial, right: Polynomial) -> Polynomial:
    """``one - left * right``."""
    found = one + [0] * (max(len(one), len(left) + len(right) - 1) - len(one))
    for low, coefficient in enumerate(left):
        for place, other in enumerate(right, start=low):
            found[place] = (found[place] - coefficient * other) % PRIME
    return _trimmed(found)


def _times_root(polynomial: Polynomial, root: int) -> Polynomial:
    """The polynomial times ``x - root``."""
    shifted = zip([0, *polynomial], [*polynomial, 0], strict=True)
    return [(low - root * high) % PRIME for low, high in shifted] if polynomial else []


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
