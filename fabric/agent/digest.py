"""SHA-256 without OpenSSL.

Owns: which module it is taken from. May import: the standard library. ``hashlib`` would load all
of OpenSSL: a tenth of a second under emulation.
"""

from __future__ import annotations


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, hexadecimal."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # the guest's Python has it; from 3.12 on it has another name
        from hashlib import sha256
    return str(sha256(data).hexdigest())
