"""The digest of a package, and the signature over it.

The digest is the SHA-256 of the whole file with zeros in place of its own digits and those of the signature, so that
every byte counts. The signature is Ed25519 over `lora-core package` and the digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import AdapterError, LoraCoreError, UnsupportedError, UsageError
from lora_core.intake.files import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DIGEST, SIGNATURE = "digest", "signature"
_DIGITS = {DIGEST: 64, SIGNATURE: 128}
_CONTEXT = b"lora-core package "
_READABLE = "Give a file that you can read."
_MAKE = "openssl genpkey -algorithm ed25519 makes one."
_NEEDS = "Install the extra: pip install 'lora-core[signing]'."


@attrs.frozen(kw_only=True)
class SigningKey:
    """A private key; `public` is the raw public key in hex."""

    private: Ed25519PrivateKey
    public: str

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read an unencrypted Ed25519 key in PEM (`openssl genpkey -algorithm ed25519`); raises `UsageError`."""
        serialization, ed25519 = _cryptography()
        key = _loaded(path, lambda data: serialization.load_pem_private_key(data, password=None))
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise _no_key(path, "an Ed25519 private key")
        return cls(private=key, public=key.public_key().public_bytes_raw().hex())

    def sign(self, digest: str) -> str:
        """Return the signature of a package's digest, in hex; the same for the same digest and key."""
        return self.private.sign(_CONTEXT + digest.encode("ascii")).hex()


@attrs.frozen(kw_only=True)
class Trust:
    """The public keys, in hex, of whom packages are accepted from; at least one of them must have signed each."""

    keys: frozenset[str]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Trust:
        """Read Ed25519 public keys in PEM (`openssl pkey -pubout`); raises `UsageError`."""
        serialization, ed25519 = _cryptography()
        keys = set()
        for path in paths:
            key: Ed25519PublicKey = _loaded(path, serialization.load_pem_public_key)
            if not isinstance(key, ed25519.Ed25519PublicKey):
                raise _no_key(path, "an Ed25519 public key")
            keys.add(key.public_bytes_raw().hex())
        return cls(keys=frozenset(keys))

    def objection(self, digest: str, signer: str | None, signature: str | None) -> str | None:
        """Return what speaks against a package with this digest and signature; None if it is trusted."""
        if signer is None or signature is None:
            return "It is not signed, and --trust asks for a signature"
        if signer not in self.keys:
            return f"It is signed by {signer}, which is none of the trusted keys"
        from cryptography.exceptions import InvalidSignature

        _, ed25519 = _cryptography()
        try:
            public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
            public.verify(bytes.fromhex(signature), _CONTEXT + digest.encode("ascii"))
        except (InvalidSignature, ValueError):
            return "Its signature does not hold"
        return None


def placeholders(signer: str | None) -> dict[str, str]:
    """Return the metadata of a package that is not sealed yet."""
    fields = {DIGEST: "0" * _DIGITS[DIGEST]}
    return fields if signer is None else {**fields, SIGNATURE: "0" * _DIGITS[SIGNATURE], "signer": signer}


def sealed(head: bytes, data: Sequence[bytes], key: SigningKey | None) -> bytes:
    """Return `head` (all before the data, with `placeholders`) with digest and signature filled in."""
    hashed = hashlib.sha256(head)
    for part in data:
        hashed.update(part)
    digest = hashed.hexdigest()
    head = _filled(head, DIGEST, digest)
    return head if key is None else _filled(head, SIGNATURE, key.sign(digest))


def sealed_digest(head: bytes) -> str:
    """Return the digest that a sealed `head` says."""
    start = head.index(b'"%s":"' % DIGEST.encode("ascii")) + len(DIGEST) + 4
    return head[start : start + _DIGITS[DIGEST]].decode("ascii")


def digest_of(head: bytes, path: Path) -> str:
    """Return the digest of the package at `path`, whose bytes before the data are `head`; raises `ValueError`."""
    blank = head
    for field, digits in _DIGITS.items():
        if b'"%s":"' % field.encode("ascii") in head:
            blank = _filled(blank, field, "0" * digits)
    hashed = hashlib.sha256(blank)
    with open_regular(path, AdapterError) as file:
        file.seek(len(head))
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def _filled(head: bytes, field: str, digits: str) -> bytes:
    # A quotation mark inside a text is escaped, so this is a field's name and nothing else.
    mark = b'"%s":"' % field.encode("ascii")
    start = head.find(mark) + len(mark)
    end = start + _DIGITS[field]
    if head.count(mark) != 1 or head[end : end + 1] != b'"':
        raise ValueError(f"its field {field!r} is not as it is written")
    return head[:start] + digits.encode("ascii") + head[end:]


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UnsupportedError("Signatures need the library `cryptography`.", remedy=_NEEDS) from error
    return serialization, ed25519


def _loaded(path: Path, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"Cannot read the key: {error}.", where=str(path), remedy=_READABLE) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"This is no key in PEM: {error}", where=str(path), remedy=_MAKE) from error


def _no_key(path: Path, wanted: str) -> LoraCoreError:
    return UsageError(f"This is not {wanted}.", where=str(path), remedy=_MAKE)
