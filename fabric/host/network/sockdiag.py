"""Which socket does a flow belong to: inode, user and cgroup, asked of the kernel directly.

Owns: the sock_diag netlink exchange (sock_diag(7), <linux/inet_diag.h>) and the tables of ICMP
sockets in /proc. May import: wire. Everything is asked in the namespace of the calling thread.

One exact question, not a dump: the kernel finds the socket in its hash tables whatever their size.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from fabric.wire.inner import ICMP, TCP, UDP, FiveTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_INET_DIAG_CGROUP_ID = 21
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8

_MESSAGE_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE_HEADER = struct.Struct("=HH")
# struct inet_diag_msg: 4 bytes, 48 of socket id, then expires, rqueue, wqueue, uid, inode.
_REPLY_TAIL = struct.Struct("=5I")
_REPLY_TAIL_AT = 4 + 48
_REPLY_BYTES = 8192

# The kernel answers on the spot; a second means that it will not.
_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True)
class SocketOwner:
    """What the kernel knows of a socket."""

    inode: int
    uid: int
    cgroup_id: int | None = None
    """Inode of its directory in the unified hierarchy, where the kernel tells it."""


def find_socket(flow: FiveTuple) -> list[SocketOwner]:
    """The local sockets that may have sent a packet of this flow, likeliest first.

    One for TCP and UDP; raw ICMP sockets have no identifier, so there may be several. Empty when
    the packet is forwarded, the kernel's own, or its socket is gone. Never raises.
    """
    try:
        if flow.is_echo:
            return _icmp_sockets(flow)
        owner = _ask(flow)
    except (OSError, ValueError, IndexError, struct.error):
        return []
    return [owner] if owner is not None and owner.inode else []


def _ask(flow: FiveTuple) -> SocketOwner | None:
    if flow.protocol not in (TCP, UDP):
        return None
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as channel:
        channel.settimeout(_TIMEOUT_SECONDS)
        channel.sendto(_request(flow), (0, 0))
        return _parse_reply(channel.recv(_REPLY_BYTES))


def _request(flow: FiveTuple) -> bytes:
    """struct inet_diag_req_v2 behind a netlink header."""
    family = socket.AF_INET if flow.version == 4 else socket.AF_INET6
    # A UDP question is put from the receiver's side: "src" is the remote end (net/ipv4/udp_diag.c,
    # "src and dst are swapped for historical reasons").
    seen = flow.reversed() if flow.protocol == UDP else flow
    body = struct.pack("=BBBxI", family, flow.protocol, 0, _ALL_STATES)
    body += struct.pack("!HH", seen.source_port, seen.destination_port)
    for address in (seen.source, seen.destination):
        body += socket.inet_pton(family, address).ljust(16, b"\0")
    body += struct.pack("=I", 0) + _NO_COOKIE
    size = _MESSAGE_HEADER.size + len(body)
    return _MESSAGE_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body


def _parse_reply(reply: bytes) -> SocketOwner | None:
    size, kind, *_ = _MESSAGE_HEADER.unpack_from(reply)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None  # an error message: no such socket
    body = reply[_MESSAGE_HEADER.size : size]
    *_, uid, inode = _REPLY_TAIL.unpack_from(body, _REPLY_TAIL_AT)
    cgroup_id, at = None, _REPLY_TAIL_AT + _REPLY_TAIL.size
    while at + _ATTRIBUTE_HEADER.size <= len(body):
        length, attribute = _ATTRIBUTE_HEADER.unpack_from(body, at)
        if length < _ATTRIBUTE_HEADER.size:
            break
        if attribute == _INET_DIAG_CGROUP_ID:
            (cgroup_id,) = struct.unpack_from("=Q", body, at + _ATTRIBUTE_HEADER.size)
        at += (length + 3) & ~3
    return SocketOwner(inode, uid, cgroup_id)


def _icmp_sockets(flow: FiveTuple) -> list[SocketOwner]:
    """Ping sockets carry their identifier; raw sockets only say which protocol they are for."""
    suffix = "" if flow.protocol == ICMP else "6"
    found = _proc_sockets("icmp" + suffix, flow.source_port)
    return found or _proc_sockets("raw" + suffix, flow.protocol)


def _proc_sockets(table: str, number: int) -> list[SocketOwner]:
    """Rows of /proc/net/<table> whose local "port" is ``number``; newest inode first."""
    owners = []
    lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()
    for line in lines[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == number:
            owners.append(SocketOwner(inode=int(fields[9]), uid=int(fields[7])))
    return sorted(owners, key=lambda owner: owner.inode, reverse=True)
