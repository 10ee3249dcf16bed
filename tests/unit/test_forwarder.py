"""One forwarder: what it does with each kind of packet."""

from __future__ import annotations

import pytest

from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire import packet
from fabric.wire.packet import Header, HopRecord, Packet
from tests.unit.inner_packets import tcp_packet, udp_packet

CONNECTION = 0x0000000100000007
NOW = 1_700_000_000_000_000
INNER = udp_packet(b"hello")


def hop(node: int, mtu: int = 1500) -> NextHop:
    return NextHop(node, f"172.31.0.{node}", node + 10, mtu, 1)


def forwarder(node: int, protocol: int | None = 1, mtu: int = 1500, version: int = 7) -> Forwarder:
    entries: dict[tuple[int, int], tuple[NextHop, ...]]
    entries = {(d, 1): (hop(d, mtu),) for d in (1, 2, 3, 4) if d != node}
    entries |= {(4, 2): (hop(3, mtu),)} if node != 4 else {}
    config = ForwarderConfig(
        node, 5, CONNECTION, 1, 4, protocol, spawn_ms=105, interfaces={"172.31.0.1": 9}
    )
    return Forwarder(config, ForwardingTable(node, version, entries))


def datagram(
    *,
    hops: tuple[int, ...] = (1,),
    protocol: int = 1,
    limit: int = 32,
    flags: int = 0,
    destination: int = 4,
    connection: int = CONNECTION,
    inner: bytes = INNER,
    kind: int = packet.PAYLOAD_IPV4,
) -> bytes:
    records = tuple(HopRecord(n, 1, 0, 1, NOW, 10, 1, 7, 100) for n in hops)
    counts = (len(inner), len(records), kind)
    header = Header(flags, protocol, limit, *counts, connection, 1, destination, 9)
    return Packet(header, inner, records).encode()


def test_the_ingress_writes_destination_protocol_and_its_own_record() -> None:
    actions = forwarder(1).from_application([INNER], NOW, 3)
    actions.stamp(250)
    (batch,) = actions.batches
    assert batch.address == "172.31.0.4"
    sent = Packet.parse(batch.datagrams()[0])
    assert sent.payload == INNER
    header = sent.header
    assert (header.protocol, header.source, header.destination) == (1, 1, 4)
    assert (header.connection, header.sequence, header.hop_limit) == (CONNECTION, 1, 64)
    assert sent.records == (HopRecord(1, 5, 0, 14, NOW, 250, 3, 7, 105),)


def test_a_relay_changes_nothing_but_limit_count_and_tail() -> None:
    before = datagram()
    actions = forwarder(2).from_underlay([(before, "172.31.0.1")], NOW + 9, 1)
    actions.stamp(40)
    after = actions.batches[0].datagrams()[0]
    assert len(after) == len(before) + packet.RECORD_SIZE
    assert after[7 : len(before)] == before[7:]
    sent = Packet.parse(after)
    assert (sent.header.hop_limit, sent.header.hop_count) == (31, 2)
    assert sent.records[-1] == HopRecord(2, 5, 9, 14, NOW + 9, 40, 1, 7, 105)


def test_a_relay_follows_the_packets_protocol_not_its_own_idea() -> None:
    relay = forwarder(2, protocol=1)
    burst = [(datagram(protocol=p), "172.31.0.1") for p in (1, 2)]
    assert [b.address for b in relay.from_underlay(burst, NOW).batches] == [
        "172.31.0.4",
        "172.31.0.3",
    ]


def test_the_egress_delivers_the_bytes_and_keeps_the_trace() -> None:
    egress = forwarder(4)
    actions = egress.from_underlay([(memoryview(datagram(hops=(1, 2))), "172.31.0.2")], NOW, 2)
    actions.stamp(70)
    assert [bytes(inner) for inner in actions.deliveries] == [INNER]
    assert actions.first_delivery
    trace = Packet.parse_trace(egress.traces()[-1])
    assert [record.node for record in trace.records] == [1, 2, 4]
    assert trace.records[-1] == HopRecord(4, 5, 0, 0, NOW, 70, 2, 7, 105)
    assert trace.header.payload_length == len(INNER)
    assert not egress.from_underlay([(datagram(), "172.31.0.2")], NOW).first_delivery


def test_replies_take_the_protocol_learned_from_the_packets_they_answer() -> None:
    egress = forwarder(4, protocol=None)
    assert egress.from_application([INNER], NOW).batches == []
    assert egress.counters["drop_no_protocol"] == 1
    egress.from_underlay([(datagram(), "172.31.0.2")], NOW)
    reply = Packet.parse(egress.from_application([INNER], NOW).batches[0].datagrams()[0]).header
    assert (reply.flags, reply.protocol, reply.source, reply.destination) == (1, 1, 4, 1)


