"""TCP super-packets: cut what the kernel hands over whole, and join what may travel as one.

Owns: split, merge and the checksum. May import: nothing but struct. Pure; travels into guests.

A TUN device with IFF_VNET_HDR hands over up to 64 KiB of TCP in one read, headers once, checksum
not computed yet; and it takes the same. Per packet, a write costs far more than the bytes in it,
most of all under emulation. The layout is ``struct virtio_net_hdr`` (virtio 1.2, section 5.1.6),
little-endian as the kernel's legacy format is on the machines we run on.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.wire.packet import Buffer

VNET = Struct("<BBHHHH")
"""flags, gso type, header length, gso size, checksum start, checksum offset"""
VNET_SIZE = VNET.size
PLAIN = bytes(VNET_SIZE)
"""The header of a packet that is complete."""
MAX_PACKET = 65535
"""Bytes: the 16-bit length fields of IPv4 and IPv6."""
MAX_MERGE = 64
"""Segments joined at once: bounds the buffers of one writev and the time to the first write."""
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_ECN = 0, 1, 4, 0x80
_TCP, _UDP = 6, 17
_TCP_CSUM = 16
_FIN, _PSH, _ACK, _CWR = 0x01, 0x08, 0x10, 0x80
_U16, _SEQ = Struct(">H"), Struct(">I")
_LENGTH_ID = Struct(">HH")


def ones_sum(data: Buffer) -> int:
    """RFC 1071 sum of 16-bit words, folded, 0…65534, not complemented.

    A number in base 65536 is congruent to the sum of its digits modulo 65535, and a big integer's
    remainder is computed in C: a hundred times faster than adding words in Python.
    """
    value = int.from_bytes(data, "big")
    return (value << 8 if len(data) & 1 else value) % 65535


def checksum(total: int) -> int:
    """The field for data whose words sum to ``total`` (never all zero in an IP packet)."""
    return 65535 - (total % 65535 or 65535)


def complete(packet: bytearray | memoryview, start: int, offset: int) -> None:
    """Finish the checksum the kernel left to the device: the field holds the pseudo-header's sum.

    A start or offset outside the packet is ignored: the kernel never sends one.
    """
    field = start + offset
    if field + 2 > len(packet):
        return
    value = checksum(ones_sum(packet[start:]))
    if not value and offset == 6:  # UDP: zero means "none" (RFC 768)
        value = 0xFFFF
    _U16.pack_into(packet, field, value)


def split(vnet: tuple[int, ...], packet: memoryview) -> list[Buffer]:
    """Packets of at most the announced size, checksums complete. May write to ``packet``."""
    flags, kind, _, size, start, offset = vnet
    kind &= ~GSO_ECN
    if kind not in (GSO_TCPV4, GSO_TCPV6) or not size or start + 20 > len(packet):
        if flags & NEEDS_CSUM:
            complete(packet, start, offset)
        return [packet]
    begin = start + (packet[start + 12] >> 4) * 4
    header = bytearray(packet[:begin])
    v4 = kind == GSO_TCPV4
    sequence = _SEQ.unpack_from(header, start + 4)[0]
    tcp_flags = header[start + 13]
    identification = _U16.unpack_from(header, 4)[0]
    base = _fixed_sum(header, start, v4)
    header[10:12] = b"\0\0" if v4 else header[10:12]
    header[2:6] = b"\0\0\0\0" if v4 else header[2:6]
    ip_base = ones_sum(header[:start]) if v4 else 0
    segments: list[Buffer] = []
    end = len(packet)
    for number, at in enumerate(range(begin, max(end, begin + 1), size)):
        chunk = packet[at : at + size]
        flag = tcp_flags if at + size >= end else tcp_flags & ~(_FIN | _PSH)
        flag = flag & ~_CWR if number else flag
        length = begin + len(chunk)
        header[start + 13] = flag
        _SEQ.pack_into(header, start + 4, sequence)
        if v4:
            ident = (identification + number) & 0xFFFF
            _LENGTH_ID.pack_into(header, 2, length, ident)
            _U16.pack_into(header, 10, checksum(ip_base + length + ident))
        else:
            _U16.pack_into(header, 4, length - start)
        total = base + flag + (sequence >> 16) + (sequence & 0xFFFF) + length - start
        _U16.pack_into(header, start + _TCP_CSUM, checksum(total + ones_sum(chunk)))
        segments.append(b"".join((header, chunk)))
        sequence = (sequence + len(chunk)) & 0xFFFFFFFF
    return segments


def _fixed_sum(header: bytearray, start: int, v4: bool) -> int:
    # Pseudo header without its length, TCP header without sequence, flags and checksum.
    addresses = header[12:20] if v4 else header[8:40]
    tcp = bytearray(header[start:])
    tcp[4:8] = b"\0\0\0\0"
    tcp[13] = 0
    tcp[_TCP_CSUM : _TCP_CSUM + 2] = b"\0\0"
    return ones_sum(addresses) + _TCP + ones_sum(tcp)


def merge(packets: Sequence[Buffer]) -> list[list[Buffer]]:
    """Buffer lists to write, each ``[virtio_net_hdr, …]``: runs of one TCP flow's consecutive
    segments become one super-packet, everything else stays as it is, in order.

    Only what the receiver could not tell from segmentation is joined: same headers but for lengths,
    identification, sequence and checksums; data; equal sizes but the last; PSH on the last only.
    """
    writes: list[list[Buffer]] = []
    run: list[Buffer] = []
    key: bytes | None = None
    start = begin = size = expected = total = 0
    for packet in packets:
        shape = _shape(packet)
        if shape is None:
            _close(writes, run, start, begin, size)
            writes.append([PLAIN, packet])
            run, key = [], None
            continue
        this_start, this_begin, this_key, sequence, pushed = shape
        data = len(packet) - this_begin
        if (
            this_key == key
            and sequence == expected
            and data <= size
            and total + data <= MAX_PACKET
            and len(run) < MAX_MERGE
        ):
            run.append(packet)
            total += data
        else:
            _close(writes, run, start, begin, size)
            run, key, start, begin, size = [packet], this_key, this_start, this_begin, data
            total = len(packet)
        expected = (sequence + data) & 0xFFFFFFFF
        if pushed or data < size:
            _close(writes, run, start, begin, size)
            run, key = [], None
    _close(writes, run, start, begin, size)
    return writes


def _shape(packet: Buffer) -> tuple[int, int, bytes, int, int] | None:
    # (TCP start, data start, what must agree, sequence, PSH) of a joinable segment, else None.
    size = len(packet)
    if size < 41:
        return None
    if packet[0] == 0x45 and packet[9] == _TCP and not packet[6] & 0x3F and not packet[7]:
        start, told = 20, packet[2] << 8 | packet[3]
        network = b"".join((packet[0:2], packet[6:10], packet[12:20]))
    elif packet[0] >> 4 == 6 and packet[6] == _TCP and size > 60:
        start, told = 40, 40 + (packet[4] << 8 | packet[5])
        network = b"".join((packet[0:4], packet[6:40]))
    else:
        return None
    begin = start + (packet[start + 12] >> 4) * 4
    flags = packet[start + 13]
    if told != size or begin >= size or flags & ~_PSH != _ACK:
        return None
    sequence = int.from_bytes(packet[start + 4 : start + 8], "big")
    transport = (
        packet[start : start + 4],
        packet[start + 8 : start + 13],
        packet[start + 14 : start + 16],
        packet[start + 18 : begin],
    )
    return start, begin, b"".join((network, *transport)), sequence, flags & _PSH


def _close(
    writes: list[list[Buffer]], run: list[Buffer], start: int, begin: int, size: int
) -> None:
    if len(run) < 2:
        writes.extend([PLAIN, packet] for packet in run)
        return
    header = bytearray(run[0][:begin])
    header[start + 13] |= run[-1][start + 13] & _PSH
    bodies = [packet[begin:] for packet in run]
    total = begin + sum(map(len, bodies))
    v4 = start == 20
    if v4:
        _U16.pack_into(header, 2, total)
        header[10:12] = b"\0\0"
        _U16.pack_into(header, 10, checksum(ones_sum(header[:20])))
        addresses = header[12:20]
    else:
        _U16.pack_into(header, 4, total - start)
        addresses = header[8:40]
    pseudo = (ones_sum(addresses) + _TCP + total - start) % 65535
    _U16.pack_into(header, start + _TCP_CSUM, pseudo)
    kind = GSO_TCPV4 if v4 else GSO_TCPV6
    vnet = VNET.pack(NEEDS_CSUM, kind, begin, size, start, _TCP_CSUM)
    writes.append([vnet, header, *bodies])
