"""Inner packets: which flow does a packet belong to, and what does a refusal of it look like.

Owns: reading IPv4/IPv6 headers of application packets, and building TCP resets and ICMP errors.
May import: struct only (it runs in the guest, where every import costs milliseconds).

Nothing here raises on bytes from the network: what cannot be understood has no flow (``None``).
"""

from __future__ import annotations

import struct

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
"""IP protocol numbers (IANA)."""

Buffer = bytes | bytearray | memoryview

_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}
_ECHO_TYPES = {ICMP: (0, 8), ICMPV6: (128, 129)}
_ERROR_TYPES = {ICMP: (3, 4, 5, 11, 12), ICMPV6: (1, 2, 3, 4)}

# IPv6 extension headers (RFC 8200 section 4): hop-by-hop, routing, destination options share one
# layout; the fragment header has its own. Anything else ends the chain.
_OPTION_HEADERS = (0, 43, 60)
_FRAGMENT_HEADER = 44
# A chain longer than this is an attack, not an application.
_MAX_EXTENSION_HEADERS = 8

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10

# RFC 1812 4.3.2.3: as much of the packet as fits in 576 bytes; RFC 4443 2.4(c): the minimum MTU.
_MAX_ERROR_V4 = 576
_MAX_ERROR_V6 = 1280
_REFUSAL_TTL = 64
# RFC 1812 5.2.7.1 and RFC 4443 3.1: communication administratively prohibited.
_PROHIBITED = {4: (3, 13), 6: (1, 1)}


class FiveTuple(tuple[int, int, str, int, str, int]):
    """One direction of a flow. Addresses are canonical text (RFC 5952 for IPv6).

    For ICMP echo both ports carry the echo identifier: the request's tuple reversed is the reply's.
    A tuple rather than a dataclass: the guest must not pay for importing ``dataclasses``.
    """

    __slots__ = ()

    def __new__(
        cls,
        version: int,
        protocol: int,
        source: str,
        source_port: int,
        destination: str,
        destination_port: int,
    ) -> FiveTuple:
        fields = (version, protocol, source, source_port, destination, destination_port)
        return tuple.__new__(cls, fields)

    def __getnewargs__(self) -> tuple[int, int, str, int, str, int]:
        """Pickle and copy rebuild through ``__new__``, which takes six arguments and no tuple."""
        return (self[0], self[1], self[2], self[3], self[4], self[5])

    @property
    def version(self) -> int:
        """4 or 6."""
        return self[0]

    @property
    def protocol(self) -> int:
        """IP protocol number: 1, 6, 17 or 58."""
        return self[1]

    @property
    def source(self) -> str:
        return self[2]

    @property
    def source_port(self) -> int:
        return self[3]

    @property
    def destination(self) -> str:
        return self[4]

    @property
    def destination_port(self) -> int:
        return self[5]

    @property
    def is_echo(self) -> bool:
        """Whether the ports are an ICMP echo identifier."""
        return self[1] in _ECHO_TYPES

    def reversed(self) -> FiveTuple:
        """The flow of the answers."""
        return FiveTuple(self[0], self[1], self[4], self[5], self[2], self[3])

    def to_json(self) -> dict[str, int | str]:
        return {
            "version": self[0],
            "protocol": self[1],
            "source": self[2],
            "source_port": self[3],
            "destination": self[4],
            "destination_port": self[5],
        }

    @classmethod
    def from_json(cls, data: dict[str, int | str]) -> FiveTuple:
        """Inverse of :meth:`to_json`. Raises KeyError or ValueError on a malformed mapping."""
        return cls(
            int(data["version"]),
            int(data["protocol"]),
            str(data["source"]),
            int(data["source_port"]),
            str(data["destination"]),
            int(data["destination_port"]),
        )

    def describe(self) -> str:
        """For people: ``tcp 10.77.0.1:40000 > 10.77.0.4:8000``."""
        name = _NAMES.get(self[1], str(self[1]))
        if self.is_echo:
            return f"{name} {self[2]} > {self[4]} id {self[3]}"
        source, destination = (f"[{a}]" if self[0] == 6 else a for a in (self[2], self[4]))
        return f"{name} {source}:{self[3]} > {destination}:{self[5]}"

    def __repr__(self) -> str:
        return f"FiveTuple({self.describe()})"


class _View:
    """Where things are in one IP packet. ``transport`` is -1 in a non-first fragment."""

    __slots__ = ("end", "fragment", "protocol", "transport", "version")

    def __init__(
        self, version: int, protocol: int, transport: int, end: int, fragment: int | None
    ) -> None:
        self.version = version
        self.protocol = protocol
        self.transport = transport
        self.end = end
        self.fragment = fragment


