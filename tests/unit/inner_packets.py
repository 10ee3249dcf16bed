"""Inner packets for tests, with checksums computed the slow, obvious way.

Owns: builders and a verifier that share no code with the product. May import: the standard library.
"""

from __future__ import annotations

import socket
import struct


def slow_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_packet(
    data: bytes,
    *,
    version: int = 4,
    sequence: int = 1000,
    ack: int = 7,
    flags: int = 0x10,
    window: int = 512,
    options: bytes = b"",
    ident: int = 1,
    ports: tuple[int, int] = (40000, 80),
) -> bytes:
    """A TCP segment in IPv4 or IPv6 with right checksums."""
    offset = (5 + len(options) // 4) << 4
    tcp = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, ack, offset, flags, window, 0, 0)
    segment = tcp + options + data
    pseudo, header = _network(version, len(segment), 6, ident)
    check = 0xFFFF ^ slow_sum(pseudo + segment)
    return header + segment[:16] + struct.pack(">H", check) + segment[18:]


def udp_packet(data: bytes, *, version: int = 4, ports: tuple[int, int] = (5000, 53)) -> bytes:
    """A UDP datagram in IPv4 or IPv6 with right checksums."""
    segment = struct.pack(">HHHH", *ports, 8 + len(data), 0) + data
    pseudo, header = _network(version, len(segment), 17, 1)
    check = 0xFFFF ^ slow_sum(pseudo + segment) or 0xFFFF
    return header + segment[:6] + struct.pack(">H", check) + segment[8:]


def _network(version: int, length: int, protocol: int, ident: int) -> tuple[bytes, bytes]:
    if version == 4:
        addresses = socket.inet_aton("10.77.0.1") + socket.inet_aton("10.77.0.4")
        head = struct.pack(
            ">BBHHHBBH", 0x45, 0, 20 + length, ident & 0xFFFF, 0x4000, 64, protocol, 0
        )
        check = 0xFFFF ^ slow_sum(head + addresses)
        pseudo = addresses + struct.pack(">BBH", 0, protocol, length)
        return pseudo, head[:10] + struct.pack(">H", check) + addresses
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in ("fd77::1", "fd77::4"))
    head = struct.pack(">IHBB", 6 << 28, length, protocol, 64)
    return addresses + struct.pack(">II", length, protocol), head + addresses


def checksums_hold(packet: bytes) -> bool:
    """Do the IP and transport checksums and lengths of this packet fit?"""
    if packet[0] >> 4 == 4:
        begin, protocol = (packet[0] & 15) * 4, packet[9]
        if slow_sum(packet[:begin]) != 0xFFFF or int.from_bytes(packet[2:4], "big") != len(packet):
            return False
        pseudo = packet[12:20] + struct.pack(">BBH", 0, protocol, len(packet) - begin)
    else:
        begin, protocol = 40, packet[6]
        if int.from_bytes(packet[4:6], "big") != len(packet) - 40:
            return False
        pseudo = packet[8:40] + struct.pack(">II", len(packet) - begin, protocol)
    return slow_sum(pseudo + packet[begin:]) == 0xFFFF
