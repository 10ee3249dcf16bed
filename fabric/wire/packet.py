"""The fabric packet: fixed header, payload, trace of hop records at the tail.

Owns: the layout described in docs/wire-format.md (version 1), its constants and its codec.
May import: fabric.wire.errors, fabric.wire.fact. Pure; travels into guests, so imports stay cheap.

Parsing has two speeds. :class:`Packet` goes field by field through one bounds-checked cursor and
says exactly what is wrong. The forwarder unpacks HEADER once, tests the sum of the lengths, and
turns to :class:`Packet` only to name the reason of a rejection.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error

from fabric.wire.errors import (
    FieldOutOfRange,
    HeaderLengthInvalid,
    LengthMismatch,
    PacketTooShort,
    PathInvalid,
    TooManyRecords,
    VersionUnknown,
)
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

PORT = 7704
"""UDP port of the underlay."""
VERSION = 1
HEADER_SIZE = 40
"""Bytes of the fixed header."""
HEADER_SIZE_MAX = 60
"""Bytes: the length nibble counts at most fifteen 4-byte words."""
ICV_SIZE = 16
"""Bytes of the integrity check value that FLAG_AUTHENTICATED announces behind the fixed header."""
RECORD_SIZE = 32
"""Bytes of one hop record."""
MAX_RECORDS = 16
"""Longest trace. 512 bytes of records is what still leaves an inner IPv6 minimum MTU (1280 bytes)
inside an 1840-byte datagram; longer paths go on, flagged OVERFLOW."""
UNDERLAY_OVERHEAD = 28
"""Bytes of the IPv4 and UDP headers in front of a fabric header."""
DEFAULT_HOP_LIMIT = 64
"""Hosts a packet may cross, as IP's default time to live (RFC 1700): more than the longest path of
any network in the Internet Topology Zoo."""
NODE_SIZE = 4
"""Bytes of one node id in an explicit path."""
MAX_PATH = DEFAULT_HOP_LIMIT
"""Node ids in an explicit path: a longer one could not be walked to its end."""

SEQUENCES_PER_MS = 1 << 13
"""Sequence numbers a guest has for each millisecond of its life: eight million packets a second, a
hundred times what an agent sends. A guest begins at 1 + a multiple of it. The numbers stay below
2^53 until 2058, so that programs that read JSON numbers as floating point (jq) keep them exact."""

FLAG_REPLY = 0x01
"""The packet travels from the egress host back to the ingress host."""
FLAG_OVERFLOW = 0x02
"""A host on the way left no record because the trace was full."""
FLAG_MTU = 0x04
"""A host on the way left no record because the next link's MTU had no room."""
FLAG_AUTHENTICATED = 0x08
"""A 16-byte ICV follows the fixed header. Version 1 senders never set it."""
FLAG_PATH = 0x10
"""The packet does not simply follow the tables: the way fields count, and the payload begins with
``path_length`` node ids."""
FLAG_REPAIRED = 0x20
"""A host on the way sent it around a dead neighbour. It is not repaired a second time."""
FLAG_NAMES = {
    FLAG_REPLY: "reply",
    FLAG_OVERFLOW: "overflow",
    FLAG_MTU: "mtu",
    FLAG_AUTHENTICATED: "authenticated",
    FLAG_PATH: "path",
    FLAG_REPAIRED: "repaired",
}

SINGLE, REPLICATED, DISPERSED, FLOODED = range(4)
"""Treatment of a packet with FLAG_PATH: nothing more; its egress eliminates duplicates; its egress
restores the order; sent to every neighbour, and every host eliminates duplicates."""

PAYLOAD_IPV4 = 4
PAYLOAD_IPV6 = 41
PAYLOAD_OF_VERSION = {4: PAYLOAD_IPV4, 6: PAYLOAD_IPV6}
"""IP version → payload type."""
VERSION_OF_PAYLOAD = {PAYLOAD_IPV4: 4, PAYLOAD_IPV6: 6}
PAYLOAD_ANNOUNCE = 253
"""IANA keeps 253 for experimentation; ours: a connection is coming, see fabric.host."""

