"""The TUN device through which inner packets enter and leave the agent.

Owns: the device, its buffers, bursts of reads and writes. May import: the standard library,
fabric.routing.segment. With IFF_VNET_HDR the kernel hands over and takes TCP super-packets.
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from fabric.routing.segment import NEEDS_CSUM, PLAIN, VNET, VNET_SIZE, merge, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.wire.packet import Buffer

BURST = 32
"""Reads per wake-up: with super-packets up to 2 MiB, which a send buffer still takes."""
_READ_SIZE = VNET_SIZE + 65535
_IFREQ = Struct("16sH22x")
_LEAST_V6, _V6_DESTINATION, _MULTICAST = VNET_SIZE + 40, 24, 0xFF
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOAD_CSUM, _OFFLOAD_TSO4, _OFFLOAD_TSO6 = 1, 2, 4


class Tun:
    """A TUN device with offloads; read and write bursts of inner packets."""

    def __init__(self, name: str) -> None:
        """Create the device, down. Raises OSError (no /dev/net/tun, no privilege, name in use)."""
        self.name = name
        self.lost = 0
        """Packets the kernel did not take."""
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self._fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _OFFLOAD_CSUM | _OFFLOAD_TSO4 | _OFFLOAD_TSO6)
        # Allocated lazily by the kernel: pages no packet ever reached cost nothing.
        self._buffers = [bytearray(_READ_SIZE) for _ in range(BURST)]
        self._views = [memoryview(buffer) for buffer in self._buffers]

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def read_burst(self) -> list[Buffer]:
        """Inner packets waiting, cut to the device's MTU. Valid until the next call."""
        packets: list[Buffer] = []
        fd, unpack = self._fd, VNET.unpack_from
        for buffer, view in zip(self._buffers, self._views, strict=True):
            try:
                size = os.readv(fd, (buffer,))
            except BlockingIOError:
                break
            packet = view[VNET_SIZE:size]
            if buffer[0] & NEEDS_CSUM or buffer[1]:
                packets += split(unpack(buffer), packet)
            elif packet[0] >> 4 != 6 or size < _LEAST_V6 or packet[_V6_DESTINATION] != _MULTICAST:
                # The kernel announces itself on every interface (MLD): not the application's.
                packets.append(packet)
        return packets

    def write_burst(self, packets: Sequence[Buffer]) -> None:
        """Hand inner packets to the kernel, joined where allowed; what it refuses is counted."""
        writes: Sequence[Sequence[Buffer]]
        writes = merge(packets) if len(packets) > 1 else [(PLAIN, packet) for packet in packets]
        for buffers in writes:
            try:
                os.writev(self._fd, buffers)
            except OSError:
                # EAGAIN: the kernel's backlog is full, as a router's queue may be. EINVAL: the
                # inner packet is nonsense. Neither is a reason to stop.
                self.lost += 1
