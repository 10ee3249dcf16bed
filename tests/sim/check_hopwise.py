"""Checks of protocols whose packets are sent on hop by hop.

Owns: those checks. May import: fabric.routing, networkx.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from graphlib import TopologicalSorter

import networkx as nx

from fabric.routing.definitions import Definition
from fabric.routing.topology import Topology
from tests.sim import reference
from tests.sim.walk import Tables


def plain(topology: Topology, *calculations: str) -> Iterator[Definition]:
    """The protocols that are forwarded hop by hop, or those of some calculations."""
    for definition in topology.definitions.values():
        if definition.plain and (not calculations or definition.calculation in calculations):
            yield definition


def reaches_all_without_loops(topology: Topology, tables: Tables) -> None:
    """Exactly the reachable have an entry; all next hops together form no cycle, and end there."""
    goals = reference.goals(topology)
    for definition in plain(topology):
        within = reference.distances(topology, definition)
        for node, table in tables.items():
            reached = {goal for goal in goals if table.lookup(goal, definition.id)}
            assert reached == set(within[node]) & set(goals) - {node}, (definition.name, node)
        for goal in goals:
            left = {
                node: {hop.node for hop in table.lookup(goal, definition.id)}
                for node, table in tables.items()
                if table.lookup(goal, definition.id)
            }
            ends = set().union(*left.values()) - left.keys()
            assert ends <= {goal}, (definition.name, goal)
            TopologicalSorter(left).prepare()  # raises CycleError


def sums_are_least(topology: Topology, tables: Tables) -> None:
    """Metric and the whole set of equal next hops are those of shortest paths."""
    goals = set(reference.goals(topology))
    for definition in plain(topology, "spf"):
        within = reference.distances(topology, definition)
        carries = {n.id: reference.may_carry(definition, n) for n in topology.nodes}
        for node, table in tables.items():
            ends = topology.neighbours(node)
            for goal in set(within[node]) & goals - {node}:
                hops = table.lookup(goal, definition.id)
                total = within[node][goal]
                assert {h.metric for h in hops} == {reference.metric(definition, total)}
                best = [
                    end.interface
                    for end in ends
                    if reference.may_use(definition, end.link)
                    and (carries[end.node] or end.node == goal)
                    and reference.weight(definition, end.link)
                    + within[end.node].get(goal, float("inf"))
                    == total
                ]
                assert [hop.interface for hop in hops] == best, (definition.name, node, goal)


def bottlenecks_are_largest(topology: Topology, tables: Tables) -> None:
    """On a maximum spanning tree the path between two nodes has the largest bottleneck there is;
    among links that wide, the next hops are those of the least sum."""
    for definition in plain(topology, "widest"):
        for node, goal in reference.pairs(topology, 8):
            graph = reference.graph(topology, definition, node, goal)
            hops = tables[node].lookup(goal, definition.id)
            tree = nx.maximum_spanning_tree(graph, weight="width")
            if not nx.has_path(tree, node, goal):
                assert not hops
                continue
            walk = nx.shortest_path(tree, node, goal)
            width = min(
                max(edge["width"] for edge in tree[a][b].values())
                for a, b in itertools.pairwise(walk)
            )
            assert {hop.metric or 2**63 for hop in hops} == {width}
            wide = nx.MultiGraph(
                (a, b, data) for a, b, data in graph.edges(data=True) if data["width"] >= width
            )
            left = nx.single_source_dijkstra_path_length(wide, goal)
            best = [
                end.interface
                for end in topology.neighbours(node)
                if reference.may_use(definition, end.link)
                and (end.link.bandwidth_bps or 2**63) >= width
                and reference.weight(definition, end.link) + left.get(end.node, float("inf"))
                == left[node]
            ]
            assert [hop.interface for hop in hops] == best


def promised_bottlenecks_are_kept(topology: Topology, tables: Tables) -> None:
    """Whatever equal next hop every host picks, no link on the way is narrower than promised."""
    width = {
        (node, end.interface): end.link.bandwidth_bps or 2**63
        for node in tables
        for end in topology.neighbours(node)
    }
    for definition in plain(topology, "widest"):
        for start, goal in reference.pairs(topology):
            first = tables[start].lookup(goal, definition.id)
            promised = (first[0].metric or 2**63) if first else 0
            pending, seen = [start] if first else [], set[int]()
            while pending:
                node = pending.pop()
                if node in seen or node == goal:
                    continue
                seen.add(node)
                for hop in tables[node].lookup(goal, definition.id):
                    assert width[node, hop.interface] >= promised
                    pending.append(hop.node)


def deflection_comes_nearer(topology: Topology, tables: Tables) -> None:
    """Every next hop is nearer, and none that is nearer is less busy."""
    load = {node.id: int(node.load * 8) for node in topology.nodes}
    goals = set(reference.goals(topology))
    for definition in plain(topology, "deflect"):
        within = reference.distances(topology, definition)
        carries = {n.id: reference.may_carry(definition, n) for n in topology.nodes}
        for node, table in tables.items():
            for goal in set(within[node]) & goals - {node}:
                nearer = [
                    end.node
                    for end in topology.neighbours(node)
                    if reference.may_use(definition, end.link)
                    and within[end.node].get(goal, float("inf")) < within[node][goal]
                    and (carries[end.node] or end.node == goal)
                ]
                least = min(load[each] if each != goal else 0 for each in nearer)
                for hop in table.lookup(goal, definition.id):
                    assert hop.node in nearer
                    assert (load[hop.node] if hop.node != goal else 0) == least
