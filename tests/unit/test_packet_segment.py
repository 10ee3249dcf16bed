"""TCP super-packets are cut and joined without changing what the two ends see."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.routing.segment import (
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    PLAIN,
    VNET,
    checksum,
    merge,
    ones_sum,
    split,
)
from tests.unit.inner_packets import checksums_hold, slow_sum, tcp_packet, udp_packet

TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")


def super_packet(data: bytes, version: int, flags: int, size: int) -> tuple[bytes, bytearray]:
    """What a TUN device hands over: the checksum field holds the pseudo-header's sum only."""
    packet = bytearray(tcp_packet(data, version=version, flags=flags, options=TIMESTAMPS))
    start = 20 if version == 4 else 40
    length = len(packet) - start
    addresses = packet[12:20] if version == 4 else packet[8:40]
    struct.pack_into(">H", packet, start + 16, slow_sum(bytes(addresses)) + 6 + length & 0xFFFF)
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
    return VNET.pack(NEEDS_CSUM, kind, start + 32, size, start, 16), packet


@given(st.binary(min_size=1, max_size=3000))
def test_checksum_agrees_with_the_word_by_word_sum(data: bytes) -> None:
    ours, slow = ones_sum(data), slow_sum(data)
    assert ours == slow % 65535
    if any(data):
        assert checksum(ours) == 0xFFFF ^ slow


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.binary(min_size=1, max_size=5000), size=st.integers(100, 1500))
def test_segments_carry_all_data_in_order_with_right_checksums(
    version: int, data: bytes, size: int
) -> None:
    vnet, packet = super_packet(data, version, 0x18, size)
    segments = [bytes(s) for s in split(VNET.unpack(vnet), memoryview(packet))]
    begin = (20 if version == 4 else 40) + 32
    assert all(checksums_hold(segment) for segment in segments)
    assert b"".join(segment[begin:] for segment in segments) == data
    starts = [int.from_bytes(s[begin - 28 : begin - 24], "big") for s in segments]
    assert starts == [1000 + n * size for n in range(len(segments))]
    pushes = [segment[begin - 19] & 0x08 for segment in segments]
    assert pushes[-1] and not any(pushes[:-1])


def test_an_unsegmented_packet_gets_its_checksum() -> None:
    good = udp_packet(b"abc")
    packet = bytearray(good)
    struct.pack_into(">H", packet, 26, slow_sum(good[12:20]) + 17 + 11 & 0xFFFF)
    (whole,) = split((NEEDS_CSUM, 0, 0, 0, 20, 6), memoryview(packet))
    assert bytes(whole) == good


def test_a_checksum_position_outside_the_packet_changes_nothing() -> None:
    packet = bytearray(udp_packet(b"abc"))
    before = bytes(packet)
    assert bytes(split((NEEDS_CSUM, 0, 0, 0, 60000, 6), memoryview(packet))[0]) == before


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.binary(min_size=300, max_size=6000), size=st.integers(100, 1500))
def test_merging_undoes_splitting(version: int, data: bytes, size: int) -> None:
    vnet, packet = super_packet(data, version, 0x18, size)
    segments = split(VNET.unpack(vnet), memoryview(packet))
    writes = merge(segments)
    if len(segments) == 1:
        assert writes == [[PLAIN, segments[0]]]
        return
    assert len(writes) == 1
    header, *buffers = writes[0]
    assert header == vnet
    joined = b"".join(buffers)
    again = split(VNET.unpack(header), memoryview(bytearray(joined)))
    assert [bytes(s) for s in again] == [bytes(s) for s in segments]


def payloads(packets: list[bytes]) -> list[int]:
    """How many packets went into each write."""
    return [max(1, len(write) - 2) for write in merge(packets)]


def test_only_indistinguishable_neighbours_are_joined() -> None:
    a = tcp_packet(b"x" * 100, sequence=0)
    b = tcp_packet(b"y" * 100, sequence=100, ident=2)
    assert payloads([a, b]) == [2]
    assert payloads([b, a]) == [1, 1], "out of order"
    assert payloads([a, tcp_packet(b"y" * 100, sequence=101)]) == [1, 1], "a gap"
    assert payloads([a, tcp_packet(b"y" * 101, sequence=100)]) == [1, 1], "a longer one behind"
    assert payloads([a, tcp_packet(b"y" * 100, sequence=100, ack=8)]) == [1, 1], "another ack"
    assert payloads([a, tcp_packet(b"y" * 100, sequence=100, window=9)]) == [1, 1], "window"
    assert payloads([a, tcp_packet(b"y" * 100, sequence=100, flags=0x11)]) == [1, 1], "FIN"
    assert payloads([a, tcp_packet(b"y" * 100, sequence=100, ports=(1, 80))]) == [1, 1], "flow"
    assert payloads([a, udp_packet(b"z"), b]) == [1, 1, 1], "order across flows is kept"
    pushed = tcp_packet(b"x" * 100, sequence=0, flags=0x18)
    assert payloads([pushed, b]) == [1, 1], "PSH ends a run"
    assert payloads([a, tcp_packet(b"", sequence=100)]) == [1, 1], "a bare ACK"


def test_sequence_numbers_wrap() -> None:
    first = tcp_packet(b"x" * 100, sequence=2**32 - 100)
    assert payloads([first, tcp_packet(b"y" * 100, sequence=0)]) == [2]


@given(st.lists(st.binary(max_size=90), max_size=8))
def test_garbage_passes_merge_unchanged(packets: list[bytes]) -> None:
    assert b"".join(b"".join(w[1:]) for w in merge(packets)) == b"".join(packets)
