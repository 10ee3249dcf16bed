"""The host's word on which neighbours are dead.

Owns: the socket notices arrive at, and which of them are believed. May import: the standard
library, fabric.agent.digest, fabric.errors, fabric.wire.notice.
"""

from __future__ import annotations

import socket

from fabric.agent.digest import sha256_hex
from fabric.errors import WireError
from fabric.wire.notice import PORT, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.wire.notice import Notice

_PRIVILEGED = 1024
"""Source ports below are the host's own programs'."""
_SIZE = 65536


class Notices:
    """A socket of its own: packets of the connection do not pay for the question what they are."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("0.0.0.0", PORT))
        self._key = b""
        self._serial = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def believe(self, key: bytes) -> None:
        """Take notices with this key from now on; b"": none."""
        self._key, self._serial = key, 0

    def fingerprint(self) -> str:
        """Shows which key it is without showing it; empty: none."""
        return sha256_hex(self._key) if self._key else ""

    def newest(self) -> Notice | None:
        """The newest notice that came; None: none that is new and genuine."""
        found = None
        while True:
            try:
                data, (_, port) = self._socket.recvfrom(_SIZE)
            except OSError:
                return found
            if port >= _PRIVILEGED:
                continue
            try:
                notice = decode(data)
            except WireError:
                continue
            if self._key and notice.key == self._key and notice.serial > self._serial:
                self._serial = notice.serial
                found = notice