# first byte (version, header words), flags, protocol, hop limit, payload length, hop count,
# payload type | connection | source, destination | sequence | key id, way, two reserved bytes
HEADER = Struct(">BBBBHBBQIIQH6x")
"""The fixed header of a packet without FLAG_PATH, which are nearly all."""
HEAD = Struct(">BBBBHBB")
"""The first eight bytes: all that a relay rewrites."""
WAY = Struct(">BBBB2x")
"""path number, path length, treatment, reply protocol XOR protocol, two reserved bytes"""
WAY_OFFSET = 34
_WHOLE = Struct(">BBBBHBBQIIQHBBBB2x")
RECORD = Struct(">IHHHQIHII")
RESIDENCE = Struct(">I")
RESIDENCE_OFFSET = 18
"""Of residence_us inside a record: the only field written after the record was built."""
FIRST_BYTE = VERSION << 4 | HEADER_SIZE // 4
HEADER_LENGTHS = {VERSION << 4 | words: words * 4 for words in range(HEADER_SIZE // 4, 16)}
"""First byte → header length in bytes, for every first byte this version accepts."""

MAX_U16 = 0xFFFF
MAX_U32 = 0xFFFFFFFF


class Header(Fact):
    """The fixed header. Lengths in bytes; ids as the contracts of the fabric have them."""

    flags: int
    protocol: int
    hop_limit: int
    payload_length: int
    hop_count: int
    payload_type: int
    connection: int
    source: int
    destination: int
    sequence: int
    key_id: int = 0
    length: int = HEADER_SIZE
    path_number: int = 0
    """Which of several paths this packet (or copy) is on."""
    path_length: int = 0
    """Node ids in front of the payload; counts with FLAG_PATH only."""
    treatment: int = SINGLE
    reply_difference: int = 0
    """The protocol replies shall use XOR ``protocol``: 0, the same one."""

    def pack(self) -> bytes:
        """The 40 bytes of the fixed header. Raises FieldOutOfRange."""
        if self.length % 4 or not HEADER_SIZE <= self.length <= HEADER_SIZE_MAX:
            raise FieldOutOfRange("header length", "40…60, a multiple of 4", self.length)
        try:
            first, values = VERSION << 4 | self.length // 4, self.values()
            return _WHOLE.pack(first, *values[:11], *values[12:])
        except struct_error as exc:
            raise FieldOutOfRange("header", str(exc), self) from exc

    @classmethod
    def unpack(cls, buffer: Buffer) -> Header:
        """Inverse of :meth:`pack`. Raises PacketTooShort, VersionUnknown, HeaderLengthInvalid,
        TooManyRecords."""
        cursor = Cursor(buffer)
        values = cursor.unpack(_WHOLE, "fixed header")
        first, flags, protocol, hop_limit, payload, hops, kind, connection = values[:8]
        if first >> 4 != VERSION:
            raise VersionUnknown("version", VERSION, first >> 4)
        source, destination, sequence, key_id, number, nodes, treatment, reply = values[8:]
        header = cls(
            flags=flags,
            protocol=protocol,
            hop_limit=hop_limit,
            payload_length=payload,
            hop_count=hops,
            payload_type=kind,
            connection=connection,
            source=source,
            destination=destination,
            sequence=sequence,
            key_id=key_id,
            length=(first & 0x0F) * 4,
            path_number=number,
            path_length=nodes,
            treatment=treatment,
            reply_difference=reply,
        )
        least = HEADER_SIZE + (ICV_SIZE if header.flags & FLAG_AUTHENTICATED else 0)
        if header.length < least:
            raise HeaderLengthInvalid("header length", f"at least {least}", header.length)
        if header.hop_count > MAX_RECORDS:
            raise TooManyRecords("hop count", f"at most {MAX_RECORDS}", header.hop_count)
        if header.path_nodes > MAX_PATH:
            raise PathInvalid("path length", f"at most {MAX_PATH}", header.path_length)
        if header.path_nodes * NODE_SIZE > header.payload_length:
            raise PathInvalid("path", f"{header.path_length} nodes", header.payload_length)
        return header

    @property
    def path_nodes(self) -> int:
        """Node ids in front of the payload; 0 without FLAG_PATH, whatever the field says."""
        return self.path_length if self.flags & FLAG_PATH else 0

    @property
    def reply_protocol(self) -> int:
        """The protocol that packets in the other direction shall use."""
        return self.protocol ^ self.reply_difference

    def flag_names(self) -> list[str]:
        """Names of the flags that are set; unknown bits are left out."""
        return [name for bit, name in FLAG_NAMES.items() if self.flags & bit]


class HopRecord(Fact):
    """What one host appends. Interface id 0 is the application's side of the host."""

    node: int
    guest: int
    ingress_interface: int
    egress_interface: int
    received_at_us: int
    """Unix time in µs at which the host's guest read the packet."""
    residence_us: int
    """µs between reading and sending; at most 2^32-1."""
    queue_depth: int
    """Packets read in the same burst, this one included; at most 65535."""
    table_version: int
    spawn_ms: int
    """ms between the request for this connection's guest and its readiness."""

    def pack(self) -> bytes:
        """The 32 bytes. Measurements saturate; ids that do not fit raise FieldOutOfRange."""
        try:
            return RECORD.pack(
                self.node,
                self.guest,
                self.ingress_interface,
                self.egress_interface,
                self.received_at_us,
                min(self.residence_us, MAX_U32),
                min(self.queue_depth, MAX_U16),
                self.table_version,
                min(self.spawn_ms, MAX_U32),
            )
        except struct_error as exc:
            raise FieldOutOfRange("hop record", str(exc), self) from exc

    @classmethod
    def unpack(cls, buffer: Buffer) -> HopRecord:
        """Inverse of :meth:`pack`. Raises PacketTooShort."""
        return cls(*Cursor(buffer).unpack(RECORD, "hop record"))


class Packet(Fact):
    """One whole datagram: header, header extension (an ICV, later options), explicit path,
    payload, trace. The path counts as payload in the header's lengths."""

    header: Header
    payload: bytes
    records: tuple[HopRecord, ...] = ()
    extension: bytes = b""
    path: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The datagram. The header's lengths must describe it: raises LengthMismatch otherwise."""
        header = self.header
        payload = pack_path(self.path) + self.payload
        told = (header.length, header.payload_length, header.hop_count, header.path_nodes)
        actual = (HEADER_SIZE + len(self.extension), len(payload), len(self.records))
        if told != (*actual, len(self.path)):
            raise LengthMismatch("header, payload, hops, path", told, (*actual, len(self.path)))
        trace = b"".join(record.pack() for record in self.records)
        return header.pack() + self.extension + payload + trace

    @classmethod
    def parse(cls, datagram: Buffer) -> Packet:
        """Inverse of :meth:`encode`. Raises the errors of Header.unpack, PacketTooShort, and
        LengthMismatch when bytes are left over."""
        header = Header.unpack(datagram)
        cursor = Cursor(datagram)
        cursor.take(HEADER_SIZE, "fixed header")
        extension = cursor.take(header.length - HEADER_SIZE, "header extension")
        path = unpack_path(cursor.take(header.path_nodes * NODE_SIZE, "path"))
        payload = cursor.take(header.payload_length - len(path) * NODE_SIZE, "payload")
        records = tuple(
            HopRecord(*cursor.unpack(RECORD, f"hop record {n}")) for n in range(header.hop_count)
        )
        if cursor.left:
            raise LengthMismatch("datagram", cursor.position, cursor.position + cursor.left)
        return cls(header, payload, records, extension, path)

    @classmethod
    def parse_trace(cls, trace: Buffer) -> Packet:
        """Read a trace as agents report it: fixed header and records without the payload."""
        header = Header.unpack(trace)
        cursor = Cursor(trace)
        cursor.take(HEADER_SIZE, "fixed header")
        records = tuple(
            HopRecord(*cursor.unpack(RECORD, f"hop record {n}")) for n in range(header.hop_count)
        )
        if cursor.left:
            raise LengthMismatch("trace", cursor.position, cursor.position + cursor.left)
        return cls(header, b"", records)


def pack_path(nodes: tuple[int, ...]) -> bytes:
    """Node ids as they stand in front of a payload. Raises FieldOutOfRange."""
    try:
        return Struct(f">{len(nodes)}I").pack(*nodes)
    except struct_error as exc:
        raise FieldOutOfRange("path", str(exc), nodes) from exc


def unpack_path(block: Buffer) -> tuple[int, ...]:
    """Inverse of :func:`pack_path`."""
    return Struct(f">{len(block) // NODE_SIZE}I").unpack(block)


def append_record(datagram: Buffer, record: HopRecord) -> bytes:
    """The datagram with one more record; with the OVERFLOW flag instead where none fits.

    For orchestrators and tests, one packet at a time. Raises what Packet.parse raises.
    """
    header = Packet.parse(datagram).header
    flags, hop_count, tail = header.flags, header.hop_count + 1, record.pack()
    if hop_count > MAX_RECORDS:
        flags, hop_count, tail = flags | FLAG_OVERFLOW, header.hop_count, b""
    head = HEAD.pack(
        datagram[0],
        flags,
        header.protocol,
        header.hop_limit,
        header.payload_length,
        hop_count,
        header.payload_type,
    )
    return b"".join((head, datagram[HEAD.size :], tail))


class Cursor:
    """Reads a buffer front to back; the only place that decides whether bytes are there."""

    __slots__ = ("_buffer", "position")

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._buffer) - self.position

    def take(self, size: int, field: str) -> bytes:
        """The next ``size`` bytes. Raises PacketTooShort naming ``field``."""
        if size > self.left:
            raise PacketTooShort(field, f"{size} bytes", f"{self.left} bytes")
        start, self.position = self.position, self.position + size
        return bytes(self._buffer[start : self.position])

    def unpack(self, layout: Struct, field: str) -> tuple[int, ...]:
        """The next fields of ``layout``. Raises PacketTooShort naming ``field``."""
        return layout.unpack(self.take(layout.size, field))
