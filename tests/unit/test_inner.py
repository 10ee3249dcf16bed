"""Inner packets: flows are recognised, garbage never raises, refusals obey the RFCs."""

from __future__ import annotations

import copy
import ipaddress
import json
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire import inner
from fabric.wire.inner import FiveTuple

V4 = ("10.77.0.1", "10.77.0.4")
V6 = ("fd77::1", "fd77::4")


def ipv4(
    protocol: int, body: bytes, *, fragment: int = 0, options: bytes = b"", tos: int = 0
) -> bytes:
    header = struct.pack(
        "!BBHHHBBH",
        0x40 | (20 + len(options)) // 4,
        tos,
        20 + len(options) + len(body),
        0x1234,
        fragment,
        64,
        protocol,
        0,
    )
    source, destination = (ipaddress.IPv4Address(a).packed for a in V4)
    return header + source + destination + options + body


def ipv6(following: int, body: bytes) -> bytes:
    source, destination = (ipaddress.IPv6Address(a).packed for a in V6)
    return struct.pack("!IHBB", 6 << 28, len(body), following, 64) + source + destination + body


def tcp(flags: int, *, seq: int = 100, ack: int = 0, data: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", 4000, 80, seq, ack, 5 << 4, flags, 1000, 0, 0) + data


def udp(data: bytes = b"hello") -> bytes:
    return struct.pack("!HHHH", 4000, 53, 8 + len(data), 0) + data


def echo(kind: int, identifier: int = 77) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + b"payload"


def pseudo_sum(packet: bytes) -> int:
    """Checksum over pseudo header and body by the book: 0 when the packet is sound."""
    if packet[0] >> 4 == 4:
        body, addresses, protocol = packet[20:], packet[12:20], packet[9]
    else:
        body, addresses, protocol = packet[40:], packet[8:40], packet[6]
    pseudo = addresses + struct.pack("!IHBB", len(body), 0, 0, protocol)
    return inner.checksum((b"" if protocol == inner.ICMP else pseudo) + body)


def test_tcp_and_udp_flows_are_recognised_in_both_families() -> None:
    assert inner.parse_flow(ipv4(6, tcp(2))) == FiveTuple(4, 6, V4[0], 4000, V4[1], 80)
    assert inner.parse_flow(memoryview(ipv4(17, udp()))) == FiveTuple(4, 17, V4[0], 4000, V4[1], 53)
    assert inner.parse_flow(ipv6(6, tcp(2))) == FiveTuple(6, 6, V6[0], 4000, V6[1], 80)


def test_ipv4_options_do_not_shift_the_ports() -> None:
    flow = inner.parse_flow(ipv4(17, udp(), options=b"\x01" * 8))
    assert flow is not None
    assert (flow.source_port, flow.destination_port) == (4000, 53)


@pytest.mark.parametrize(
    ("build", "protocol", "kinds"), [(ipv4, 1, (8, 0)), (ipv6, 58, (128, 129))]
)
def test_echo_is_keyed_by_identifier_in_both_directions(build, protocol, kinds) -> None:  # type: ignore[no-untyped-def]
    for kind in kinds:
        flow = inner.parse_flow(build(protocol, echo(kind)))
        assert flow is not None
        assert flow.is_echo
        assert (flow.source_port, flow.destination_port) == (77, 77)
    assert inner.parse_flow(build(protocol, echo(kinds[0] + 40))) is None


def test_icmp_of_the_other_family_has_no_flow() -> None:
    assert inner.parse_flow(ipv4(58, echo(128))) is None
    assert inner.parse_flow(ipv6(1, echo(8))) is None


def test_ipv6_extension_headers_are_skipped() -> None:
    hop_by_hop = bytes((60, 0)) + bytes(6)
    options = bytes((43, 1)) + bytes(14)
    routing = bytes((17, 0)) + bytes(6)
    flow = inner.parse_flow(ipv6(0, hop_by_hop + options + routing + udp()))
    assert flow is not None
    assert (flow.protocol, flow.destination_port) == (17, 53)


def test_an_endless_chain_of_extension_headers_is_given_up() -> None:
    assert inner.parse_flow(ipv6(60, (bytes((60, 0)) + bytes(6)) * 20)) is None


def test_first_fragments_have_a_flow_and_later_ones_share_its_key() -> None:
    first, later = ipv4(17, udp(), fragment=0x2000), ipv4(17, b"x" * 16, fragment=0x0002)
    assert inner.parse_flow(first) is not None
    assert inner.parse_flow(later) is None
    assert inner.fragment_key(first) == inner.fragment_key(later) is not None
    assert inner.fragment_key(ipv4(17, udp(), fragment=0x4000)) is None  # DF is no fragment

    first6 = ipv6(44, struct.pack("!BBHI", 17, 0, 1, 9) + udp())
    later6 = ipv6(44, struct.pack("!BBHI", 17, 0, 8, 9) + b"x" * 16)
    assert inner.parse_flow(first6) is not None
    assert inner.parse_flow(later6) is None
    assert inner.fragment_key(first6) == inner.fragment_key(later6) is not None


def test_an_icmp_error_yields_the_flow_it_quotes() -> None:
    quoted = ipv4(17, udp(b"x" * 100))[:28]
    error = ipv4(1, struct.pack("!BBHI", 3, 3, 0, 0) + quoted)
    assert inner.parse_flow(error) is None
    assert inner.embedded_flow(error) == FiveTuple(4, 17, V4[0], 4000, V4[1], 53)
    assert inner.embedded_flow(ipv4(1, echo(8))) is None
    error6 = ipv6(58, struct.pack("!BBHI", 1, 4, 0, 0) + ipv6(6, tcp(2))[:48])
    assert inner.embedded_flow(error6) == FiveTuple(6, 6, V6[0], 4000, V6[1], 80)


@pytest.mark.parametrize("packet", [ipv4(6, tcp(2)), ipv6(6, tcp(2)), ipv4(17, udp())])
def test_truncated_packets_have_no_flow(packet: bytes) -> None:
    for size in range(len(packet)):
        assert inner.parse_flow(packet[:size]) is None


@given(st.binary(max_size=200))
def test_garbage_never_raises(noise: bytes) -> None:
    for head in (b"", b"\x45", b"\x60", b"\x4f"):
        packet = head + noise
        inner.parse_flow(packet)
        inner.embedded_flow(packet)
        inner.fragment_key(packet)
        inner.dscp(packet)
        inner.refusal(packet)


@given(st.data())
def test_damaged_real_packets_never_raise(data: st.DataObject) -> None:
    base = bytearray(
        data.draw(
            st.sampled_from(
                [
                    ipv4(6, tcp(2)),
                    ipv6(44, struct.pack("!BBHI", 0, 0, 1, 9) + bytes((17, 0)) + bytes(6) + udp()),
                    ipv4(1, struct.pack("!BBHI", 3, 3, 0, 0) + ipv4(17, udp())),
                ]
            )
        )
    )
    for _ in range(3):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    packet = bytes(base[: data.draw(st.integers(0, len(base)))])
    for reader in (inner.parse_flow, inner.embedded_flow, inner.fragment_key, inner.refusal):
        reader(packet)


@given(st.binary(min_size=16, max_size=16))
def test_ipv6_text_agrees_with_the_standard_library(raw: bytes) -> None:
    address = ipaddress.IPv6Address(raw)
    if address.ipv4_mapped is None:
        assert inner.format_address(raw) == str(address)


@pytest.mark.parametrize("text", ["::", "::1", "1::", "fd77::4", "1:0:0:2::3", "1:0:2:3:4:5:6:7"])
def test_ipv6_zero_runs_are_shortened_as_rfc_5952_says(text: str) -> None:
    assert inner.format_address(ipaddress.IPv6Address(text).packed) == text


def test_a_syn_is_reset_with_an_acknowledgement_of_it() -> None:
    answer = inner.refusal(ipv4(6, tcp(0x02, seq=0xFFFFFFFF)))
    assert answer is not None
    assert inner.parse_flow(answer) == FiveTuple(4, 6, V4[1], 80, V4[0], 4000)
    seq, ack, _offset, flags = struct.unpack_from("!IIBB", answer, 24)
    assert (seq, ack, flags) == (0, 0, 0x14)  # 2^32-1 + SYN wraps to 0
    assert inner.checksum(answer[:20]) == 0
    assert pseudo_sum(answer) == 0


def test_an_acknowledging_segment_is_reset_at_the_number_it_expects() -> None:
    answer = inner.refusal(ipv6(6, tcp(0x18, seq=5, ack=7777, data=b"abc")))
    assert answer is not None
    assert struct.unpack_from("!IIBB", answer, 44) == (7777, 0, 5 << 4, 0x04)
    assert pseudo_sum(answer) == 0


def test_data_without_acknowledgement_counts_in_the_reset() -> None:
    answer = inner.refusal(ipv4(6, tcp(0x01, seq=5, data=b"abc")))
    assert answer is not None
    assert struct.unpack_from("!II", answer, 24) == (0, 5 + 3 + 1)


@pytest.mark.parametrize(
    ("packet", "kind", "code", "limit"),
    [(ipv4(17, udp(b"x" * 1300)), 3, 13, 576), (ipv6(17, udp(b"x" * 1300)), 1, 1, 1280)],
)
def test_other_packets_get_administratively_prohibited(
    packet: bytes, kind: int, code: int, limit: int
) -> None:
    answer = inner.refusal(packet)
    assert answer is not None
    at = 20 if limit == 576 else 40
    assert tuple(answer[at : at + 2]) == (kind, code)
    assert len(answer) == limit
    assert pseudo_sum(answer) == 0
    assert inner.embedded_flow(answer) == inner.parse_flow(packet)


def test_resets_errors_multicast_and_later_fragments_are_never_answered() -> None:
    multicast = bytearray(ipv4(17, udp()))
    multicast[16] = 224
    for packet in (
        ipv4(6, tcp(0x04)),
        ipv4(1, struct.pack("!BBHI", 3, 3, 0, 0) + ipv4(17, udp())),
        ipv4(17, b"x" * 16, fragment=2),
        bytes(multicast),
    ):
        assert inner.refusal(packet) is None
    refused = inner.refusal(ipv4(17, udp()))
    assert refused is not None
    assert inner.refusal(refused) is None


def test_dscp_is_read_from_either_family() -> None:
    assert inner.dscp(ipv4(17, udp(), tos=46 << 2)) == 46
    packet = bytearray(ipv6(17, udp()))
    packet[0], packet[1] = 0x60 | (46 << 2) >> 4, (46 << 2 & 0x0F) << 4
    assert inner.dscp(packet) == 46
    assert inner.dscp(b"") == 0


def test_five_tuples_are_values() -> None:
    flow = FiveTuple(6, 17, V6[0], 1, V6[1], 2)
    assert flow.reversed().reversed() == flow != flow.reversed()
    assert FiveTuple.from_json(json.loads(json.dumps(flow.to_json()))) == flow
    assert pickle.loads(pickle.dumps(flow)) == copy.deepcopy(flow) == flow
    assert flow.describe() == "udp [fd77::1]:1 > [fd77::4]:2"
    assert FiveTuple(4, 1, V4[0], 7, V4[1], 7).describe() == "icmp 10.77.0.1 > 10.77.0.4 id 7"
    with pytest.raises(AttributeError):
        flow.source = "x"  # type: ignore[misc]
