"""Topologies for tests: random ones, a large planar one, and the Topology Zoo where it is at hand.

Owns: their making, and which of them are the sample and which the exhaustive set. May import:
fabric.routing, networkx.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import networkx as nx

from fabric.routing.definitions import Definition
from fabric.routing.topology import Link, Node, Topology

ZOO = Path(__file__).resolve().parents[3] / "shared" / "topologies"
"""Topology Zoo files beside the repository; tests do without where there are none."""
SAMPLE = tuple(f"random-{seed}" for seed in range(12))
"""Looked at by ``make check``."""
EXHAUSTIVE = tuple(f"random-{seed}" for seed in range(500))
ZOO_NAMES = tuple(sorted(path.stem for path in ZOO.glob("*.graphml")))
KDL_NODES, KDL_LINKS = 754, 895
"""As large as the largest graph of the Topology Zoo."""

# Few distinct values, so that ties (equal-cost sets, equal bottlenecks) are common.
BANDWIDTHS = (0, 10_000_000, 100_000_000, 100_000_000, 1_000_000_000)
LOSSES = (0.0, 0.0, 0.001, 0.01, 0.2)
COLOURS = ("red", "blue", "green")
OWN = (
    Definition(128, "coloured", metric="latency", include_any=("red", "blue")),
    Definition(129, "clean", metric="hops", exclude_any=("green",), exclude_tags=("avoid",)),
    Definition(130, "wide-eu", "widest", exclude_regions=("us",), maximum_loss=0.1),
    Definition(131, "in-time", "bounded", bound_latency_us=60_000, bound_jitter_us=3_000),
    Definition(132, "thin", metric="bandwidth", exclude_hosts=(2,)),
    Definition(133, "apart", "disjoint", "latency", exclude_regions=("us",)),
    Definition(134, "thirds", "disperse", paths=3, share=0.34),
    Definition(135, "by-two", "source", via=(2,)),
    Definition(136, "idle-first", "deflect", "latency", include_all=("red",)),
)
"""Protocols of the network's own, with every kind of constraint."""


@cache
def topology(name: str) -> Topology:
    """``random-SEED``, ``planar``, or the name of a Zoo file."""
    if name.startswith("random-"):
        return random_topology(int(name.partition("-")[2]))
    if name == "planar":
        return planar_topology(KDL_NODES, KDL_LINKS, 1)
    graph = nx.read_graphml(ZOO / f"{name}.graphml")
    numbers = {node: at for at, node in enumerate(graph, 1)}
    edges = [(numbers[a], numbers[b]) for a, b in graph.edges() if a != b]
    return attributed(len(numbers), edges, random.Random(name), varied=True)


def random_topology(seed: int) -> Topology:
    """Connected or not, sparse or dense, some with many ties, some with none, parallel links."""
    rng = random.Random(seed)
    count = rng.randrange(2, 14)
    shape = nx.gnm_random_graph(count, rng.randrange(count - 1, 2 * count + 2), seed=seed)
    edges = [(a + 1, b + 1) for a, b in shape.edges]
    if edges and seed % 3 == 0:
        edges += rng.choices(edges, k=2)
    own = OWN if seed % 3 == 0 else ()
    return replace(attributed(count, edges, rng, varied=seed % 2 == 0), protocols=own)


def attributed(
    count: int, edges: Iterable[tuple[int, int]], rng: random.Random, *, varied: bool
) -> Topology:
    """Nodes 1 … count with links of random attributes; ``varied``: hardly any two alike."""
    interfaces = dict.fromkeys(range(1, count + 1), 0)
    links = []
    for number, edge in enumerate(edges):
        a, b = rng.sample(edge, 2)
        for end in (a, b):
            interfaces[end] += 1
        at = f"172.{31 + (number >> 15)}.{number >> 7 & 255}"
        links.append(
            Link(
                a,
                b,
                cost=rng.randrange(1, 1000) if varied else rng.choice((1, 1, 2)),
                latency_us=rng.randrange(0, 50_000) if varied else rng.choice((0, 0, 1000)),
                bandwidth_bps=rng.choice(BANDWIDTHS) if seldom(rng) else rng.randrange(1, 10**9),
                loss=rng.random() * 0.5 if varied else rng.choice(LOSSES),
                jitter_us=rng.choice((0, 100, 2000)),
                affinities=tuple(colour for colour in COLOURS if rng.random() < 0.5),
                a_interface=interfaces[a],
                b_interface=interfaces[b],
                a_address=f"{at}.{number % 128 * 2}",
                b_address=f"{at}.{number % 128 * 2 + 1}",
            )
        )
    nodes = tuple(
        Node(
            n,
            f"n{n}",
            tags=("avoid",) if rng.random() < 0.1 else (),
            region=rng.choice(("", "eu", "us")),
            load=rng.choice((0.0, 0.1, 0.5, 0.9)),
        )
        for n in interfaces
    )
    return Topology(nodes, tuple(links))


def seldom(rng: random.Random) -> bool:
    """Whether to take one of the few usual values rather than any."""
    return rng.random() < 0.8


def planar_topology(count: int, edges: int, seed: int) -> Topology:
    """Points on a square joined to near ones, as cables are: sparse, deep, connected."""
    rng = random.Random(seed)
    points = [(rng.random(), rng.random()) for _ in range(count)]
    graph = nx.Graph()
    for a in range(count):
        near = sorted(range(count), key=lambda b: math.dist(points[a], points[b]))[1:9]
        graph.add_weighted_edges_from((a, b, math.dist(points[a], points[b])) for b in near)
    parts = [sorted(part) for part in nx.connected_components(graph)]
    graph.add_weighted_edges_from(
        (a[0], b[0], math.dist(points[a[0]], points[b[0]])) for a, b in pairwise(parts)
    )
    chosen = set(nx.minimum_spanning_edges(graph, data=False))
    for edge in sorted(graph.edges, key=lambda edge: graph.edges[edge]["weight"]):
        if len(chosen) >= edges:
            break
        if edge not in chosen and edge[::-1] not in chosen and rng.random() < 0.35:
            chosen.add(edge)
    found = attributed(count, [(a + 1, b + 1) for a, b in sorted(chosen)], rng, varied=False)
    found = replace(found, nodes=tuple(replace(node, tags=()) for node in found.nodes))
    lengths = [math.dist(points[link.a - 1], points[link.b - 1]) for link in found.links]
    return found.changed(
        {
            at: Link(
                **{
                    **link.__dict__,
                    "cost": 1 + int(length * 1e4),
                    "latency_us": 1 + int(length * 5e4),
                    "bandwidth_bps": rng.choice((10**8, 10**9, 10**10, 10**11)),
                }
            )
            for at, (link, length) in enumerate(zip(found.links, lengths, strict=True))
        }
    )
