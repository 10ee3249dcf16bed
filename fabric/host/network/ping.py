"""Asking a guest's kernel over the network whether it is there.

Owns: one ICMP echo (RFC 792), in the network namespace the process stands in. May import: errors,
wire.inner.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable

from fabric.errors import AgentLost
from fabric.wire.inner import checksum

Ping = Callable[[str, float], Awaitable[None]]
"""See :func:`ping`."""

REPEAT = 0.5
"""Seconds before a question is asked again: the first may have been lost."""

_REQUEST, _REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")
_SIZE = 1024


async def ping(address: str, timeout: float) -> None:
    """Returns when the guest at this IPv4 address answers.

    Raises AgentLost when it does not within ``timeout`` seconds.
    """
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    link.setblocking(False)
    number = secrets.randbits(16)
    try:
        async with asyncio.timeout(timeout):
            while not await _asked(link, address, number):
                pass
    except (OSError, TimeoutError) as exc:
        why = str(exc) or f"no answer within {timeout:g} s"
        raise AgentLost(f"{address}: cannot be reached over the network: {why}") from exc
    finally:
        link.close()


async def _asked(link: socket.socket, address: str, number: int) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_sendto(link, _request(number), (address, 0))
    try:
        async with asyncio.timeout(REPEAT):
            while True:
                packet, (source, _) = await loop.sock_recvfrom(link, _SIZE)
                if source == address and _is_reply(packet, number):
                    return True
    except TimeoutError:
        return False


def _request(number: int) -> bytes:
    bare = _HEADER.pack(_REQUEST, 0, 0, number, 1)
    return _HEADER.pack(_REQUEST, 0, checksum(bare), number, 1)


def _is_reply(packet: bytes, number: int) -> bool:
    start = (packet[0] & 15) * 4 if packet else 0  # a raw socket gets the IP header, too
    if len(packet) < start + _HEADER.size:
        return False
    kind, _, _, identifier, _ = _HEADER.unpack_from(packet, start)
    return (kind, identifier) == (_REPLY, number)
