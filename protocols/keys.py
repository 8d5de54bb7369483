"""Identities, key agreement, key derivation and sealing (SPEC 2): thin, typed doors to pyca/cryptography.

Ed25519 (RFC 8032) signs, X25519 (RFC 7748) agrees, HKDF-SHA256 (RFC 5869) derives, AES-256-GCM (NIST SP 800-38D) seals.
Every derived key is bound to a context, a purpose and its parties, so that no key serves two ends.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12

Entropy = Callable[[int], bytes]
"""A source of secret random bytes: ``os.urandom`` everywhere but in the vectors."""

system_entropy: Entropy = os.urandom


class InvalidKey(Exception):
    """A key gives no shared secret, or did not make a sealed text or a signature. Carries no bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A party's long-lived Ed25519 signing key (SPEC 2.1).

    Attributes:
        name: the party's name, ``[a-z0-9-]{1,32}`` for a site and ``@coordinator`` for the coordinator.
        secret: 32 bytes, the RFC 8032 private key. Never printed.
    """

    name: str
    secret: bytes

    @classmethod
    def generate(cls, name: str, entropy: Entropy = system_entropy) -> "Identity":
        """Draw a new identity from ``entropy``."""
        return cls(name, entropy(KEY_BYTES))

    @property
    def public(self) -> str:
        """The public key as 64 hex digits, as pinned in the consortium."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """Sign ``message``; 64 bytes, deterministic (RFC 8032, 5.1.6)."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"


@dataclass(frozen=True, slots=True)
class Consortium:
    """Who is who: every party's identity key, agreed out of band (SPEC 2.1).

    Attributes:
        coordinator: the coordinator's public key, 64 hex digits.
        sites: each site's public key by name.
        authors: the public keys of those who may sign plans, by name; where there are none, any plan may be asked for.
        former: the keys that a site had before, by name: with whom data were summed is told by them, too.
    """

    coordinator: str
    sites: Mapping[str, str]
    authors: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def current(self, key: str) -> str:
        """The key that a site has now, by one that it has or had; another key is itself."""
        return next((self.sites[name] for name, keys in self.former.items() if key in keys), key)


def verify(public: str, message: bytes, signature: bytes) -> None:
    """Check that ``signature`` is ``public``'s over ``message`` (RFC 8032, 5.1.7).

    Args:
        public: the Ed25519 public key, 64 hex digits.
        message: the exact bytes that were signed.
        signature: 64 bytes.

    Raises:
        InvalidKey: if it is not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise InvalidKey("the signature is not this key's") from None


def public_of(secret: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a 32-byte secret (RFC 7748, section 6.1)."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes) -> bytes:
    """The X25519 shared secret, 32 bytes (RFC 7748, section 6.1).

    Raises:
        InvalidKey: if ``public`` is a point of small order, which would give a secret known to all.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise InvalidKey("the public key gives no shared secret") from None


def framed(*parts: bytes | str) -> bytes:
    """Join parts so that no two lists give the same bytes: each behind its length, 4 bytes little-endian (SPEC 2.2)."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in raw)


def derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Derive a 32-byte key with HKDF-SHA256 (RFC 5869); ``salt`` is the context, ``info`` the purpose and parties."""
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


def seal(key: bytes, plaintext: bytes, associated: bytes, entropy: Entropy = system_entropy) -> bytes:
    """Encrypt with AES-256-GCM; returns nonce (12) ‖ ciphertext ‖ tag (16) (SPEC 2.4)."""
    nonce = entropy(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Decrypt what ``seal`` made.

    Raises:
        InvalidKey: if the key, the associated data or a byte of the text differs.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        raise InvalidKey("the sealed text does not open") from None
