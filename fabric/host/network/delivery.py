"""Handing held packets to a guest, as if the kernel had steered them there itself.

Owns: the packet socket towards the guests and the raw socket that keeps a neighbour's source
address. May import: errors, wire, host.network.netns.

Both kinds of packet carry complete checksums: the miss device has no offloads, so its reader gets
finished packets, and the UDP header of a neighbour's datagram is built anew here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from fabric.host.network.netns import translate
from fabric.wire.inner import UDP, checksum

_SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>; the socket module does not name it
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_TTL = 64
# Room for a whole host's held packets at once (4096 small ones), so that a burst is not lost.
_SEND_BUFFER_BYTES = 8 << 20


class Delivery:
    """Sends to guests from the namespace the opening thread stands in. A context manager.

    Sending never blocks and never raises for a single packet: what the kernel will not take is
    counted in ``lost``, like on any network.
    """

    def __init__(self, guest_interface: str, port: int) -> None:
        self._interface = guest_interface
        self._port = port
        self._frames: socket.socket | None = None
        self._datagrams: socket.socket | None = None
        self.lost = 0
        """Packets the kernel refused, since the start."""

    def __enter__(self) -> Self:
        try:
            # Protocol 0: this socket only sends; a bound protocol would also queue every frame.
            self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            for sender in (self._frames, self._datagrams):
                sender.setblocking(False)
                sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
            name = self._interface.encode()
            self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        except OSError as exc:
            self.__exit__(None, None, None)
            raise translate(exc.errno or 0, f"delivery through {self._interface}") from exc
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sender in (self._frames, self._datagrams):
            if sender is not None:
                sender.close()
        self._frames = self._datagrams = None

    def inner(self, packets: Iterable[bytes], mac: str) -> None:
        """Application packets, in order, to the guest with this MAC."""
        assert self._frames is not None, "used outside its with-block"
        hardware = bytes.fromhex(mac.replace(":", ""))
        for packet in packets:
            ethertype = _ETHERTYPES.get(packet[0] >> 4, 0) if packet else 0
            target = (self._interface, ethertype, 0, 0, hardware)
            self._send(self._frames, packet, target)

    def underlay(self, datagrams: Sequence[tuple[bytes, str]], guest_address: str) -> None:
        """Neighbours' fabric packets, in order: (UDP payload, the neighbour's address). The guest
        sees the neighbour's address as the source, as it will once steering is in place."""
        assert self._datagrams is not None, "used outside its with-block"
        for payload, source in datagrams:
            packet = udp_packet(payload, source, guest_address, self._port)
            self._send(self._datagrams, packet, (guest_address, 0))

    def _send(self, sender: socket.socket, packet: bytes, target: tuple[object, ...]) -> None:
        try:
            sender.sendto(packet, target)
        except OSError:
            self.lost += 1


def udp_packet(payload: bytes, source: str, destination: str, port: int) -> bytes:
    """A whole IPv4/UDP packet between two hosts' fabric ports; the kernel adds the IP checksum."""
    length = 8 + len(payload)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    udp = struct.pack("!HHHH", port, port, length, 0)
    pseudo = addresses + struct.pack("!HH", UDP, length)
    # RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF)
    fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _TTL, UDP, 0)
    return fixed + addresses + udp + payload