@pytest.mark.parametrize(
    ("node", "broken", "reason"),
    [
        (2, datagram(limit=0), "hop_limit"),
        (2, datagram(limit=1), "hop_limit"),
        (4, datagram(limit=0), "hop_limit"),
        (2, datagram(hops=(1, 2, 3)), "loop"),
        (4, datagram(hops=(1, 4)), "loop"),
        (2, datagram(connection=8), "wrong_connection"),
        (2, datagram(protocol=99), "no_route"),
        (2, datagram(destination=77), "no_route"),
        (4, datagram(kind=packet.PAYLOAD_ANNOUNCE), "not_deliverable"),
        (4, datagram(kind=packet.PAYLOAD_IPV6), "not_deliverable"),
        (4, datagram(inner=b""), "not_deliverable"),
        (2, datagram()[:-1], "malformed"),
        (2, datagram() + b"x", "malformed"),
        (2, b"", "malformed"),
        (2, b"\x2a" + datagram()[1:], "malformed"),
        (2, b"\x00" + datagram(hops=(), inner=b"")[1:], "malformed"),
        (2, b"\x1f" + datagram(hops=(), inner=b"")[1:], "malformed"),
        (2, b"\x2f" + datagram(hops=(), inner=b"")[1:] + bytes(20), "malformed"),
        (2, datagram(flags=packet.FLAG_AUTHENTICATED, hops=()), "authentication"),
    ],
)
def test_what_cannot_go_on_is_counted_under_its_reason(
    node: int, broken: bytes, reason: str
) -> None:
    engine = forwarder(node)
    actions = engine.from_underlay([(broken, "172.31.0.1")] * 3, NOW)
    assert (actions.batches, actions.deliveries) == ([], [])
    assert engine.counters["drop_" + reason] == 3
    assert len(actions.events) == 1, "one event a second, however many are lost"
    assert actions.events[0][1]["reason"] == reason
    later = engine.from_underlay([(broken, "172.31.0.1")], NOW + 1_000_000)
    assert later.events[0][1]["total"] == 4


def test_a_packet_at_its_last_hop_is_still_delivered() -> None:
    assert forwarder(4).from_underlay([(datagram(limit=1), "172.31.0.2")], NOW).deliveries


def test_a_full_trace_goes_on_flagged() -> None:
    hops = tuple(range(100, 100 + packet.MAX_RECORDS))
    before = datagram(hops=hops)
    actions = forwarder(2).from_underlay([(before, "172.31.0.1")], NOW)
    sent = Packet.parse(actions.batches[0].datagrams()[0])
    assert sent.header.flag_names() == ["overflow"]
    assert sent.records == Packet.parse(before).records
    egress = forwarder(4)
    egress.from_underlay([(before, "172.31.0.1")], NOW)
    assert Packet.parse_trace(egress.traces()[0]).header.flag_names() == ["overflow"]


@pytest.mark.parametrize(("spare", "flags"), [(0, []), (-1, ["mtu"])])
def test_room_in_the_mtu_is_exact(spare: int, flags: list[str]) -> None:
    before = datagram()
    needed = len(before) + packet.RECORD_SIZE + packet.UNDERLAY_OVERHEAD
    actions = forwarder(2, mtu=needed + spare).from_underlay([(before, "172.31.0.1")], NOW)
    assert Packet.parse(actions.batches[0].datagrams()[0]).header.flag_names() == flags
    needed = packet.HEADER_SIZE + len(INNER) + packet.RECORD_SIZE + packet.UNDERLAY_OVERHEAD
    actions = forwarder(1, mtu=needed + spare).from_application([INNER], NOW)
    sent = Packet.parse(actions.batches[0].datagrams()[0])
    assert sent.header.flag_names() == flags
    assert sent.payload == INNER


def test_header_extensions_of_a_later_version_are_carried_along() -> None:
    plain = Packet.parse(datagram())
    values = dict(zip(plain.header.names, plain.header.values(), strict=True)) | {"length": 44}
    extended = Packet(Header(**values), plain.payload, plain.records, b"\1\2\3\4")
    relayed = forwarder(2).from_underlay([(extended.encode(), "172.31.0.1")], NOW)
    assert Packet.parse(relayed.batches[0].datagrams()[0]).extension == b"\1\2\3\4"
    egress = forwarder(4)
    assert egress.from_underlay([(extended.encode(), "")], NOW).deliveries == [INNER]
    assert len(Packet.parse_trace(egress.traces()[0]).records) == 2


