"""What a host tells its guests when a neighbour stops or starts to answer: one datagram for each.

Owns: the notice and its codec. May import: fabric.wire.{errors,fact}, struct, socket's address
arithmetic. Travels into guests.

The same is in the table that follows, but a table is computed, and comes through the orchestrator.
The notice comes from whoever watches the links, straight from the network, and is complete: the
last one is the one that counts.
"""

from __future__ import annotations

from struct import Struct

from fabric.wire.errors import LengthMismatch, PacketTooShort
from fabric.wire.fact import Fact

PORT = 7706
"""UDP, in guests."""
KEY_SIZE = 8
"""Bytes of the key by which a guest knows its host's word from others'. It came with Configure, and
is this guest's and this connection's alone."""
_HEAD = Struct("!8sQH")
_ADDRESS = 4


class Notice(Fact):
    """Neighbours that must not be used, by the underlay addresses of the links to them."""

    key: bytes
    serial: int
    """Larger than in every notice before: Unix µs of the sender."""
    down: tuple[str, ...]


def encode(notice: Notice) -> bytes:
    """At most 65535 addresses."""
    packed = b"".join(bytes(int(part) for part in address.split(".")) for address in notice.down)
    return _HEAD.pack(notice.key, notice.serial, len(notice.down)) + packed


def decode(data: bytes) -> Notice:
    """Raises PacketTooShort, LengthMismatch."""
    if len(data) < _HEAD.size:
        raise PacketTooShort("notice", _HEAD.size, len(data))
    key, serial, count = _HEAD.unpack_from(data)
    size = _HEAD.size + count * _ADDRESS
    if size != len(data):
        raise LengthMismatch("notice", size, len(data))
    down = tuple(
        ".".join(map(str, data[at : at + _ADDRESS])) for at in range(_HEAD.size, size, _ADDRESS)
    )
    return Notice(key, serial, down)
