"""Which interfaces have a carrier, as the kernel says it (rtnetlink(7)).

Owns: a socket in the group RTMGRP_LINK and the few bytes of its messages that matter here. May
import: nothing. The whole of pyroute2 would cost each of these small processes 20 MiB.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from struct import Struct

_RTMGRP_LINK = 1
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFF_LOWER_UP = 0x10000
_HEADER = Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
_LINK = Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, change."""
_RECEIVE = 1 << 17


class CarrierWatch:
    """A context manager is not needed: :meth:`close`."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP_LINK))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Have :meth:`read` give the standing of every interface again."""
        size = _HEADER.size + _LINK.size
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        request = _HEADER.pack(size, _RTM_GETLINK, flags, 1, 0) + _LINK.pack(0, 0, 0, 0, 0)
        self._socket.sendto(request, (0, 0))

    def read(self) -> Iterator[tuple[int, bool]]:
        """(interface index, whether it has a carrier) of what changed, oldest first."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self.ask()  # messages were lost: everything once more
                continue
            yield from _links(data)


def _links(data: bytes) -> Iterator[tuple[int, bool]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            _, _, index, flags, _ = _LINK.unpack_from(data, at + _HEADER.size)
            yield index, kind == _RTM_NEWLINK and bool(flags & _IFF_LOWER_UP)
        at += (length + 3) & ~3
