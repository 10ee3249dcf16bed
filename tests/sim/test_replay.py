"""Every decision of every trace can be made again; a changed one is found out."""

from __future__ import annotations

import random

import pytest

from fabric.routing.needs import SHORTEST
from fabric.routing.protocols import compute_table
from fabric.routing.replay import Decision, decisions, replay
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.wire.packet import HopRecord, Packet
from tests.sim.graphs import topology
from tests.sim.network import Connection, VirtualNetwork
from tests.sim.test_ways import RING_OF_SIX, all_tables, packets, plain_links, served


def traced(graph: Topology, network: VirtualNetwork, connection: Connection) -> list[Packet]:
    network.send(connection, packets("x", 2))
    network.run()
    raw = network.engines[connection.destination, connection.id].traces(2)
    return [Packet.parse_trace(each) for each in raw]


def changed(record: HopRecord, **values: int) -> HopRecord:
    return HopRecord(**dict(zip(record.names, record.values(), strict=True)) | values)


@pytest.mark.parametrize("seed", range(0, 18, 3))
def test_decisions_of_every_protocol_agree_with_table_and_topology(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    known = all_tables(graph, 7)
    network = VirtualNetwork.of(graph, known, rng)
    for connection in served(graph, rng, 1):
        for trace in traced(graph, network, connection):
            for decision in decisions(trace):
                # Tables as recorded: nothing is left of how they were computed.
                table = ForwardingTable.from_json(known[decision.record.node].to_json())
                verdict = replay(decision, graph, table)
                assert verdict.agrees, verdict.differences


def test_repaired_packets_agree_and_say_so() -> None:
    graph = plain_links(6, RING_OF_SIX)
    network = VirtualNetwork.of(graph, all_tables(graph), random.Random(0))
    connection = Connection(7, 1, 3, SHORTEST)
    traced(graph, network, connection)
    network.engines[2, 7].neighbour_down(3)
    trace = traced(graph, network, connection)[-1]
    verdicts = [replay(each, graph, network.tables[each.record.node]) for each in decisions(trace)]
    assert all(verdict.agrees for verdict in verdicts)
    assert any("repaired" in verdict.note for verdict in verdicts)


def test_every_kind_of_difference_is_told() -> None:
    graph = plain_links(6, RING_OF_SIX)
    known = all_tables(graph, 7)
    network = VirtualNetwork.of(graph, known, random.Random(0))
    first, relay, *_, last = decisions(traced(graph, network, Connection(7, 1, 3, SHORTEST))[0])

    def differences(decision: Decision, graph: Topology = graph, **record: int) -> str:
        other = Decision(decision.header, changed(decision.record, **record), decision.next_node)
        return " ".join(replay(other, graph, known[decision.record.node]).differences)

    assert differences(relay) == ""
    assert "the record has 6, not 7" in differences(relay, table_version=6)
    assert "egress: interface 1, the table allows 2" in differences(relay, egress_interface=1)
    assert "n3 carried it, the link leads to n1" in differences(relay, egress_interface=1)
    assert "not the application's" in differences(last, egress_interface=1)
    assert "the record is of 5, the table of 1" in differences(first, node=5)
    cut = graph.without({1})
    assert "entry: the table has [1, [1]" in differences(relay, cut)
    assert compute_table(cut, 2, 7).lookup(3, SHORTEST)[0].node == 1
