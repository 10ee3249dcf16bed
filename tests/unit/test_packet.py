"""The codec of the fabric packet: round trips, and a named error for every rejection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import WireError
from fabric.wire import errors, packet
from fabric.wire.packet import Header, HopRecord, Packet, append_record

VECTORS = Path(__file__).parent.parent / "vectors" / "packets.json"
U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))

UNTOLD = {"path_number": 0, "path_length": 0, "treatment": 0, "reply_difference": 0}
"""Fields that the oldest vectors do not mention: reserved bytes then, zero."""

records = st.builds(HopRecord, U32, U16, U16, U16, U64, U32, U16, U32, U32)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    payload = draw(st.binary(max_size=200))
    trace = tuple(draw(st.lists(records, max_size=packet.MAX_RECORDS)))
    extension = draw(st.sampled_from([b"", b"i" * packet.ICV_SIZE, b"opts"]))
    flags = draw(U8)
    if len(extension) < packet.ICV_SIZE:
        flags &= ~packet.FLAG_AUTHENTICATED
    path: tuple[int, ...] = ()
    if flags & packet.FLAG_PATH:
        path = tuple(draw(st.lists(U32, max_size=packet.MAX_PATH)))
    header = Header(
        flags,
        draw(U8),
        draw(U8),
        len(payload) + packet.NODE_SIZE * len(path),
        len(trace),
        draw(U8),
        draw(U64),
        draw(U32),
        draw(U32),
        draw(U64),
        draw(U16),
        packet.HEADER_SIZE + len(extension),
        path_number=draw(U8),
        path_length=len(path) if path or flags & packet.FLAG_PATH else draw(U8),
        treatment=draw(U8),
        reply_difference=draw(U8),
    )
    return Packet(header, payload, trace, extension, path)


def plain(records_: tuple[HopRecord, ...] = (), payload: bytes = b"\x45inner") -> Packet:
    header = Header(0, 1, 32, len(payload), len(records_), packet.PAYLOAD_IPV4, 5, 1, 4, 9)
    return Packet(header, payload, records_)


RECORD = HopRecord(2, 3, 1, 2, 1_700_000_000_000_000, 250, 4, 77, 105)


@given(packets())
def test_parse_is_the_inverse_of_encode(original: Packet) -> None:
    assert Packet.parse(original.encode()) == original
    assert Packet.parse(memoryview(original.encode())) == original


@given(st.binary(max_size=300))
def test_garbage_is_parsed_or_rejected_by_name(data: bytes) -> None:
    try:
        assert Packet.parse(data).encode()
    except WireError as exc:
        assert type(exc).__name__ in str(exc)


@given(packets(), st.data())
def test_every_truncation_is_rejected(original: Packet, data: st.DataObject) -> None:
    encoded = original.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(errors.PacketTooShort):
        Packet.parse(encoded[:cut])


def test_the_connection_id_is_where_kernel_steering_looks() -> None:
    assert plain().encode()[8:16] == (5).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, 0x2A, errors.VersionUnknown),
        (0, 0x19, errors.HeaderLengthInvalid),
        (0, 0x00, errors.VersionUnknown),
        (1, packet.FLAG_AUTHENTICATED, errors.HeaderLengthInvalid),
        (5, 5, errors.LengthMismatch),
        (5, 200, errors.PacketTooShort),
        (6, 17, errors.TooManyRecords),
        (6, 1, errors.PacketTooShort),
    ],
)
def test_each_broken_field_has_its_error(at: int, value: int, error: type[WireError]) -> None:
    data = bytearray(plain().encode())
    data[at] = value
    with pytest.raises(error):
        Packet.parse(data)


def test_a_path_that_cannot_be_walked_or_is_not_there_is_rejected() -> None:
    data = bytearray(plain().encode())
    data[1] |= packet.FLAG_PATH
    for nodes in (2, packet.MAX_PATH + 1):
        data[packet.WAY_OFFSET + 1] = nodes
        with pytest.raises(errors.PathInvalid):
            Packet.parse(data)
    data[1] &= ~packet.FLAG_PATH
    assert Packet.parse(data).path == (), "without the flag the field means nothing"


def test_the_reply_protocol_is_the_same_one_unless_told_otherwise() -> None:
    header = plain().header
    assert header.reply_protocol == header.protocol == 1
    changed = dict(zip(header.names, header.values(), strict=True)) | {"reply_difference": 1 ^ 200}
    assert Header(**changed).reply_protocol == 200


def test_values_that_do_not_fit_are_the_senders_error() -> None:
    with pytest.raises(errors.FieldOutOfRange):
        Header(0, 256, 1, 0, 0, 4, 1, 1, 1, 1).pack()
    with pytest.raises(errors.FieldOutOfRange):
        HopRecord(2**32, 1, 1, 1, 1, 1, 1, 1, 1).pack()
    with pytest.raises(errors.FieldOutOfRange):
        packet.pack_path((2**32,))
    with pytest.raises(errors.LengthMismatch):
        Packet(plain().header, b"longer than told").encode()
    with pytest.raises(errors.LengthMismatch):
        Packet(plain().header, b"\x45i", path=(7,)).encode()


def test_measurements_saturate() -> None:
    record = HopRecord.unpack(HopRecord(1, 1, 1, 1, 1, 2**40, 2**20, 1, 2**33).pack())
    assert (record.residence_us, record.queue_depth, record.spawn_ms) == (
        2**32 - 1,
        2**16 - 1,
        2**32 - 1,
    )


def test_a_record_is_appended_at_the_tail_and_nothing_else_changes() -> None:
    before = plain().encode()
    after = append_record(before, RECORD)
    assert len(after) == len(before) + packet.RECORD_SIZE
    assert Packet.parse(after) == plain((RECORD,))
    assert after[7 : len(before)] == before[7:]


def test_a_full_trace_is_flagged_and_left_whole() -> None:
    full = plain((RECORD,) * packet.MAX_RECORDS)
    after = Packet.parse(append_record(full.encode(), RECORD))
    assert after.header.flags == packet.FLAG_OVERFLOW
    assert after.records == full.records
    assert after.payload == full.payload


def test_the_documented_vector_is_the_first_published_one() -> None:
    page = (VECTORS.parent.parent.parent / "docs" / "wire-format.md").read_text()
    lines = page.rsplit("```", 2)[1].split("\n")
    words = [word for line in lines for word in line.split()]
    shown = "".join(word for word in words if word not in ("header", "payload", "record"))
    assert shown == json.loads(VECTORS.read_text())[0]["datagram"]


def test_the_published_vectors_hold() -> None:
    """docs/wire-format.md shows these; other implementations may use them."""
    for vector in json.loads(VECTORS.read_text()):
        data = bytes.fromhex(vector["datagram"])
        if "error" in vector:
            with pytest.raises(getattr(errors, vector["error"])):
                Packet.parse(data)
            continue
        parsed = Packet.parse(data)
        told = dict(zip(parsed.header.names, parsed.header.values(), strict=True))
        assert told == UNTOLD | vector["header"], vector["name"]
        assert list(parsed.path) == vector.get("path", [])
        assert parsed.payload.hex() == vector["payload"]
        hops = [dict(zip(r.names, r.values(), strict=True)) for r in parsed.records]
        assert hops == vector["records"]
        assert parsed.encode() == data
