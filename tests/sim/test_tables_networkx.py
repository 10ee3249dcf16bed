"""Tables of every host of random graphs, against networkx and against each other."""

from __future__ import annotations

import itertools
import random

import networkx as nx
import pytest

from fabric.routing.needs import LOW_LATENCY, RELIABLE, SHORTEST, WIDE
from fabric.routing.protocols import PROTOCOLS, compute_table, loss_weight
from fabric.routing.spf import UNLIMITED, bandwidth_of
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Link, Node, Topology

SEEDS = range(40)
# Few distinct values, so that ties (equal-cost sets, equal bottlenecks) are common.
BANDWIDTHS = (0, 10_000_000, 100_000_000, 100_000_000, 1_000_000_000)
LOSSES = (0.0, 0.0, 0.001, 0.01, 0.2)


def random_topology(seed: int) -> Topology:
    """Connected or not, sparse or dense, some with many ties, some with none, parallel links."""
    rng = random.Random(seed)
    count = rng.randrange(2, 16)
    shape = nx.gnm_random_graph(count, rng.randrange(count - 1, 2 * count + 2), seed=seed)
    edges = list(shape.edges)
    if edges and seed % 3 == 0:
        edges += rng.choices(edges, k=2)
    varied = seed % 2 == 0
    interfaces = dict.fromkeys(range(1, count + 1), 0)
    links = []
    for number, (one, other) in enumerate(edges):
        a, b = rng.sample([one + 1, other + 1], 2)
        for end in (a, b):
            interfaces[end] += 1
        links.append(
            Link(
                a,
                b,
                cost=rng.randrange(1, 1000) if varied else rng.choice((1, 1, 2)),
                latency_us=rng.randrange(0, 50_000) if varied else rng.choice((0, 0, 1000)),
                bandwidth_bps=rng.randrange(1, 10**9) if varied else rng.choice(BANDWIDTHS),
                loss=rng.random() * 0.5 if varied else rng.choice(LOSSES),
                a_interface=interfaces[a],
                b_interface=interfaces[b],
                a_address=f"172.31.{number // 128}.{number % 128 * 2}",
                b_address=f"172.31.{number // 128}.{number % 128 * 2 + 1}",
            )
        )
    nodes = tuple(Node(n, f"n{n}") for n in interfaces)
    return Topology(nodes, tuple(links))


def weighted(topology: Topology, protocol: int, least: int = 0) -> nx.MultiGraph:
    """The graph as networkx sees it, only with links of at least ``least`` bit/s."""
    graph = nx.MultiGraph()
    graph.add_nodes_from(node.id for node in topology.nodes)
    for link in topology.links:
        weight = {
            SHORTEST: link.cost,
            LOW_LATENCY: (link.latency_us << 48) + link.cost,
            RELIABLE: (loss_weight(link) << 48) + link.cost,
            WIDE: link.cost,
        }[protocol]
        if bandwidth_of(link) >= least:
            graph.add_edge(link.a, link.b, weight=weight, width=bandwidth_of(link))
    return graph


def tables(topology: Topology) -> dict[int, ForwardingTable]:
    return {node.id: compute_table(topology, node.id, 1) for node in topology.nodes}


def cheapest_wide_hops(topology: Topology, node: int, goal: int, width: int) -> list[int]:
    """Interfaces of ``node`` on a cheapest path to ``goal`` over links of at least ``width``."""
    graph = weighted(topology, WIDE, least=width)
    distance = nx.single_source_dijkstra_path_length(graph, goal)
    return [
        end.interface
        for end in topology.neighbours(node)
        if bandwidth_of(end.link) >= width
        and end.node in distance
        and end.link.cost + distance[end.node] == distance[node]
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("protocol", [SHORTEST, LOW_LATENCY, RELIABLE])
def test_additive_protocols_agree_with_dijkstra(protocol: int, seed: int) -> None:
    topology = random_topology(seed)
    graph = weighted(topology, protocol)
    for node, table in tables(topology).items():
        distance = nx.single_source_dijkstra_path_length(graph, node)
        reached = {goal for goal, number in table.entries if number == protocol}
        assert reached == set(distance) - {node}
        for goal in reached:
            hops = table.lookup(goal, protocol)
            metric = distance[goal] if protocol == SHORTEST else distance[goal] >> 48
            assert {hop.metric for hop in hops} == {metric}
            for hop in hops:
                rest = nx.dijkstra_path_length(graph, hop.node, goal)
                step = min(edge["weight"] for edge in graph[node][hop.node].values())
                assert step + rest == distance[goal]
            assert {hop.node for hop in hops} == {
                near
                for near in graph[node]
                if min(edge["weight"] for edge in graph[node][near].values())
                + nx.dijkstra_path_length(graph, near, goal)
                == distance[goal]
            }


@pytest.mark.parametrize("seed", SEEDS)
def test_wide_finds_the_largest_bottleneck_then_the_least_cost(seed: int) -> None:
    """On a maximum spanning tree the path between two nodes has the largest bottleneck there is."""
    topology = random_topology(seed)
    tree = nx.maximum_spanning_tree(weighted(topology, WIDE), weight="width")
    for node, table in tables(topology).items():
        for goal in {goal for goal, number in table.entries if number == WIDE}:
            walk = nx.shortest_path(tree, node, goal)
            width = min(
                max(edge["width"] for edge in tree[a][b].values())
                for a, b in itertools.pairwise(walk)
            )
            hops = table.lookup(goal, WIDE)
            assert {hop.metric or UNLIMITED for hop in hops} == {width}
            expected = cheapest_wide_hops(topology, node, goal, width)
            assert [hop.interface for hop in hops] == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_no_choice_among_equals_can_loop(protocol: int, seed: int) -> None:
    """The graph of *all* next hops towards a destination has no cycle, and ends there."""
    topology = random_topology(seed)
    known = tables(topology)
    for goal in known:
        forwarding = nx.DiGraph()
        forwarding.add_node(goal)
        for node, table in known.items():
            for hop in table.lookup(goal, protocol):
                forwarding.add_edge(node, hop.node)
        assert nx.is_directed_acyclic_graph(forwarding)
        assert {node for node, degree in forwarding.out_degree() if degree == 0} == {goal}


@pytest.mark.parametrize("seed", SEEDS)
def test_wide_paths_really_have_the_promised_bottleneck(seed: int) -> None:
    """Whatever equal next hop every host picks, no link on the way is narrower than promised."""
    topology = random_topology(seed)
    known = tables(topology)
    for start, goal in itertools.permutations(known, 2):
        first = known[start].lookup(goal, WIDE)
        promised = (first[0].metric or UNLIMITED) if first else 0
        pending, seen = [start] if first else [], set[int]()
        while pending:
            node = pending.pop()
            if node in seen or node == goal:
                continue
            seen.add(node)
            link_of = {end.interface: end.link for end in topology.neighbours(node)}
            for hop in known[node].lookup(goal, WIDE):
                assert bandwidth_of(link_of[hop.interface]) >= promised
                pending.append(hop.node)


def test_the_order_of_the_file_does_not_matter() -> None:
    topology = random_topology(4)
    shuffled = Topology(topology.nodes[::-1], topology.links[::-1])
    assert tables(shuffled) == tables(topology)