def test_batches_are_what_segmented_sends_can_take() -> None:
    sizes = [1200] * 70 + [300, 1200, 1300]
    inners = [udp_packet(bytes(size)) for size in sizes]
    batches = forwarder(1).from_application(inners, NOW).batches
    lengths = [[len(d) for d in batch.datagrams()] for batch in batches]
    assert [n for sent in lengths for n in sent] == [len(i) + 72 for i in inners], "order is kept"
    for batch, sent in zip(batches, lengths, strict=True):
        assert len(sent) <= 64
        assert sum(sent) <= 65507
        assert all(length == batch.size for length in sent[:-1])
        assert sent[-1] <= batch.size


def test_a_table_replaces_another_for_the_next_packet() -> None:
    relay = forwarder(2)
    relay.from_underlay([(datagram(), "172.31.0.1")], NOW)
    relay.install(ForwardingTable(2, 8, {(4, 1): (hop(3),)}))
    actions = relay.from_underlay([(datagram(), "172.31.0.1")], NOW)
    assert actions.batches[0].address == "172.31.0.3"
    assert Packet.parse(actions.batches[0].datagrams()[0]).records[-1].table_version == 8


def test_equal_cost_hops_share_connections_and_keep_each_in_order() -> None:
    table = ForwardingTable(1, 1, {(4, 1): (hop(2), hop(3))})
    used = []
    for number in range(200):
        engine = Forwarder(ForwarderConfig(1, 1, 1 << 32 | number, 1, 4, 1), table)
        addresses = {b.address for b in engine.from_application([INNER] * 5, NOW).batches}
        assert len(addresses) == 1
        used.append(addresses.pop())
    assert 60 < used.count("172.31.0.2") < 140


def test_a_relay_has_no_application() -> None:
    relay = forwarder(2)
    assert not relay.from_application([INNER], NOW).batches
    assert relay.counters["drop_not_an_endpoint"] == 1


@pytest.mark.parametrize("inner", [b"", b"\x00nonsense", b"\x45" + bytes(65500)])
def test_application_bytes_that_are_no_packet_are_counted(inner: bytes) -> None:
    ingress = forwarder(1)
    assert not ingress.from_application([inner], NOW).batches
    assert ingress.counters["drop_malformed_inner"] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_goodbyes_are_seen_at_every_host(version: int) -> None:
    kind = packet.PAYLOAD_IPV4 if version == 4 else packet.PAYLOAD_IPV6
    fin = tcp_packet(b"", version=version, flags=0x11)
    relay = forwarder(2)
    there = datagram(inner=fin, kind=kind)
    relay.from_underlay([(there, "")] * 2, NOW)
    assert not relay.closing, "one side may go on sending"
    relay.from_underlay([(datagram(inner=fin, kind=kind, flags=1, destination=1), "")], NOW)
    assert relay.closing
    ingress = forwarder(1)
    ingress.from_application([tcp_packet(b"", version=version, flags=0x04)], NOW)
    assert ingress.closing
    ingress.from_application([tcp_packet(b"", version=version, flags=0x02)], NOW)
    assert not ingress.closing, "the same ports again"


def test_reports_are_due_once_a_second_and_only_after_change() -> None:
    ingress = forwarder(1)
    assert ingress.next_timer() is None
    ingress.from_application([INNER], NOW)
    assert ingress.next_timer() == NOW
    assert ingress.handle_timer(NOW).report
    assert ingress.next_timer() is None
    ingress.from_application([INNER], NOW + 10)
    assert ingress.next_timer() == NOW + 1_000_000
    assert not ingress.handle_timer(NOW + 999_999).report
    assert ingress.handle_timer(NOW + 1_000_000).report


def test_first_packets_are_told_once_per_way() -> None:
    relay = forwarder(2)
    told = []
    for flags, destination in ((0, 4), (0, 4), (1, 1), (1, 1)):
        burst = [(datagram(flags=flags, destination=destination), "172.31.0.1")]
        told += relay.from_underlay(burst, NOW).events
    assert [(f["direction"], f["reply"], f["next_hop"]) for _, f in told] == [
        ("in", False, None),
        ("forwarded", False, 4),
        ("in", True, None),
        ("forwarded", True, 1),
    ]
    assert told[0][1]["sequence"] == 9


def test_the_trace_ring_keeps_the_newest() -> None:
    egress = forwarder(4)
    for number in range(300):
        inner = udp_packet(bytes(number))
        egress.from_underlay([(datagram(inner=inner), "")], NOW + number).stamp(1)
    lengths = [Packet.parse_trace(t).header.payload_length for t in egress.traces()]
    assert lengths == [28 + number for number in range(300 - 256, 300)]
    assert len(egress.traces(3)) == 3
    assert egress.traces(0) == []
