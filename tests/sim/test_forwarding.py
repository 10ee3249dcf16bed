"""Many engines in one process: every packet is delivered once or accounted for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire.packet import FLAG_REPLY, MAX_RECORDS, Packet
from tests.sim.network import Connection, Paths, VirtualNetwork, tables
from tests.unit.inner_packets import udp_packet

PROTOCOLS = (0, 1, 2)


def random_trees(nodes: int, rng: Random) -> Paths:
    """Loop-free by construction: per destination and protocol, hops lead to nodes placed nearer."""
    paths: Paths = {}
    for destination in range(1, nodes + 1):
        for protocol in PROTOCOLS:
            placed = [destination]
            others = [n for n in range(1, nodes + 1) if n != destination]
            rng.shuffle(others)
            for node in others:
                choice = sorted(rng.sample(placed, min(len(placed), rng.randint(1, 2))))
                paths[node, destination, protocol] = tuple(choice)
                placed.append(node)
    return paths


def random_connections(nodes: int, count: int, rng: Random) -> list[Connection]:
    made = []
    for number in range(count):
        source, destination = rng.sample(range(1, nodes + 1), 2)
        made.append(Connection(source << 32 | number, source, destination, rng.choice(PROTOCOLS)))
    return made


def traffic(network: VirtualNetwork, connections: list[Connection], rng: Random) -> list[bytes]:
    """Bursts both ways; each inner packet is unique, so that none can stand for another."""
    sent = []
    for way in (False, True):
        for connection in connections:
            if way and not network.engines.get((connection.destination, connection.id)):
                continue  # nothing ever arrived: nobody there to answer
            burst = [
                udp_packet(b"%d/%d/%d/" % (connection.id, way, n) + bytes(rng.randrange(900)))
                for n in range(rng.randint(1, 5))
            ]
            network.send(connection, burst, reply=way)
            sent += burst
        network.run()
    return sent


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(2, 12),
    count=st.integers(1, 6),
    loss=st.sampled_from([0.0, 0.0, 0.2]),
)
def test_every_packet_is_delivered_once_or_accounted_for(
    seed: int, nodes: int, count: int, loss: float
) -> None:
    rng = Random(seed)
    paths = random_trees(nodes, rng)
    network = VirtualNetwork(tables(nodes, paths), rng, loss)
    connections = random_connections(nodes, count, rng)
    sent = traffic(network, connections, rng)
    got = Counter(inner for _, _, inner in network.delivered)
    assert set(got) <= set(sent), "bytes identical"
    assert set(got.values()) <= {1}, "never twice"
    assert len(sent) == sum(got.values()) + network.lost + network.drops()
    if not loss:
        assert len(network.delivered) == len(sent)
    for node, connection, _ in network.delivered:
        known = network.connections[connection]
        assert node in (known.source, known.destination)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(2, 12))
def test_traces_are_loop_free_and_follow_the_tables(seed: int, nodes: int) -> None:
    rng = Random(seed)
    paths = random_trees(nodes, rng)
    network = VirtualNetwork(tables(nodes, paths), rng)
    traffic(network, random_connections(nodes, 4, rng), rng)
    seen = 0
    for (node, _), engine in network.engines.items():
        for raw in engine.traces():
            trace = Packet.parse_trace(raw)
            header, hops = trace.header, [record.node for record in trace.records]
            assert len(hops) == len(set(hops))
            assert (hops[0], hops[-1], node) == (header.source, header.destination, hops[-1])
            for here, there in pairwise(hops):
                assert there in paths[here, header.destination, header.protocol]
            times = [record.received_at_us for record in trace.records]
            assert times == sorted(times)
            assert [r.table_version for r in trace.records] == [100 + hop for hop in hops]
            ports = [(r.ingress_interface, r.egress_interface) for r in trace.records]
            assert ports == list(zip([0, *hops[:-1]], [*hops[1:], 0], strict=True))
            seen += 1
    assert seen == len(network.delivered)


def test_replies_keep_protocol_and_connection() -> None:
    rng = Random(1)
    network = VirtualNetwork(tables(6, random_trees(6, rng)), rng)
    connections = random_connections(6, 5, rng)
    traffic(network, connections, rng)
    for connection in connections:
        raw = network.engines[connection.source, connection.id].traces()
        assert raw
        for header in (Packet.parse_trace(trace).header for trace in raw):
            assert header.flags & FLAG_REPLY
            assert (header.protocol, header.connection) == (connection.protocol, connection.id)


@pytest.mark.parametrize("ring", [2, 3, 5])
def test_a_routing_loop_ends_at_the_first_host_that_knows_the_packet(ring: int) -> None:
    paths: Paths = {(n, 9, 0): (n % ring + 1,) for n in range(1, ring + 1)}
    network = VirtualNetwork(tables(9, paths), Random(0))
    network.send(Connection(1, 1, 9, 0), [udp_packet(b"round")])
    network.run()
    assert network.engines[1, 1].counters["drop_loop"] == 1
    assert network.engines[1, 1].counters["packets_in"] == 1


def test_a_loop_beyond_the_longest_trace_ends_by_its_hop_limit() -> None:
    # A tail into a loop whose hosts find no room left for their names.
    tail = MAX_RECORDS
    paths: Paths = {(n, 99, 0): (n + 1,) for n in range(1, tail + 2)}
    paths[tail + 2, 99, 0] = (tail + 1,)
    network = VirtualNetwork(tables(99, paths), Random(0))
    network.send(Connection(1, 1, 99, 0), [udp_packet(b"far")])
    network.run()
    assert network.drops() == 1
    assert sum(e.counters.get("drop_hop_limit", 0) for e in network.engines.values()) == 1


def test_a_path_longer_than_the_trace_still_delivers() -> None:
    length = MAX_RECORDS + 6
    paths: Paths = {(n, length, 0): (n + 1,) for n in range(1, length)}
    network = VirtualNetwork(tables(length, paths), Random(0))
    network.send(Connection(1, 1, length, 0), [udp_packet(b"long")])
    network.run()
    assert len(network.delivered) == 1
    trace = Packet.parse_trace(network.engines[length, 1].traces()[0])
    assert trace.header.flag_names() == ["overflow"]
    assert [record.node for record in trace.records] == list(range(1, MAX_RECORDS + 1))
