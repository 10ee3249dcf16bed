"""How long tables take: one change in a network of 754 hosts, all tables of one host.

Run as ``python -m tests.bench.tables [CHANGES] [GRAPHML]``; prints one JSON object: raw series in
ms of CPU time, percentiles of their medians, and the ratio to networkx on the same graph in the
same run.
Owns: the measurement. May import: fabric.routing, fabric.lab.graphml, fabric.host.promptness,
tests.sim, networkx.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import networkx as nx

from fabric.host.promptness import undisturbed
from fabric.lab.graphml import read_graphml
from fabric.routing.definitions import PROTOCOLS
from fabric.routing.needs import DISJOINT, DISPERSE
from fabric.routing.protocols import compute_table
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from tests.sim.graphs import topology

KINDS = ("latency", "cost", "down", "up")
CHANGES = (*KINDS, *(f"own {kind}" for kind in KINDS))
"""Of links anywhere, and of each link of the host itself."""
ON_DEMAND = (DISJOINT, DISPERSE)
"""Protocols whose rows nobody needs but those of connections that use them."""
REPEATS = 5
PASSES = 3
"""Every change is made in each; what it costs is the median. A moment in which the machine itself
is slow, which no single value can be told from, is not the change's."""


def around(graph: Topology, kind: str, at: int) -> tuple[Topology, Topology]:
    """The network before and after one link gets slower, dearer, goes or comes back."""
    link = graph.links[at]
    if kind == "latency":
        return graph, graph.changed({at: replace(link, latency_us=link.latency_us * 2)})
    if kind == "cost":
        return graph, graph.changed({at: replace(link, cost=link.cost * 2)})
    without = graph.without({at})
    return (graph, without) if kind == "down" else (without, graph)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(ms of CPU time until the result is there, result). The interpreter looks for garbage
    afterwards, as it does in an orchestrator when a table is installed."""
    with undisturbed():
        begin = time.process_time()
        result = work()
        spent = time.process_time() - begin
    return spent * 1e3, result


def measure(graph: Topology, node: int, count: int, rng: random.Random) -> dict[str, list[float]]:
    """Series for one host: what a change costs until the last row of every table is there."""
    eager = {n: d for n, d in PROTOCOLS.items() if n not in ON_DEMAND}
    series: dict[str, list[float]] = {"from scratch": []}
    own = [at for at, link in enumerate(graph.links) if node in (link.a, link.b)]
    for kind in KINDS:
        any_links = [rng.randrange(len(graph.links)) for _ in range(count)]
        for name, links in ((kind, any_links), (f"own {kind}", own)):
            series[name] = []
            for at in links:
                before, after = around(graph, kind, at)
                spent, table = timed(partial(whole, graph, node, eager, None))
                series["from scratch"].append(spent)
                if before is not graph:
                    table = whole(before, node, eager, table)
                spent, _ = timed(partial(whole, after, node, eager, table))
                series[name].append(spent)
    pair = {DISJOINT: PROTOCOLS[DISJOINT]}
    series["disjoint, all rows"] = [
        timed(partial(whole, graph, node, pair, None))[0] for _ in range(REPEATS)
    ]
    table = compute_table(graph, node, 0, {DISPERSE: PROTOCOLS[DISPERSE]})
    goals = rng.sample([n.id for n in graph.nodes if n.id != node], min(20, len(graph.nodes) - 1))
    series["disperse, one row"] = [
        timed(partial(table.lookup, goal, DISPERSE))[0] for goal in goals
    ]
    return series


def whole(
    graph: Topology, node: int, protocols: Any, previous: ForwardingTable | None
) -> ForwardingTable:
    """A table with all its rows."""
    table = compute_table(graph, node, 1, protocols, previous)
    table.to_json()
    return table


def reference(graph: Topology, node: int) -> list[float]:
    """networkx: distances and paths from one node, by one metric."""
    twin = nx.Graph()
    twin.add_weighted_edges_from((link.a, link.b, link.cost) for link in graph.links)
    return [timed(partial(nx.single_source_dijkstra, twin, node))[0] for _ in range(REPEATS)]


def percentiles(series: list[float]) -> dict[str, float]:
    """p50, p90 and the largest."""
    ordered = sorted(series)
    picked = {"p50": 0.5, "p90": 0.9, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[round(part * last)], 2) for name, part in picked.items()}


def medians(passes: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Of each change, by kind."""
    return {
        kind: [median(each) for each in zip(*(one[kind] for one in passes), strict=True)]
        for kind in passes[0]
    }


def run(name: str, count: int) -> dict[str, Any]:
    """The whole measurement: a host with many links, and two usual ones."""
    graph = read_graphml(name).topology if name.endswith(".graphml") else topology(name)
    degree = Counter(end for link in graph.links for end in (link.a, link.b))
    usual = random.Random(1).sample(sorted(degree), 2)
    hosts = [max(degree, key=lambda node: degree[node]), *usual]
    gc.collect()
    gc.freeze()  # what was there before is not this measurement's to look through
    series: dict[int, list[dict[str, list[float]]]] = {node: [] for node in hosts}
    twins: dict[int, list[float]] = {node: [] for node in hosts}
    for _ in range(PASSES):
        for node in hosts:
            series[node].append(measure(graph, node, count, random.Random(node)))
            twins[node] += reference(graph, node)
    return {
        "graph": name,
        "nodes": len(graph.nodes),
        "links": len(graph.links),
        "protocols": [d.name for n, d in PROTOCOLS.items() if n not in ON_DEMAND],
        "any change": percentiles([spent for node in hosts for spent in changes(series[node])]),
        "any single value": percentiles(
            [spent for node in hosts for one in series[node] for spent in changes([one])]
        ),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "hosts": [of_host(node, degree[node], series[node], twins[node]) for node in series],
    }


def changes(passes: list[dict[str, list[float]]]) -> list[float]:
    """What each change of whatever kind costs."""
    middle = medians(passes)
    return [spent for kind in CHANGES for spent in middle[kind]]


def of_host(
    node: int, links: int, passes: list[dict[str, list[float]]], twin: list[float]
) -> dict[str, Any]:
    """What was found for one host."""
    searching = percentiles(twin)
    return {
        "node": node,
        "links": links,
        "percentiles": {what: percentiles(each) for what, each in medians(passes).items()},
        "networkx_one_search_ms": searching,
        "ratio": round(percentiles(changes(passes))["p50"] / searching["p50"], 2),
        "passes": passes,
        "networkx": twin,
    }


if __name__ == "__main__":
    count, graph = [*sys.argv[1:], *("15", "planar")[len(sys.argv) - 1 :]]
    print(json.dumps(run(graph, int(count)), indent=1))
