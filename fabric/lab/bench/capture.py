"""What the kernel saw, and when: packets on interfaces of a namespace, apart from the fabric.

Owns: Sighting, Capture. May import: errors, wire, lab. Packet sockets with the kernel's own time
stamps: a packet is stamped where it passes, whenever we come to read it, so nothing of ours runs
while something is being measured.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fabric.errors import WireError
from fabric.lab.bench.bed import in_namespace
from fabric.wire.inner import UDP, FiveTuple, parse_flow
from fabric.wire.packet import FLAG_REPLY, PAYLOAD_IPV4, PAYLOAD_IPV6, Packet

# <asm-generic/socket.h>, <linux/if_ether.h>; the socket module does not name them
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_ETH_P_ALL = 0x0003
_TIMESPEC = struct.Struct("=qq")
_SNAP = 65536
BUFFER = 16 << 20
"""Bytes the kernel keeps until we come to read: a minute of a few hundred connections."""
UDP_HEADER = 8


@dataclass(frozen=True)
class Sighting:
    """One packet of an application, plain or inside a fabric packet on its way forward."""

    at_us: float
    """Unix time, µs, by the kernel."""
    flow: FiveTuple
    """Of the inner packet."""
    packet: bytes
    """The inner packet."""
    connection: int | None = None
    """The fabric's number for it; None: not inside a fabric packet."""


def sighting(frame: bytes, at_us: float, port: int) -> Sighting | None:
    """What an IP packet is to us; None: an announcement, a reply, something else. ``port``: UDP
    port of fabric packets."""
    flow = parse_flow(frame)
    if flow is None:
        return None
    if flow.protocol != UDP or flow.destination_port != port:
        return Sighting(at_us, flow, frame)
    start = (frame[0] & 15) * 4 + UDP_HEADER
    try:
        packet = Packet.parse(frame[start:])
    except WireError:
        return None
    header = packet.header
    if header.payload_type not in (PAYLOAD_IPV4, PAYLOAD_IPV6) or header.flags & FLAG_REPLY:
        return None
    inner = parse_flow(packet.payload)
    if inner is None:
        return None
    return Sighting(at_us, inner, bytes(packet.payload), header.connection)


class Capture:
    """Packets on some interfaces of a namespace, from :meth:`__enter__` on. A context manager."""

    def __init__(self, namespace: str, interfaces: Sequence[str], port: int) -> None:
        self._namespace, self._interfaces, self._port = namespace, interfaces, port
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Raises OSError, NameUnknown."""
        in_namespace(self._namespace, self._open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def forget(self) -> None:
        """Drop what was captured so far."""
        self._drain()

    def until(self, done: Callable[[list[Sighting]], bool], deadline: float) -> list[Sighting]:
        """What was captured since the last call, by time, as soon as ``done`` with it or after
        ``deadline`` seconds."""
        end = time.monotonic() + deadline
        found = self._drain()
        while not done(found) and (left := end - time.monotonic()) > 0:
            select.select(self._sockets, [], [], left)
            found += self._drain()
        return sorted(found, key=lambda each: each.at_us)

    def _open(self) -> None:
        for name in self._interfaces:
            # Protocol 0: nothing is queued before the socket is bound to its interface.
            link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._sockets.append(link)
            link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
            link.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            link.setblocking(False)
            link.bind((name, _ETH_P_ALL))

    def _drain(self) -> list[Sighting]:
        found = []
        for link in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, control, _, _ = link.recvmsg(_SNAP, socket.CMSG_SPACE(_TIMESPEC.size))
                    seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
                    at_us = seconds * 1e6 + nanoseconds / 1e3
                    if (seen := sighting(frame, at_us, self._port)) is not None:
                        found.append(seen)
        return found
