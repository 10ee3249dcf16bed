"""Engines with real tables: every protocol, failures nobody announced, and tables that disagree."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from fabric.routing.definitions import Definition
from fabric.routing.needs import DISJOINT, DISPERSE, FLOOD, LOW_LATENCY, SHORTEST, SOURCE, WIDE
from fabric.routing.protocols import compute_table
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.wire.packet import DEFAULT_HOP_LIMIT, FLAG_REPAIRED, Packet
from tests.sim.graphs import attributed, topology
from tests.sim.network import Connection, VirtualNetwork
from tests.unit.inner_packets import udp_packet

SEEDS = range(0, 18, 3)  # every third random graph defines protocols of its own
BURST = 6
RING_OF_SIX = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 1)]
THREE_WAYS = [
    (1, 2),
    (2, 9),
    (1, 3),
    (3, 9),
    (1, 4),
    (4, 9),
    (1, 5),
    (5, 6),
    (6, 7),
    (7, 8),
    (8, 9),
]


def all_tables(graph: Topology, version: int = 1) -> dict[int, ForwardingTable]:
    return {node.id: compute_table(graph, node.id, version) for node in graph.nodes}


def plain_links(count: int, edges: list[tuple[int, int]], *own: Definition) -> Topology:
    """Links that differ in nothing but their ends."""
    graph = attributed(count, edges, random.Random(0), varied=False)
    even = {
        at: type(link)(
            **{**link.__dict__, "cost": 1, "latency_us": 0, "loss": 0.0, "bandwidth_bps": 0}
        )
        for at, link in enumerate(graph.links)
    }
    nodes = tuple(type(node)(node.id, node.name) for node in graph.nodes)
    return Topology(nodes, graph.changed(even).links, own)


def packets(tag: str, count: int) -> list[bytes]:
    """Inner packets none of which can stand for another."""
    return [udp_packet(f"{tag}/{n}/".encode() + bytes(n * 37 % 400)) for n in range(count)]


def served(graph: Topology, rng: random.Random, most: int) -> Iterator[Connection]:
    """Connections of every protocol between some pairs of hosts that reach each other by it."""
    known = all_tables(graph)
    for protocol in graph.definitions:
        pairs = [
            (a, b)
            for a in known
            for b in known
            if known[a].lookup(b, protocol) and known[b].lookup(a, protocol)
        ]
        for source, goal in rng.sample(pairs, min(most, len(pairs))):
            yield Connection(source << 32 | protocol << 8 | goal, source, goal, protocol)


def accounted(network: VirtualNetwork, sent: int) -> None:
    """Every datagram that was sent arrived or was lost, and every one that arrived was sent on,
    delivered, eliminated, or dropped under its reason; so was every packet refused at once."""
    arrived = network.total("packets_out") - network.lost
    assert arrived == network.total("packets_in")
    sent_on = (
        network.total("packets_out") - network.total("copies") - network.total("application_in")
    )
    ended = network.total("delivered") + network.total("eliminated") + network.drops()
    refused = sent - network.total("application_in")
    assert arrived == sent_on + ended - refused


def traces(network: VirtualNetwork, node: int, connection: int) -> list[Packet]:
    return [Packet.parse_trace(raw) for raw in network.engines[node, connection].traces()]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_protocol_delivers_every_packet_once_both_ways(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    network = VirtualNetwork.of(graph, all_tables(graph), rng)
    sent: Counter[tuple[int, bytes]] = Counter()
    for connection in served(graph, rng, 2):
        for reply in (False, True):
            burst = packets(f"{connection.id}{reply}", BURST)
            there = connection.source if reply else connection.destination
            network.send(connection, burst, reply=reply)
            network.run()
            sent.update((there, inner) for inner in burst)
    assert Counter((node, inner) for node, _, inner in network.delivered) == sent
    assert network.lost == network.drops() == 0
    accounted(network, sum(sent.values()))


@pytest.mark.parametrize("seed", SEEDS)
def test_traces_tell_the_path_the_packet_was_given(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    known = all_tables(graph)
    network = VirtualNetwork.of(graph, known, rng)
    for connection in served(graph, rng, 1):
        network.send(connection, packets("x", BURST))
        network.run()
        paths = known[connection.source].paths(connection.destination, connection.protocol)
        for packet in traces(network, connection.destination, connection.id):
            hops = [record.node for record in packet.records]
            assert len(hops) == len(set(hops))
            assert all(b in {e.node for e in graph.neighbours(a)} for a, b in pairwise(hops))
            if packet.header.path_length:
                path = paths[packet.header.path_number]
                assert hops[1:] == list(path.nodes)


@pytest.mark.parametrize("seed", range(12))
def test_disjoint_loses_nothing_when_any_one_relay_dies(seed: int) -> None:
    """Nobody notices, nobody is told: the other copy was on its way all the time."""
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    known = all_tables(graph)
    for source, table in known.items():
        for goal in known:
            paths = [set(path.nodes[:-1]) for path in table.paths(goal, DISJOINT)]
            if len(paths) < 2 or paths[0] & paths[1]:
                continue
            for relay in rng.sample(sorted(paths[0] | paths[1]), 1):
                network = VirtualNetwork.of(graph, known, rng)
                network.kill(relay)
                burst = packets("vital", BURST)
                network.send(Connection(7, source, goal, DISJOINT), burst)
                network.run()
                assert Counter(inner for _, _, inner in network.delivered) == Counter(burst)


def test_disjoint_survives_the_death_of_a_relay_in_mid_flow() -> None:
    graph = plain_links(6, RING_OF_SIX)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(1))
    connection, sent = Connection(7, 1, 4, DISJOINT), []
    for part in range(20):
        if part == 10:
            network.kill(2)
        burst = packets(str(part), BURST)
        network.send(connection, burst)
        network.run()
        sent += burst
    assert Counter(inner for _, _, inner in network.delivered) == Counter(sent)
    assert network.total("eliminated") == 10 * BURST
    accounted(network, len(sent))


def test_dispersed_packets_show_no_relay_more_than_its_share() -> None:
    graph = plain_links(9, THREE_WAYS)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(1))
    connection, sent = Connection(7, 1, 9, DISPERSE), []
    for part in range(10):
        burst = packets(str(part), 30)
        network.send(connection, burst)
        sent += burst
        network.run()
    relays = {node: count for (node, _), count in network.seen.items() if node != 9}
    assert set(relays) == {2, 3, 4}, "three of the four ways: the fourth is longer"
    assert all(count <= len(sent) / 3 for count in relays.values())
    assert [inner for _, _, inner in network.delivered] == sent, "all, once, and in order"
    assert network.total("reordered") > 0
    accounted(network, len(sent))


def test_a_lost_packet_of_a_dispersed_flow_delays_the_others_by_the_hold_time_only() -> None:
    graph = plain_links(9, THREE_WAYS)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(2))
    network.kill(3)
    burst = packets("x", 30)
    start = network.now_us
    network.send(Connection(7, 1, 9, DISPERSE), burst)
    network.run()
    got = [inner for _, _, inner in network.delivered]
    assert len(got) == 20
    assert got == [inner for inner in burst if inner in set(got)], "still in order"
    assert network.delivered_at_us - start <= 2 * (1000 + 5000) + 50_000


def test_too_few_paths_for_a_share_are_refused_rather_than_shown() -> None:
    own = Definition(134, "thirds", "disperse", paths=3, share=0.34)
    graph = plain_links(6, RING_OF_SIX, own)
    known = all_tables(graph)
    assert not known[1].lookup(4, own.id)
    assert len(known[1].lookup(4, DISPERSE)) == 2
    graph = plain_links(9, THREE_WAYS, own)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(0))
    network.kill(3, tell=True)
    network.send(Connection(7, 1, 9, own.id), packets("x", 3))
    network.run()
    assert network.total("drop_share") == 3, "a dead path does not move its share to the others"
    network.send(Connection(8, 1, 9, DISPERSE), packets("y", 4))
    network.run()
    assert len(network.delivered) == 4


def test_a_flood_visits_every_host_in_scope_once_and_no_other() -> None:
    graph = plain_links(9, [*THREE_WAYS, (2, 3)])
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(3))
    burst = packets("everywhere", 5)
    network.send(Connection(7, 1, 9, FLOOD), burst)
    network.run()
    assert Counter(inner for _, _, inner in network.delivered) == Counter(burst)
    reached = {node for node, _ in network.seen}
    assert reached == {2, 3, 4, 9}, "one hop more is in scope, the way by 5 takes three more"
    for node in (2, 3):
        assert network.engines[node, 7].counters["forwarded"] >= 5
        assert network.engines[node, 7].counters["eliminated"] == 5
    accounted(network, len(burst))


@pytest.mark.parametrize("seed", range(8))
def test_a_flood_survives_whatever_leaves_a_way_in_scope(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    known = all_tables(graph)
    for source, table in known.items():
        for goal in known:
            best = table.metric(goal, FLOOD)
            if best is None or best < 2:
                continue
            dead = rng.choice([node for node in known if node not in (source, goal)])
            left = graph.without(
                {n for n, link in enumerate(graph.links) if dead in (link.a, link.b)}
            )
            needs = compute_table(left, source, 1).metric(goal, FLOOD)
            network = VirtualNetwork.of(graph, known, rng)
            network.kill(dead)
            network.send(Connection(7, source, goal, FLOOD), packets("x", 1))
            network.run()
            expected = 1 if needs is not None and needs <= best + 2 else 0
            assert len(network.delivered) >= expected
            assert len(network.delivered) <= 1


@pytest.mark.parametrize("protocol", [SHORTEST, LOW_LATENCY, WIDE, SOURCE, 8, 9, 10])
@pytest.mark.parametrize("seed", range(6))
def test_hosts_beside_a_dead_one_repair_at_once(seed: int, protocol: int) -> None:
    """No new table, no word to anybody farther away; and back to the first choice afterwards."""
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    known = all_tables(graph)
    for source in known:
        for goal in rng.sample(sorted(known), 2):
            first = known[source].lookup(goal, protocol)
            relays = {hop.node for hop in first} - {goal}
            if not relays:
                continue
            dead = min(relays)
            gone = {n for n, link in enumerate(graph.links) if dead in (link.a, link.b)}
            if not compute_table(graph.without(gone), source, 1).lookup(goal, protocol):
                continue
            network = VirtualNetwork.of(graph, known, rng)
            connection = Connection(7, source, goal, protocol)
            network.send(connection, packets("before", 2))
            network.run()
            network.kill(dead, tell=True)
            network.send(connection, packets("during", 2))
            network.run()
            network.revive(dead)
            network.send(connection, packets("after", 2))
            network.run()
            assert len(network.delivered) == 6
            assert network.lost == network.drops() == 0
            during = traces(network, goal, 7)[2:4]
            assert all(dead not in {r.node for r in packet.records} for packet in during)
            after = traces(network, goal, 7)[4:]
            assert not any(packet.header.flags & FLAG_REPAIRED for packet in after)


def test_a_repaired_packet_may_turn_round_but_not_be_repaired_again() -> None:
    graph = plain_links(6, RING_OF_SIX)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(0))
    connection = Connection(7, 1, 3, SHORTEST)
    network.send(connection, packets("learns", 1))
    network.run()
    engine = network.engines[2, 7]
    engine.neighbour_down(graph.neighbours(2)[1].address)
    network.send(connection, packets("turns", 1))
    network.run()
    turned = traces(network, 3, 7)[-1]
    assert [record.node for record in turned.records] == [1, 2, 1, 6, 5, 4, 3]
    assert turned.header.flag_names() == ["path", "repaired"]
    network.kill(5, tell=True)
    network.send(connection, packets("stops", 1))
    network.run()
    assert len(network.delivered) == 2
    assert network.engines[6, 7].counters["drop_neighbour_down"] == 1


def test_the_two_directions_may_use_different_protocols() -> None:
    graph = plain_links(6, RING_OF_SIX)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(0))
    for number, (there, back) in enumerate(
        [(SHORTEST, DISJOINT), (DISJOINT, SHORTEST), (DISPERSE, LOW_LATENCY), (FLOOD, SOURCE)]
    ):
        connection = Connection(number, 1, 4, there, back)
        network.send(connection, packets(f"there{number}", 3))
        network.run()
        network.send(connection, packets(f"back{number}", 3), reply=True)
        network.run()
        assert {t.header.protocol for t in traces(network, 4, number)} == {there}
        assert {t.header.protocol for t in traces(network, 1, number)} == {back}
    assert len(network.delivered) == 4 * 6


@pytest.mark.parametrize("seed", range(12))
def test_tables_that_disagree_never_loop_a_packet_beyond_its_hop_limit(seed: int) -> None:
    """During convergence every host may be at another version of the topology. Packets arrive, or
    are dropped and counted; none circles, as the trace shows hosts what they have seen."""
    rng = random.Random(seed)
    before = topology(f"random-{seed * 3}")
    changed = {
        at: type(link)(**{**link.__dict__, "cost": rng.randrange(1, 1000), "latency_us": 0})
        for at, link in enumerate(before.links)
    }
    after = before.changed(changed)
    old, new = all_tables(before, 1), all_tables(after, 2)
    mixed = {node: rng.choice((old, new))[node] for node in old}
    network = VirtualNetwork.of(before, mixed, rng)
    sent = 0
    for connection in served(before, rng, 3):
        network.send(connection, packets("x", 2))
        network.run()
        sent += 2
    accounted_for = Counter(
        name
        for engine in network.engines.values()
        for name, count in engine.counters.items()
        if name.startswith("drop_")
        for _ in range(count)
    )
    assert set(accounted_for) <= {"drop_loop", "drop_no_route"}
    per_packet = network.total("packets_out") / max(1, sent)
    assert per_packet <= DEFAULT_HOP_LIMIT
    for (node, connection_id), _ in network.engines.items():
        for packet in traces(network, node, connection_id):
            hops = [record.node for record in packet.records]
            assert len(hops) == len(set(hops))
    accounted(network, sent)
