"""Checks of what tables say for the time after a failure.

Owns: those checks. May import: fabric.routing, fabric.wire, networkx.
"""

from __future__ import annotations

import networkx as nx

from fabric.routing.definitions import Definition
from fabric.routing.topology import Topology
from fabric.wire.packet import MAX_PATH
from tests.sim import reference
from tests.sim.check_hopwise import plain
from tests.sim.walk import Failure, Tables, outcomes

MOST_FAILURES = 25
"""Links, and hosts, of one graph that fail in turn."""


def passed(tables: Tables, start: int, goal: int, protocol: int) -> set[int]:
    """Every host a packet may meet on its way from ``start``, both ends included."""
    pending, seen = [start], set[int]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            if node != goal:
                pending += [hop.node for hop in tables[node].lookup(goal, protocol)]
    return seen


def alternates_never_come_back(topology: Topology, tables: Tables) -> None:
    """No way of a loop-free alternate returns, or meets the host it protects against; an explicit
    one meets no host twice and uses the dead link (or host) nowhere."""
    for definition in plain(topology):
        for node, goal in reference.pairs(topology):
            table = tables[node]
            found = table.alternate(goal, definition.id)
            hops = table.lookup(goal, definition.id)
            if found is None:
                continue
            dead = {hop.node for hop in hops}
            assert len(dead) == 1, "an entry with several next hosts is its own alternate"
            assert found.hop.interface not in {hop.interface for hop in hops}
            nodes = set(found.nodes) or passed(tables, found.hop.node, goal, definition.id)
            assert node not in nodes
            assert len(found.nodes) in (0, len(nodes))
            if found.protects == "node":
                assert not dead & nodes


def loop_free_alternates_are_found(topology: Topology, tables: Tables) -> None:
    """Where the packet has to carry its way, or there is none at all, no neighbour would have
    done. For sums, "no way of N leads through S" is exactly inequality 1 of RFC 5286."""
    for definition in plain(topology, "spf"):
        carries = {n.id: reference.may_carry(definition, n) for n in topology.nodes}
        for node, goal in reference.pairs(topology):
            hops = tables[node].lookup(goal, definition.id)
            found = tables[node].alternate(goal, definition.id)
            if len({hop.node for hop in hops}) != 1 or (found and not found.nodes):
                continue
            for end in topology.neighbours(node):
                used = end.interface in {hop.interface for hop in hops}
                if used or not reference.may_use(definition, end.link):
                    continue
                if not tables[end.node].lookup(goal, definition.id) and end.node != goal:
                    continue
                if not carries[end.node] and end.node != goal:
                    continue
                ways = passed(tables, end.node, goal, definition.id)
                if found and found.protects == "node":
                    assert node in ways or hops[0].node in ways
                else:
                    assert node in ways


def single_failures_are_survived(topology: Topology, tables: Tables) -> None:
    """After the death of any one link or host, the hosts beside it still reach whatever the
    protocol could reach without it, and nobody else has to know.

    A packet from farther away arrives at such a host as if it began there.
    """
    few = [d for d in plain(topology) if d.id in (0, 2, 8, 10, 128, 130)]
    numbers = range(len(topology.links))
    failures = [Failure(topology, links=frozenset({at})) for at in numbers[:MOST_FAILURES]]
    failures += [
        Failure(topology, nodes=frozenset({node.id})) for node in topology.nodes[:MOST_FAILURES]
    ]
    for at, failure in enumerate(failures):
        # Turn by turn: every protocol meets many failures, no failure meets every protocol.
        for definition in few[at % 3 :: 3]:
            _survives(topology, tables, definition, failure)


def _survives(topology: Topology, tables: Tables, definition: Definition, failure: Failure) -> None:
    ways: dict[int, list[int]] = {node: [] for node in tables}
    for at, link in enumerate(topology.links):
        whole = at not in failure.links and not {link.a, link.b} & failure.nodes
        if whole and reference.may_use(definition, link):
            ways[link.a].append(link.b)
            ways[link.b].append(link.a)
    beside = {
        end
        for at, link in enumerate(topology.links)
        if at in failure.links or {link.a, link.b} & failure.nodes
        for end in (link.a, link.b)
    }
    carriers = {n.id for n in topology.nodes if reference.may_carry(definition, n)}
    # The first relay of a host that carries for nobody may have no way but back through it.
    for node in (beside & carriers) - failure.nodes:
        reached = _reached(ways, carriers, node)
        for goal in set(reference.goals(topology)) - failure.nodes - {node}:
            expected = {"arrived"} if goal in reached else {"lost"}
            found = outcomes(tables, node, goal, definition.id, failure)
            if found != expected and len(tables) > MAX_PATH:
                _too_long(topology, definition, failure, (node, goal))
                continue
            assert found == expected, (definition.name, node, goal, failure.links, failure.nodes)


def _reached(ways: dict[int, list[int]], carriers: set[int], start: int) -> set[int]:
    pending, seen = [start], set[int]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += ways[node] if node in carriers else ()
    return seen


def _too_long(
    topology: Topology, definition: Definition, failure: Failure, ends: tuple[int, int]
) -> None:
    """Only a way too long for a packet may go unused."""
    if definition.calculation == "widest":
        return  # there the best way may be longer than the cheapest
    dead = failure.links | {
        at for at, link in enumerate(topology.links) if {link.a, link.b} & failure.nodes
    }
    left = reference.graph(topology.without(dead), definition, *ends)
    assert len(nx.dijkstra_path(left, *ends)) - 1 > MAX_PATH
