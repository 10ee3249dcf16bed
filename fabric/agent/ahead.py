"""A datagram sent ahead of its sender's address: one frame, with headers made here.

Owns: a packet socket that only sends, the headers of Ethernet, IPv4 and UDP. May import: the
standard library, fabric.wire. Sources: packet(7); RFC 894; RFC 791; RFC 768 (no checksum: zero).

To take MAC and address and to send by UDP is 25,000 instructions of the guest's kernel, two fifths
of what an emulator has to translate between a copy's waking up and its first packet. The first
packet needs none of it: who sends it is known, and so is the gateway's MAC.
"""

from __future__ import annotations

import socket
from struct import Struct

from fabric.wire.inner import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.routing.actions import Batch

_HEADERS = Struct("!6s6sHBBHHHBBH4s4sHHHH")
"""Ethernet: destination, source, type; IPv4; UDP: ports, length, checksum."""
_IP, _CHECKSUM, _UDP = 14, 24, 34
"""Where IPv4's header begins, its checksum is, and UDP's header begins."""
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_IPV4, _VERSION_AND_LENGTH, _IPPROTO_UDP = 0x0800, 0x45, 17


class Ahead:
    """The way out of an interface that has no address."""

    def __init__(self, name: str, gateway_mac: str) -> None:
        """Raises OSError. The interface may go down and come up later."""
        self._gateway = bytes.fromhex(gateway_mac.replace(":", ""))
        # Protocol 0: nothing is received here.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((name, 0))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)

    def send(self, batch: Batch, *, mac: bytes, address: bytes, port: int, hop_limit: int) -> None:
        """Send a batch of one datagram, from ``port`` to ``port``, as 6 octets of MAC and 4 of
        address say. Raises OSError; it may be sent by UDP then."""
        heads = headers(
            self._gateway,
            mac,
            address,
            socket.inet_aton(batch.address),
            port,
            hop_limit,
            batch.size,
        )
        self._socket.sendmsg((heads, *batch.buffers))


def headers(
    gateway: bytes, mac: bytes, source: bytes, destination: bytes, port: int, hops: int, size: int
) -> bytearray:
    """What comes before ``size`` bytes of UDP payload."""
    length = size + _HEADERS.size - _UDP
    made = bytearray(
        _HEADERS.pack(
            gateway,
            mac,
            _IPV4,
            _VERSION_AND_LENGTH,
            0,
            length + _UDP - _IP,
            0,  # identification, and no flags: it may be fragmented
            0,
            hops,
            _IPPROTO_UDP,
            0,
            source,
            destination,
            port,
            port,
            length,
            0,
        )
    )
    made[_CHECKSUM : _CHECKSUM + 2] = checksum(made[_IP:_UDP]).to_bytes(2, "big")
    return made