def parse_flow(packet: Buffer) -> FiveTuple | None:
    """The flow of a TCP, UDP or ICMP echo packet, else ``None``.

    ``None`` for truncated packets, later fragments (see :func:`fragment_key`), ICMP errors (see
    :func:`embedded_flow`) and every other protocol.
    """
    view = _look(packet)
    return None if view is None else _flow(packet, view)


def embedded_flow(packet: Buffer) -> FiveTuple | None:
    """The flow of the packet quoted in an ICMP error, else ``None``.

    The quoted packet travelled the other way: an error sent by this host quotes a packet it
    received. Routers may quote as little as the IP header and 8 bytes (RFC 792).
    """
    view = _look(packet)
    if view is None or view.transport < 0 or view.end - view.transport < 8:
        return None
    if packet[view.transport] not in _ERROR_TYPES.get(view.protocol, ()):
        return None
    quoted = bytes(packet[view.transport + 8 : view.end])
    inner = _look(quoted, quoted=True)
    return None if inner is None else _flow(quoted, inner)


def fragment_key(packet: Buffer) -> tuple[bytes, int, int] | None:
    """What all fragments of one datagram share (addresses, protocol, identification), or ``None``.

    Only the first fragment carries ports; whoever remembers its key knows the flow of the rest.
    """
    view = _look(packet)
    if view is None or view.fragment is None:
        return None
    addresses = packet[12:20] if view.version == 4 else packet[8:40]
    return bytes(addresses), view.protocol, view.fragment


def dscp(packet: Buffer) -> int:
    """The six DSCP bits (RFC 2474); 0 for anything that is not IP."""
    if len(packet) < 2:
        return 0
    version = packet[0] >> 4
    traffic_class = ((packet[0] << 8 | packet[1]) >> 4 & 0xFF) if version == 6 else packet[1]
    return traffic_class >> 2 if version in (4, 6) else 0


def refusal(packet: Buffer) -> bytes | None:
    """The packet that tells the sender of ``packet`` "no": a TCP reset or an ICMP error.

    TCP follows RFC 9293 section 3.10.7.1; all else gets "communication administratively
    prohibited". The answer claims to come from the destination, as a host firewall's would.
    ``None`` where no answer is allowed: to resets, ICMP errors, later fragments, multicast or
    unspecified addresses (RFC 1122 section 3.2.2, RFC 4443 section 2.4(e)).
    """
    view = _look(packet)
    if view is None or view.transport < 0 or not _answerable(packet, view):
        return None
    if view.protocol == TCP:
        return _reset(packet, view)
    kind, code = _PROHIBITED[view.version]
    limit = _MAX_ERROR_V4 - 28 if view.version == 4 else _MAX_ERROR_V6 - 48
    quote = bytes(packet[: min(view.end, limit)])
    protocol = ICMP if view.version == 4 else ICMPV6
    body = struct.pack("!BBHI", kind, code, 0, 0) + quote
    return _datagram(packet, view.version, protocol, body, checksum_at=2)


def begins_connection(packet: Buffer) -> bool:
    """Whether the packet may be the first of its flow: of TCP only a SYN without ACK or RST is."""
    view = _look(packet)
    if view is None or view.protocol != TCP or view.transport < 0:
        return True
    flags_at = view.transport + 13
    return len(packet) > flags_at and packet[flags_at] & (_SYN | _ACK | _RST) == _SYN


def checksum(data: Buffer) -> int:
    """The internet checksum (RFC 1071) of ``data``."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def format_address(raw: Buffer) -> str:
    """Text of a 4 or 16 byte address, canonical as in RFC 5952."""
    if len(raw) == 4:
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"
    groups = struct.unpack("!8H", raw)
    best_start, best_length, start = 0, 0, -1
    for index in range(9):
        if index < 8 and groups[index] == 0:
            start = index if start < 0 else start
        elif start >= 0:
            if index - start > best_length:
                best_start, best_length = start, index - start
            start = -1
    text = [f"{group:x}" for group in groups]
    if best_length < 2:  # a single zero group is never shortened (RFC 5952 section 4.2.2)
        return ":".join(text)
    return ":".join(text[:best_start]) + "::" + ":".join(text[best_start + best_length :])


def _look(packet: Buffer, *, quoted: bool = False) -> _View | None:
    """Bounds-checked walk to the transport header. ``quoted``: the packet's end may be cut off."""
    size = len(packet)
    if size < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        return _look_v4(packet, size, quoted)
    if version == 6 and size >= 40:
        return _look_v6(packet, size, quoted)
    return None


def _look_v4(packet: Buffer, size: int, quoted: bool) -> _View | None:
    header = (packet[0] & 0x0F) * 4
    total, identification, fragment = struct.unpack_from("!HHH", packet, 2)
    if header < 20 or total < header or size < header:
        return None
    if total > size and not quoted:
        return None
    fragmented = fragment & 0x3FFF  # more-fragments flag or a non-zero offset
    transport = -1 if fragment & 0x1FFF else header
    return _View(4, packet[9], transport, min(total, size), identification if fragmented else None)


