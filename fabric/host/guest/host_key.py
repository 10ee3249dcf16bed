"""The SSH host key of one guest.

Owns: making it. May import: nothing of ours; cryptography. A guest that boots has the image's key;
a copy is given one of its own, which lasts as long as it does.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Self

_ALGORITHM = b"ssh-ed25519"


@dataclass(frozen=True)
class HostKey:
    """An Ed25519 key (RFC 8032)."""

    public: bytes
    """32 bytes."""
    secret: bytes = field(repr=False)
    """Seed and public half, 64 bytes."""

    @classmethod
    def generate(cls) -> Self:
        """A new one, from the kernel's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        return cls(public, key.private_bytes_raw() + public)

    @property
    def line(self) -> str:
        """The public half as OpenSSH writes it (RFC 8709)."""
        parts = (_ALGORITHM, self.public)
        blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return f"{_ALGORITHM.decode()} {base64.b64encode(blob).decode()}"
