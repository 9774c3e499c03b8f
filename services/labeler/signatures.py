"""Ed25519 signatures of labels.

A label is read by every campaign of a store, for as long as the store lives. Its signature shows
which labeler's user stored it, and that nothing in it has changed since. `dpstream access` makes
the keys; the public ones are an object that no service may write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import Field

from dpstream.shared.values import Sha256, Value

HexKey = Sha256
"""A private or public key: 32 bytes in hexadecimal digits."""


class Signers(Value):
    """Whose labels are used again: user names by public key. A user may have several keys, for
    labels that it signed before it got a new one."""

    keys: dict[HexKey, str] = Field(default={})


def new_key() -> str:
    """A new private key."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def public_key(private: str) -> str:
    return _private(private).public_key().public_bytes_raw().hex()


def sign(label: bytes, private: str) -> bytes:
    """The JSON object `label` with a signature of its bytes as its last member."""
    signature = {"key": public_key(private), "ed25519": _private(private).sign(label).hex()}
    return json.dumps({**json.loads(label), "signature": signature}).encode()


def writer(label: bytes, signers: Signers) -> str | None:
    """The user that signed a label; None if it has no signature. Raises ValueError for a signature
    that is wrong, or of none of `signers`."""
    try:
        document: dict[str, Any] = json.loads(label)
        signature = document.pop("signature", None)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no JSON object") from error
    if signature is None:
        return None
    named = signature.get("key") if isinstance(signature, Mapping) else None
    if not isinstance(named, str) or named not in signers.keys:
        raise ValueError("its signature is of no known labeler")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
    try:
        key.verify(bytes.fromhex(str(signature.get("ed25519"))), json.dumps(document).encode())
    except (InvalidSignature, ValueError) as error:
        raise ValueError("its signature is wrong") from error
    return signers.keys[signature["key"]]


def _private(key: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
