"""Checks of protocols whose packets carry paths, or go everywhere.

Owns: those checks. May import: fabric.routing, fabric.wire, networkx.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import networkx as nx

from fabric.routing.definitions import Definition
from fabric.routing.needs import DISJOINT
from fabric.routing.topology import Link, Topology
from fabric.wire.packet import MAX_PATH
from tests.sim import reference
from tests.sim.reference import links_between
from tests.sim.walk import Failure, Tables

SMALL = 6
"""Nodes up to which all simple paths can be tried."""
FLOW_PAIRS = 2
WALKED_PAIRS = 12
"""Pairs per graph that networkx finds flows for: its solver is slow."""


def paths_can_be_walked(topology: Topology, tables: Tables) -> None:
    """They lead over usable links and willing hosts, meet no host twice, and cost what is said."""
    carries = {
        (d.id, n.id): reference.may_carry(d, n)
        for d in topology.definitions.values()
        for n in topology.nodes
    }
    for definition in topology.definitions.values():
        if definition.plain or definition.calculation == "flood":
            continue
        for node, goal in reference.pairs(topology, WALKED_PAIRS):
            paths = tables[node].paths(goal, definition.id)
            around = tables[node].alternate(goal, definition.id)
            for path in (*paths, *([around] if around else [])):
                walk = [node, *path.nodes]
                assert path.nodes[0] == path.hop.node
                assert walk[-1] == goal
                assert len(set(walk)) == len(walk) <= MAX_PATH + 1
                assert all(carries[definition.id, each] for each in walk[1:-1])
                links = [
                    links_between(topology, definition, a, b) for a, b in itertools.pairwise(walk)
                ]
                assert all(links)
                total = sum(reference.weight(definition, each[0]) for each in links)
                if path is not around:
                    assert path.hop.metric == reference.metric(definition, total)


def sharing(
    topology: Topology, definition: Definition, node: int, paths: Sequence[Sequence[int]]
) -> tuple[int, int, float]:
    """(links shared, hosts shared, weight) of paths that leave from ``node``."""
    used = Counter(hop for path in paths for hop in itertools.pairwise([node, *path]))
    hosts = Counter(each for path in paths for each in path[:-1])
    shared, total = 0, 0.0
    for (one, other), times in used.items():
        links = links_between(topology, definition, one, other)
        shared += max(0, times - len(links))
        weights = [reference.weight(definition, link) for link in links]
        total += sum((weights + weights[:1] * times)[:times])
    return shared, sum(times - 1 for times in hosts.values()), total


def pairs_share_as_little_as_possible(topology: Topology, tables: Tables) -> None:
    """The fewest common links, then hosts, then the least weight together."""
    for definition in topology.definitions.values():
        if definition.calculation != "disjoint":
            continue
        for node, goal in reference.pairs(topology, FLOW_PAIRS):
            best = reference.cheapest_flow(topology, definition, (node, goal), 2, share=True)
            paths = [path.nodes for path in tables[node].paths(goal, definition.id)]
            assert bool(paths) == (best is not None)
            if best is not None:
                # Two paths that would be the same are written once.
                found = sharing(topology, definition, node, (paths * 2)[:2])
                assert found == best, (definition.name, node, goal, paths)


def pairs_survive_any_link(topology: Topology, tables: Tables) -> None:
    """Between hosts that no single link separates, one of the two paths outlives any link."""
    definition = topology.definitions[DISJOINT]
    for node, goal in reference.pairs(topology, FLOW_PAIRS):
        paths = tables[node].paths(goal, DISJOINT)
        graph = reference.graph(topology, definition)
        for at, link in enumerate(topology.links):
            failure = Failure(topology, links=frozenset({at}))
            key = next(k for k, d in graph[link.a][link.b].items() if d["link"] is link)
            graph.remove_edge(link.a, link.b, key)
            if nx.has_path(graph, node, goal):
                alive = [failure.walkable(tables, node, path.nodes) for path in paths]
                assert any(alive), (node, goal, link)
            graph.add_edge(link.a, link.b, key, link=link)


def dispersed_paths_meet_nowhere(topology: Topology, tables: Tables) -> None:
    """As many as there are without a common host, up to what is asked; the least weight together;
    no entry where there are too few to keep the share."""
    for definition in topology.definitions.values():
        if definition.calculation != "disperse":
            continue
        for node, goal in reference.pairs(topology, FLOW_PAIRS):
            paths = [path.nodes for path in tables[node].paths(goal, definition.id)]
            best, count = None, 0
            for most in range(1, definition.paths + 1):
                more = reference.cheapest_flow(
                    topology, definition, (node, goal), most, share=False
                )
                if more is None:
                    break
                best, count = more, most
            if count < definition.least_paths:
                assert not paths
                continue
            assert len(paths) == count
            assert best is not None
            assert sharing(topology, definition, node, paths) == best
            assert 1 / count <= definition.share + 1e-9


def bounds_are_kept_at_least_cost(topology: Topology, tables: Tables) -> None:
    """Of all simple paths within bounds, one of the least weight; none when there is none."""
    if len(topology.nodes) > SMALL:
        return
    for definition in topology.definitions.values():
        if definition.calculation != "bounded":
            continue
        for node, goal in reference.pairs(topology):
            graph = nx.Graph(reference.graph(topology, definition, node, goal))
            weights = []
            for walk in nx.all_simple_paths(graph, node, goal):
                links = [
                    links_between(topology, definition, a, b)[0]
                    for a, b in itertools.pairwise(walk)
                ]
                if _within(definition, links):
                    weights.append(sum(reference.weight(definition, link) for link in links))
            paths = tables[node].paths(goal, definition.id)
            assert bool(paths) == bool(weights), (definition.name, node, goal)
            if paths:
                metric = reference.metric(definition, min(weights))
                assert paths[0].hop.metric == metric


def _within(definition: Definition, links: Sequence[Link]) -> bool:
    return (definition.bound_latency_us or 10**12) >= sum(link.latency_us for link in links) and (
        definition.bound_jitter_us or 10**12
    ) >= sum(link.jitter_us for link in links)


def floods_know_the_way(topology: Topology, tables: Tables) -> None:
    """A copy through a neighbour needs one hop more than the neighbour, without coming back."""
    for definition in topology.definitions.values():
        if definition.calculation != "flood":
            continue
        for node, goal in reference.pairs(topology, WALKED_PAIRS):
            without = reference.graph(topology, definition)
            without.remove_nodes_from([node])
            hops = {hop.interface: hop for hop in tables[node].lookup(goal, definition.id)}
            for end in topology.neighbours(node):
                if nx.has_path(without, end.node, goal):
                    left = nx.shortest_path_length(without, end.node, goal)
                    assert hops[end.interface].metric == 1 + left
                else:
                    assert end.interface not in hops
