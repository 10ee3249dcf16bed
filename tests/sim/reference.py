"""What a table should say, found in slower and plainer ways.

Owns: the graph a protocol may use, its weights, distances and flows. May import: fabric.routing,
networkx. Shares no code with what it judges but the words of the definitions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import networkx as nx

from fabric.routing.definitions import Definition
from fabric.routing.topology import Link, Node, Topology

LINK_SHARED, HOST_SHARED = 10**24, 10**18
"""Penalties above every sum of :func:`weight` on test graphs, and of each other."""
ALL_PAIRS = 16
"""Nodes up to which every pair of hosts is looked at."""
SOME_PAIRS = 30
ALL_GOALS = 50
"""Nodes up to which every pair is looked at where a check is cheap."""


def weight(definition: Definition, link: Link) -> int:
    """The metric of one link; ties are broken by cost, far below it."""
    loss = round(-math.log1p(-link.loss) * 10**9)
    width = link.bandwidth_bps or 2**63
    primary = {
        "cost": link.cost,
        "latency": link.latency_us,
        "loss": loss,
        "hops": 1,
        "bandwidth": max(1, 10**12 // width),
    }[definition.metric]
    return primary if definition.metric == "cost" else primary * 10**8 + link.cost


def metric(definition: Definition, total: int) -> int:
    """A sum of weights as a table shows it."""
    return int(total) if definition.metric == "cost" else int(total) // 10**8


def may_use(definition: Definition, link: Link) -> bool:
    """Whether the definition lets a link in."""
    has = set(link.affinities)
    return (
        not has & set(definition.exclude_any)
        and (not definition.include_any or bool(has & set(definition.include_any)))
        and has >= set(definition.include_all)
        and (link.bandwidth_bps or 2**63) >= definition.minimum_bandwidth_bps
        and (not definition.maximum_latency_us or link.latency_us <= definition.maximum_latency_us)
        and (not definition.maximum_loss or link.loss <= definition.maximum_loss)
    )


def may_carry(definition: Definition, node: Node) -> bool:
    """Whether the definition lets a host carry for others."""
    return not (
        node.id in definition.exclude_hosts
        or set(node.tags) & set(definition.exclude_tags)
        or (node.region and node.region in definition.exclude_regions)
    )


def graph(
    topology: Topology, definition: Definition, source: int = 0, goal: int = 0
) -> nx.MultiGraph:
    """The links the definition lets in, among hosts that may carry and the two ends (0: none)."""
    graph = nx.MultiGraph()
    for node in topology.nodes:
        if node.id in (source, goal) or may_carry(definition, node):
            graph.add_node(node.id)
    for link in topology.links:
        if may_use(definition, link) and link.a in graph and link.b in graph:
            width = link.bandwidth_bps or 2**63
            graph.add_edge(link.a, link.b, weight=weight(definition, link), width=width, link=link)
    return graph


def distances(topology: Topology, definition: Definition) -> dict[int, dict[int, int]]:
    """See :func:`all_distances`; several checks of one topology ask for the same."""
    key = (id(topology), definition)
    if key not in _KNOWN:
        if _KNOWN and next(iter(_KNOWN))[0] != id(topology):
            _KNOWN.clear()
        _KNOWN[key] = all_distances(topology, definition)
    return _KNOWN[key]


_KNOWN: dict[tuple[int, Definition], dict[int, dict[int, int]]] = {}


def all_distances(topology: Topology, definition: Definition) -> dict[int, dict[int, int]]:
    """From every host to every other, where only the two ends are exempt from constraints."""
    carried = graph(topology, definition)
    steps: dict[int, list[tuple[int, int]]] = {node.id: [] for node in topology.nodes}
    for link in topology.links:
        if may_use(definition, link):
            steps[link.a].append((link.b, weight(definition, link)))
            steps[link.b].append((link.a, weight(definition, link)))
    inner = {n: nx.single_source_dijkstra_path_length(carried, n) for n in carried}
    found: dict[int, dict[int, int]] = {}
    for source, ways in steps.items():
        # The first and the last step may leave or enter a host that carries for nobody.
        begun = inner.get(source) or {}
        if source not in inner:
            for near, first in ways:
                for far, rest in inner.get(near, {}).items():
                    begun[far] = min(begun.get(far, first + rest), first + rest)
        known = {source: 0} | {far: total for far, total in begun.items() if far != source}
        for goal in set(steps) - set(inner) - {source}:
            ends = [begun[end] + last for end, last in steps[goal] if end in begun]
            ends += [last for end, last in steps[goal] if end == source]
            if ends:
                known[goal] = min(ends)
        found[source] = known
    return found


def links_between(topology: Topology, definition: Definition, one: int, other: int) -> list[Link]:
    """Usable links between two hosts, the best first."""
    found = (
        [link for link in topology.links if {link.a, link.b} == {one, other}]
        if len(topology.links) < 40
        else [e.link for e in topology.neighbours(one) if e.node == other]
    )
    usable = [link for link in found if may_use(definition, link)]
    return sorted(usable, key=lambda link: weight(definition, link))


def pairs(topology: Topology, most: int = SOME_PAIRS) -> Iterator[tuple[int, int]]:
    """(source, goal): all of a small graph, some of a large one."""
    ids = [node.id for node in topology.nodes]
    every = [(a, b) for a in ids for b in ids if a != b]
    if len(ids) > ALL_PAIRS or len(every) > most:
        every = random.Random(len(ids)).sample(every, min(most, len(every)))
    yield from every


def goals(topology: Topology) -> list[int]:
    """Destinations looked at from everywhere: all of a small graph, every eighth of a large one."""
    ids = [node.id for node in topology.nodes]
    return ids if len(ids) <= ALL_GOALS else ids[::8]


def cheapest_flow(
    topology: Topology, definition: Definition, ends: tuple[int, int], paths: int, *, share: bool
) -> tuple[float, float, float] | None:
    """(links shared, hosts shared, weight) of the best ``paths`` paths between two hosts; None when
    there are not as many."""
    source, goal = ends
    plain = graph(topology, definition, source, goal)
    split = nx.MultiDiGraph()
    split.add_node((source, "out"), demand=-paths)
    split.add_node((goal, "in"), demand=paths)
    for node in plain:
        if node not in ends:
            split.add_edge((node, "in"), (node, "out"), capacity=1, weight=0)
            if share:
                split.add_edge((node, "in"), (node, "out"), weight=HOST_SHARED)
    for a, b, data in plain.edges(data=True):
        for one, other in ((a, b), (b, a)):
            if one != goal and other != source:
                w = int(data["weight"])
                split.add_edge((one, "out"), (other, "in"), capacity=1, weight=w)
                if share:
                    split.add_edge((one, "out"), (other, "in"), weight=w + LINK_SHARED)
    try:
        cost, _ = nx.network_simplex(split)
    except nx.NetworkXUnfeasible:
        return None
    return cost // LINK_SHARED, cost % LINK_SHARED // HOST_SHARED, cost % HOST_SHARED