def _look_v6(packet: Buffer, size: int, quoted: bool) -> _View | None:
    end = 40 + struct.unpack_from("!H", packet, 4)[0]
    if end > size and not quoted:
        return None
    end = min(end, size)
    following, at, fragment = packet[6], 40, None
    for _ in range(_MAX_EXTENSION_HEADERS):
        if following in _OPTION_HEADERS:
            if at + 8 > end:
                return None
            following, at = packet[at], at + 8 * (packet[at + 1] + 1)
        elif following == _FRAGMENT_HEADER:
            if at + 8 > end:
                return None
            offset, fragment = struct.unpack_from("!HI", packet, at + 2)
            following, at = packet[at], at + 8
            if offset & 0xFFF8:
                return _View(6, following, -1, end, fragment)
        else:
            return _View(6, following, at, end, fragment) if at <= end else None
    return None


def _flow(packet: Buffer, view: _View) -> FiveTuple | None:
    at, protocol, version = view.transport, view.protocol, view.version
    # Eight bytes: the whole UDP or echo header, and all of TCP that an ICMP error must quote.
    if at < 0 or view.end - at < 8:
        return None
    if protocol in (TCP, UDP):
        source_port, destination_port = struct.unpack_from("!HH", packet, at)
    elif packet[at] in _ECHO_TYPES.get(protocol, ()) and (protocol == ICMP) == (version == 4):
        source_port = destination_port = struct.unpack_from("!H", packet, at + 4)[0]
    else:
        return None
    source, destination = _addresses(packet, version)
    return FiveTuple(
        version,
        protocol,
        format_address(source),
        source_port,
        format_address(destination),
        destination_port,
    )


def _addresses(packet: Buffer, version: int) -> tuple[bytes, bytes]:
    if version == 4:
        return bytes(packet[12:16]), bytes(packet[16:20])
    return bytes(packet[8:24]), bytes(packet[24:40])


def _answerable(packet: Buffer, view: _View) -> bool:
    """Whether RFC 1122 and RFC 4443 permit any answer at all to this packet."""
    at, end = view.transport, view.end
    source, destination = _addresses(packet, view.version)
    if not any(source) or not any(destination):
        return False
    if view.version == 4:
        # 224/4 and above: multicast, reserved, limited broadcast.
        if source[0] >= 224 or destination[0] >= 224:
            return False
    elif source[0] == 0xFF or destination[0] == 0xFF:
        return False
    if view.protocol in _ERROR_TYPES:
        # Also true for unknown types: they might be errors (RFC 4443 2.4(e)(1)).
        return end > at and packet[at] in _ECHO_TYPES[view.protocol]
    return True


def _reset(packet: Buffer, view: _View) -> bytes | None:
    at = view.transport
    if view.end - at < 20:
        return None
    ports = struct.unpack_from("!HH", packet, at)
    sequence, acknowledged, offset, flags = struct.unpack_from("!IIBB", packet, at + 4)
    data = view.end - at - (offset >> 4) * 4
    if flags & _RST or data < 0:
        return None
    if flags & _ACK:
        answer = (acknowledged, 0, _RST)
    else:
        length = data + bool(flags & _SYN) + bool(flags & _FIN)
        answer = (0, (sequence + length) & 0xFFFFFFFF, _RST | _ACK)
    segment = struct.pack(
        "!HHIIBBHHH", ports[1], ports[0], answer[0], answer[1], 5 << 4, answer[2], 0, 0, 0
    )
    return _datagram(packet, view.version, TCP, segment, checksum_at=16)


def _datagram(
    packet: Buffer, version: int, protocol: int, body: bytes, *, checksum_at: int
) -> bytes:
    """``body`` in an IP packet back to the sender of ``packet``, all checksums filled in."""
    source, destination = _addresses(packet, version)
    pseudo = destination + source + struct.pack("!HH", protocol, len(body))
    # ICMP over IPv4 is the one without a pseudo header (RFC 792); ICMPv6 has one (RFC 4443 2.3).
    covered = body if protocol == ICMP else pseudo + body
    body = body[:checksum_at] + struct.pack("!H", checksum(covered)) + body[checksum_at + 2 :]
    if version == 6:
        fixed = struct.pack("!IHBB", 6 << 28, len(body), protocol, _REFUSAL_TTL)
        return fixed + destination + source + body
    total = 20 + len(body)
    fixed = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, _REFUSAL_TTL, protocol, 0)
    header_sum = checksum(fixed + destination + source)
    return fixed[:10] + struct.pack("!H", header_sum) + destination + source + body
