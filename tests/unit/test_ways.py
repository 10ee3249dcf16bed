"""One forwarder and packets that do not simply follow its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.needs import DISJOINT, DISPERSE, FLOOD, SHORTEST, SOURCE
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Link, Topology
from fabric.wire import packet
from fabric.wire.packet import DISPERSED, FLOODED, REPLICATED, SINGLE, Header, HopRecord, Packet
from tests.unit.graph_samples import build
from tests.unit.inner_packets import tcp_packet, udp_packet

CONNECTION = 0x0000000100000007
NOW = 1_700_000_000_000_000
INNER = udp_packet(b"hello")
ROOT = Path(__file__).resolve().parents[2]


def diamond(mtu: int = 1500) -> Topology:
    """1 to 4 by 2, by 3, and by 5 and 6; links in this order, so interfaces are known."""
    edges = [(1, 2), (2, 4), (1, 3), (3, 4), (1, 5), (5, 6), (6, 4)]
    return build(6, *(Link(a, b, cost=1 if a != 3 else 2, mtu=mtu) for a, b in edges))


def engine(
    node: int, protocol: int | None = SHORTEST, topology: Topology | None = None, **more: Any
) -> Forwarder:
    graph = topology or diamond()
    known = {end.address: end.interface for end in graph.neighbours(node)}
    config = ForwarderConfig(node, 5, CONNECTION, 1, 4, protocol, interfaces=known, **more)
    return Forwarder(config, compute_table(graph, node, 7))


def address(node: int, neighbour: int) -> str:
    (found,) = [end.address for end in diamond().neighbours(node) if end.node == neighbour]
    return found


def datagram(
    path: tuple[int, ...] = (2, 4),
    *,
    flags: int = packet.FLAG_PATH,
    protocol: int = SOURCE,
    treatment: int = SINGLE,
    number: int = 0,
    sequence: int = 9,
    hops: tuple[int, ...] = (1,),
    limit: int = 32,
    inner: bytes = INNER,
    extension: bytes = b"",
    connection: int = CONNECTION,
    difference: int = 0,
) -> bytes:
    records = tuple(HopRecord(n, 1, 0, 1, NOW, 10, 1, 7, 100) for n in hops)
    header = Header(
        flags,
        protocol,
        limit,
        len(inner) + 4 * len(path),
        len(records),
        packet.PAYLOAD_IPV4,
        connection,
        1,
        4,
        sequence,
        length=packet.HEADER_SIZE + len(extension),
        path_number=number,
        path_length=len(path),
        treatment=treatment,
        reply_difference=difference,
    )
    return Packet(header, inner, records, extension, path).encode()


def sent(actions: Any) -> list[Packet]:
    return [Packet.parse(each) for batch in actions.batches for each in batch.datagrams()]


def went_to(actions: Any) -> list[str]:
    return [batch.address for batch in actions.batches for _ in batch.datagrams()]


# -- ingress ---------------------------------------------------------------------------------------


def test_a_source_packet_carries_its_whole_path() -> None:
    actions = engine(1, SOURCE).from_application([INNER, INNER], NOW)
    for number, each in enumerate(sent(actions), 1):
        header = each.header
        assert each.path == (2, 4)
        assert each.payload == INNER
        assert (header.flag_names(), header.treatment, header.sequence) == (["path"], 0, number)
        assert header.payload_length == len(INNER) + 8
        assert [record.node for record in each.records] == [1]


def test_disjoint_sends_copies_with_one_number_over_both_paths() -> None:
    ingress = engine(1, DISJOINT)
    copies = sent(ingress.from_application([INNER], NOW))
    assert {copy.path for copy in copies} == {(2, 4), (3, 4)}
    assert {copy.header.path_number for copy in copies} == {0, 1}
    assert {copy.header.sequence for copy in copies} == {1}
    assert {copy.header.treatment for copy in copies} == {REPLICATED}
    counters = ingress.counters
    assert (counters["application_in"], counters["copies"], counters["packets_out"]) == (1, 1, 2)


def test_disperse_takes_the_paths_in_turn_and_evens_out_sizes() -> None:
    ingress = engine(1, DISPERSE)
    inners = [udp_packet(bytes(size)) for size in (1000, 10, 10) * 3]
    packets = sent(ingress.from_application(inners, NOW))
    assert sorted(each.header.sequence for each in packets) == list(range(1, 10))
    for number in range(3):
        own = [each for each in packets if each.header.path_number == number]
        assert len(own) == 3
        assert sum(len(each.payload) > 500 for each in own) == 1


def test_a_flood_goes_to_every_neighbour_that_may_help_with_a_limit() -> None:
    actions = engine(1, FLOOD).from_application([INNER], NOW)
    assert sorted(went_to(actions)) == sorted(address(1, n) for n in (2, 3, 5))
    assert {each.header.hop_limit for each in sent(actions)} == {2 + 2}
    assert {each.path for each in sent(actions)} == {()}


def test_sequence_numbers_go_on_when_a_plain_protocol_needs_a_detour() -> None:
    ingress = engine(1)
    ingress.from_application([INNER] * 2, NOW)
    ingress.neighbour_down(2)
    packets = sent(ingress.from_application([INNER] * 2, NOW))
    ingress.neighbour_up(2)
    packets += sent(ingress.from_application([INNER], NOW))
    assert [each.header.sequence for each in packets] == [3, 4, 5]
    assert [each.header.flag_names() for each in packets] == [["repaired"]] * 2 + [[]]


def test_no_room_for_a_record_beside_a_path_is_flagged() -> None:
    needed = packet.HEADER_SIZE + 8 + len(INNER) + packet.RECORD_SIZE + packet.UNDERLAY_OVERHEAD
    for spare, flags in ((0, ["path"]), (-1, ["mtu", "path"])):
        ingress = engine(1, SOURCE, diamond(needed + spare))
        (only,) = sent(ingress.from_application([INNER], NOW))
        assert only.header.flag_names() == flags
        assert (only.path, only.payload) == ((2, 4), INNER)


@pytest.mark.parametrize("inner", [b"", b"\x00nonsense", b"\x45" + bytes(65400)])
def test_what_is_no_packet_is_no_packet_on_any_path(inner: bytes) -> None:
    ingress = engine(1, DISJOINT)
    assert not ingress.from_application([inner], NOW).batches
    assert ingress.counters["drop_malformed_inner"] == 1


def test_an_ingress_without_any_way_counts_the_reason() -> None:
    for protocol in (SHORTEST, SOURCE, DISJOINT, DISPERSE, FLOOD):
        ingress = engine(1, protocol)
        for neighbour in (2, 3, 5):
            ingress.neighbour_down(neighbour)
        assert not ingress.from_application([INNER], NOW).batches
        reason = "share" if protocol == DISPERSE else "neighbour_down"
        assert ingress.counters["drop_" + reason] == 1, protocol
        unknown = engine(1, 99)
        unknown.from_application([INNER], NOW)
        assert unknown.counters["drop_no_route"] == 1


# -- transit ---------------------------------------------------------------------------------------


def test_a_relay_follows_the_path_in_the_packet_and_not_its_table() -> None:
    before = datagram((5, 6, 4), hops=(1,))
    actions = engine(5).from_underlay([(before, address(5, 1))], NOW)
    assert went_to(actions) == [address(5, 6)]
    after = actions.batches[0].datagrams()[0]
    assert after[7 : len(before)] == before[7:]
    assert [record.node for record in Packet.parse(after).records] == [1, 5]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (datagram((9, 4)), "off_path"),
        (datagram((3, 2)), "off_path"),
        (datagram(()), "off_path"),
        (datagram((2, 6, 4), treatment=REPLICATED), "no_route"),
        (datagram(limit=1), "hop_limit"),
        (datagram(limit=0), "hop_limit"),
        (datagram(connection=8), "wrong_connection"),
        (datagram(flags=packet.FLAG_PATH | packet.FLAG_AUTHENTICATED, extension=b"i" * 16),
         "authentication"),
        (datagram()[:35] + b"\x21" + datagram()[36:], "malformed"),
        (datagram()[:-1], "malformed"),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere_are_counted(broken: bytes, reason: str) -> None:
    relay = engine(2)
    assert not relay.from_underlay([(broken, address(2, 1))], NOW).batches
    assert {k: v for k, v in relay.counters.items() if k.startswith("drop")} == {
        "drop_" + reason: 1
    }


def test_a_path_may_lead_back_through_a_host_and_a_loop_may_not() -> None:
    turned = datagram((2, 4), hops=(1, 2, 1), flags=packet.FLAG_PATH | packet.FLAG_REPAIRED)
    assert engine(2).from_underlay([(turned, address(2, 1))], NOW).batches
    looped = datagram((), hops=(1, 2), flags=0, protocol=SHORTEST)
    relay = engine(2)
    assert not relay.from_underlay([(looped, address(2, 1))], NOW).batches
    assert relay.counters["drop_loop"] == 1


def test_copies_take_different_ones_of_parallel_links() -> None:
    double = build(4, Link(1, 2), Link(2, 4), Link(2, 4), Link(1, 3), Link(3, 4))
    relay = engine(2, topology=double)
    burst = [(datagram(number=number, treatment=REPLICATED), "") for number in (0, 1)]
    assert len(set(went_to(relay.from_underlay(burst, NOW)))) == 2


def test_a_relay_that_lacks_the_path_its_protocol_wants_adds_it() -> None:
    """Such are the refusals that orchestrators send back."""
    plain = datagram((), flags=0, protocol=DISJOINT)
    relay = engine(2)
    (after,) = sent(relay.from_underlay([(plain, address(2, 1))], NOW))
    assert after.path == (4,)
    assert after.header.flag_names() == ["path"]
    assert "repaired" not in relay.counters


@pytest.mark.parametrize("extension", [b"", b"opts"])
def test_a_repair_path_is_put_in_front_of_the_payload(extension: bytes) -> None:
    plain = datagram((), flags=0, protocol=SHORTEST, extension=extension, difference=3)
    relay = engine(2)
    relay.neighbour_down(4)
    (after,) = sent(relay.from_underlay([(plain, address(2, 1))], NOW))
    assert after.path == (1, 3, 4)
    assert after.payload == INNER
    assert after.extension == extension
    assert after.header.flag_names() == ["path", "repaired"]
    assert (after.header.reply_difference, after.header.hop_limit) == (3, 31)
    assert [record.node for record in after.records] == [1, 2]
    assert relay.counters["repaired"] == 1


def test_a_broken_source_path_is_replaced_and_a_broken_copy_is_not() -> None:
    stranger = sent(engine(2).from_underlay([(datagram((2, 6, 4)), address(2, 1))], NOW))[0]
    assert stranger.path == (4,), "a link this host knows nothing of is as good as a dead one"
    relay = engine(2)
    relay.neighbour_down(address(2, 4))
    (after,) = sent(relay.from_underlay([(datagram(), address(2, 1))], NOW))
    assert (after.path, after.payload) == ((1, 3, 4), INNER)
    for treatment in (REPLICATED, DISPERSED):
        assert not relay.from_underlay([(datagram(treatment=treatment), "")], NOW).batches
    twice = datagram(flags=packet.FLAG_PATH | packet.FLAG_REPAIRED)
    assert not relay.from_underlay([(twice, "")], NOW).batches
    assert relay.counters["drop_neighbour_down"] == 3


def test_a_new_table_keeps_dead_neighbours_dead() -> None:
    relay = engine(2)
    relay.neighbour_down(4)
    relay.install(compute_table(diamond(), 2, 8))
    plain = (datagram((), flags=0, protocol=SHORTEST), address(2, 1))
    assert went_to(relay.from_underlay([plain], NOW)) == [address(2, 1)]
    relay.neighbour_up(4)
    assert went_to(relay.from_underlay([plain], NOW)) == [address(2, 4)]


def test_a_flooded_packet_goes_on_once_and_not_back() -> None:
    relay = engine(2)
    burst = [(datagram((), protocol=FLOOD, treatment=FLOODED, limit=4), address(2, 1))] * 3
    assert went_to(relay.from_underlay(burst, NOW)) == [address(2, 4)]
    assert relay.counters["eliminated"] == 2
    back = engine(1, FLOOD)
    burst = [(datagram((), protocol=FLOOD, treatment=FLOODED, hops=(), limit=4), address(1, 2))]
    assert not back.from_underlay(burst, NOW).batches, "its own packet came back"


# -- egress ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("treatment", [REPLICATED, FLOODED])
def test_the_egress_delivers_the_first_copy_only(treatment: int) -> None:
    egress = engine(4)
    burst = [
        (datagram(path, treatment=treatment, sequence=sequence), "")
        for sequence in (1, 2)
        for path in ((2, 4), (3, 4))
    ]
    actions = egress.from_underlay(burst, NOW)
    assert [bytes(inner) for inner in actions.deliveries] == [INNER] * 2
    assert egress.counters["eliminated"] == 2
    trace = Packet.parse_trace(egress.traces()[0])
    assert (trace.header.path_length, trace.header.treatment) == (2, treatment)
    assert [record.node for record in trace.records] == [1, 4]


def test_the_egress_restores_the_order_and_its_timer_ends_the_wait() -> None:
    egress = engine(4)
    inners = {n: udp_packet(b"%d" % n) for n in range(1, 6)}

    def arrive(sequence: int, at: int) -> list[bytes]:
        buffer = bytearray(datagram(treatment=DISPERSED, sequence=sequence, inner=inners[sequence],
                                    protocol=DISPERSE))  # fmt: skip
        actions = egress.from_underlay([(memoryview(buffer), "")], at)
        released = [bytes(inner) for inner in actions.deliveries]
        buffer[:] = bytes(len(buffer))  # as the shell's receive buffer is used again
        return released

    assert arrive(2, NOW) == []
    assert arrive(1, NOW + 10) == [inners[1], inners[2]]
    assert arrive(5, NOW + 20) == []
    assert egress.handle_timer(NOW + 30).report
    assert egress.next_timer() == NOW + 20 + 50_000
    assert not egress.handle_timer(NOW + 50_019).deliveries
    late = egress.handle_timer(NOW + 50_020)
    assert [bytes(inner) for inner in late.deliveries] == [inners[5]]
    assert arrive(4, NOW + 60_000) == [inners[4]]
    counters = egress.counters
    assert (counters["delivered"], counters["reordered"], counters["late"]) == (4, 2, 1)


def test_path_packets_that_hold_nothing_to_deliver_are_counted() -> None:
    egress = engine(4)
    for broken in (datagram(inner=b""), datagram(inner=b"\x60rest")):
        egress.from_underlay([(broken, "")], NOW)
    assert egress.counters["drop_not_deliverable"] == 2


def test_the_egress_answers_by_the_protocol_that_was_asked_for() -> None:
    ingress = engine(1, SHORTEST, reply_protocol=SOURCE)
    (asked,) = sent(ingress.from_application([INNER], NOW))
    assert (asked.header.protocol, asked.header.reply_protocol) == (SHORTEST, SOURCE)
    assert asked.header.flag_names() == [], "an ordinary packet in everything else"
    for told in (SHORTEST, None):  # what the host says of the connection is the way there
        egress = engine(4, told)
        egress.from_underlay([(asked.encode(), address(4, 2))], NOW)
        (answer,) = sent(egress.from_application([INNER], NOW))
        assert (answer.header.protocol, answer.path) == (SOURCE, (2, 1))
    egress = engine(4, None)
    egress.from_underlay([(datagram(protocol=SOURCE, difference=SOURCE ^ SHORTEST), "")], NOW)
    assert sent(egress.from_application([INNER], NOW))[0].header.protocol == SHORTEST


def test_goodbyes_are_seen_behind_paths_too() -> None:
    goodbye = datagram(inner=tcp_packet(b"", flags=0x04))
    for node in (2, 4):
        watching = engine(node)
        watching.from_underlay([(goodbye, "")], NOW)
        assert watching.closing


def test_a_plain_connection_loads_no_path_code() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fabric.routing.forwarder import Forwarder, ForwarderConfig\n"
        "from fabric.routing.table import ForwardingTable, NextHop\n"
        "table = ForwardingTable(1, 7, {(4, 0): (NextHop(4, '172.31.0.1', 1, 1500, 1),)})\n"
        "engine = Forwarder(ForwarderConfig(1, 1, 7, 1, 4, 0), table)\n"
        "assert engine.from_application([b'E' + bytes(39)], 1).batches\n"
        "print(*(name for name in sys.modules if name.startswith('fabric.routing')))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert "fabric.routing.forwarder" in loaded
    assert not {"fabric.routing.ways", "fabric.routing.legs", "fabric.routing.recovery"} & set(
        loaded
    )
