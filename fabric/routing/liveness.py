"""Has the application's TCP connection ended? Seen from the flags passing by.

Owns: TcpLiveness. May import: nothing. Pure; travels into guests. Runs for every packet, so it
looks at two bytes and remembers three bits; sequence numbers are not checked, because the answer
only hastens what an idle timeout would do anyway.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.wire.packet import Buffer

_TCP = 6
_FIN, _RST = 0x01, 0x04
# Offsets of RFC 791, RFC 8200 and RFC 9293: protocol, next header, and flags within the TCP header.
_V4_PROTOCOL, _V6_NEXT_HEADER, _V6_HEADER = 9, 6, 40
_TCP_FLAGS = 13
_V4_FRAGMENT = 6
_BOTH = 3


class TcpLiveness:
    """Counts goodbyes. IPv6 extension headers before TCP are not followed: those flows idle out."""

    __slots__ = ("_finished", "closing")

    def __init__(self) -> None:
        self.closing = False
        self._finished = 0

    def watch(self, packet: Buffer, reply: int, start: int = 0) -> None:
        """Look at an inner packet that begins at ``start``; ``reply`` is 0 or 1 by direction."""
        try:
            version = packet[start] >> 4
            if version == 4 and packet[start + _V4_PROTOCOL] == _TCP:
                # The rest of a fragmented packet has no TCP header.
                if packet[start + _V4_FRAGMENT] & 0x1F or packet[start + _V4_FRAGMENT + 1]:
                    return
                flags = packet[start + (packet[start] & 0x0F) * 4 + _TCP_FLAGS]
            elif version == 6 and packet[start + _V6_NEXT_HEADER] == _TCP:
                flags = packet[start + _V6_HEADER + _TCP_FLAGS]
            else:
                return
        except IndexError:
            return
        if flags & _RST:
            self.closing = True
        elif flags & _FIN:
            self._finished |= 1 << reply
            self.closing = self._finished == _BOTH
        elif flags & 0x02 and not flags & 0x10:
            # A SYN after goodbyes: the same ports again, a new connection (RFC 6191).
            self.closing, self._finished = False, 0
