"""SHA-256 without OpenSSL.

Owns: which module it is taken from, and the digest of this very program. May import: the standard
library. ``hashlib`` would load all of OpenSSL: a tenth of a second under emulation.
"""

from __future__ import annotations

import sys


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, hexadecimal."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # the guest's Python has it; from 3.12 on it has another name
        from hashlib import sha256
    return str(sha256(data).hexdigest())


def own_digest() -> str:
    """SHA-256 of the zip application that runs, as the host knows it; empty when run from
    sources."""
    try:
        with open(sys.argv[0], "rb") as file:  # noqa: PTH123 - pathlib costs 8 ms to import
            content = file.read()
    except OSError:
        return ""
    return sha256_hex(content) if content[:2] in (b"PK", b"#!") else ""
