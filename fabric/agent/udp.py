"""The UDP socket to the other hosts.

Owns: the socket, its buffers, UDP_GRO on the way in and UDP_SEGMENT on the way out.
May import: the standard library, fabric.routing.actions.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
from contextlib import suppress
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.routing.actions import Batch
    from fabric.wire.packet import Buffer

CALLS = 16
"""Receive calls per wake-up; with UDP_GRO each may bring 64 datagrams."""
RECEIVE_BUFFER = 4 * 1024 * 1024
"""Bytes of kernel buffer asked for: a TCP window's worth of bursts while Python is busy."""
SEND_PATIENCE_MS = 100
"""ms to wait for a full send buffer before a batch is given up, as a full router queue would."""
TTL = 64
"""Of what is sent (RFC 1700's default)."""
_RECEIVE_SIZE = 65536
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_FIONREAD = 0x541B
_SEGMENT, _GRO_SIZE = Struct("=H"), Struct("=i")
_CONTROL_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
# What the kernel says when this datagram, device or kernel cannot be segmented.
_UNSEGMENTED = (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


class Underlay:
    """Bursts of datagrams from and to neighbours."""

    def __init__(self, port: int) -> None:
        """Bind to ``port`` on every address. Raises OSError."""
        self.port = port
        self.lost = 0
        """Datagrams the kernel did not take."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.set_hop_limit(TTL)
        self._socket.setblocking(False)
        for force, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, force, RECEIVE_BUFFER)
            except OSError:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, RECEIVE_BUFFER)
        # A packet that has outgrown a link is fragmented, never dropped: docs/wire-format.md.
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        with suppress(OSError):  # without it, datagrams come one by one
            self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        self._socket.bind(("0.0.0.0", port))
        self._writable = select.poll()
        self._writable.register(self._socket, select.POLLOUT)
        self._waiting = bytearray(4)
        self._views = [memoryview(bytearray(_RECEIVE_SIZE)) for _ in range(CALLS)]

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def set_hop_limit(self, hops: int) -> None:
        """TTL of what is sent from now on."""
        self.hop_limit = hops
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)

    def receive_burst(self) -> list[tuple[Buffer, str]]:
        """Datagrams waiting, with the address of the neighbour. Valid until the next call."""
        burst: list[tuple[Buffer, str]] = []
        receive = self._socket.recvmsg_into
        for view in self._views:
            if len(burst) == 1 and not self._another():
                break
            try:
                size, ancillary, _, (address, _) = receive((view,), _CONTROL_SPACE)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier send, reported here
            step = _GRO_SIZE.unpack(ancillary[0][2])[0] if ancillary else size
            if step >= size:
                burst.append((view[:size], address))
            else:
                burst += [(view[at : min(at + step, size)], address) for at in range(0, size, step)]
        return burst

    def _another(self) -> bool:
        """Whether one more datagram waits. The exception that says no to whoever simply tries
        costs three times as much; with a whole burst there, it is one for all of them."""
        fcntl.ioctl(self._socket, _FIONREAD, self._waiting)
        return any(self._waiting)

    def send(self, batch: Batch) -> None:
        """Send a batch; what the kernel refuses is counted."""
        target = (batch.address, self.port)
        segmented = len(batch) > 1
        control = (
            [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(batch.size))] if segmented else []
        )
        error = self._attempt(batch.buffers, control, target)
        if error in _UNSEGMENTED and segmented:
            for datagram in batch.datagrams():
                if self._attempt([datagram], [], target):
                    self.lost += 1
        elif error:
            self.lost += len(batch)

    def _attempt(
        self,
        buffers: list[Buffer],
        control: list[tuple[int, int, bytes]],
        target: tuple[str, int],
    ) -> int:
        # 0 or the errno. A full buffer is worth a wait; a pending ICMP error (ECONNREFUSED) is
        # consumed by the failed call, so that the second one really sends.
        for _ in range(2):
            try:
                self._socket.sendmsg(buffers, control, 0, target)
            except OSError as exc:
                error = exc.errno or errno.EIO
                if error in (errno.EAGAIN, errno.ENOBUFS):
                    self._writable.poll(SEND_PATIENCE_MS)
                elif error != errno.ECONNREFUSED:
                    return error
            else:
                return 0
        return error
