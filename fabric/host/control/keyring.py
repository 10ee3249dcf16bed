"""The keys of connections: what a guest shares with its host and with no other guest.

Owns: how they are derived. May import: wire.notice. Pure.

A guest believes what its host says of dead neighbours by its key (:mod:`fabric.wire.notice`). One
that has been taken over so knows nothing by which another one could be misled.
"""

from __future__ import annotations

import hashlib
import hmac

from fabric.wire.notice import KEY_SIZE


class Keyring:
    """Keys of the guests of one host, from one secret; the same in every life of the host."""

    def __init__(self, secret: bytes = b"") -> None:
        """``secret``: empty: there are no keys."""
        self._secret = secret

    @property
    def name(self) -> str:
        """Of the host that has this secret, in all its lives; tells nothing of the secret. Empty:
        there is none."""
        if not self._secret:
            return ""
        return hmac.new(self._secret, b"name", hashlib.sha256).hexdigest()[:16]

    def key(self, connection: int, address: str) -> bytes:
        """Of the guest at ``address`` that serves ``connection``: HMAC-SHA-256 (RFC 2104), cut."""
        if not self._secret:
            return b""
        whose = f"{connection:016x} {address}".encode()
        return hmac.new(self._secret, whose, hashlib.sha256).digest()[:KEY_SIZE]
