"""Which 32 bytes are an Ed25519 public key (RFC 8032, 5.1; SPEC 2.1).

pyca/cryptography takes any 32 bytes for a key and finds out when a signature does not verify. A key that everybody
pins is checked once, when the consortium file is read: it must be a point of the curve, written in its one way, and of
the prime order. Under a point of small order somebody without any secret could sign. All numbers here are public, so
that Python's arithmetic, whose time depends on them, tells nothing.
"""

from protocols.keys import KEY_BYTES, InvalidKey

P = 2**255 - 19
"""The field's prime."""
ORDER = 2**252 + 27742317777372353535851937790883648493
"""The prime order of the group that keys are in."""
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int, int, int]
"""X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z (RFC 8032, 5.1.4)."""
_NEUTRAL: Point = (0, 1, 1, 0)


def check_public_key(public: bytes) -> None:
    """Refuse what is not the Ed25519 public key of any secret (RFC 8032, 5.1.3, and the group's order).

    Args:
        public: 32 bytes.

    Raises:
        InvalidKey: not a point, a point written in a second way, or one that is not of the prime order.
    """
    point = _decode(public)
    if _is_neutral(point) or not _is_neutral(_multiply(ORDER, point)):
        raise InvalidKey("the public key is not of the prime order")


def _decode(public: bytes) -> Point:
    """RFC 8032, 5.1.3: y in 255 bits, little-endian, and the lowest bit of x on top."""
    number = int.from_bytes(public, "little")
    y, odd = number % 2**255, number >> 255
    if len(public) != KEY_BYTES or y >= P:
        raise InvalidKey("the public key is not 32 bytes below the prime")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and odd):
        raise InvalidKey("the public key is not a point of the curve")
    x = P - x if x % 2 != odd else x
    return x, y, 1, x * y % P


def _add(left: Point, right: Point) -> Point:
    """RFC 8032, 5.1.4; complete, so that it doubles too."""
    (x1, y1, z1, t1), (x2, y2, z2, t2) = left, right
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _multiply(factor: int, point: Point) -> Point:
    product = _NEUTRAL
    while factor:
        if factor & 1:
            product = _add(product, point)
        point, factor = _add(point, point), factor >> 1
    return product


def _is_neutral(point: Point) -> bool:
    return point[0] == 0 and point[1] == point[2]
