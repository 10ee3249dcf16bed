"""Shortest and widest paths from one node.

Owns: the two graph searches. May import: routing.topology. Knows nothing of protocols.

Both searches start at the node that wants a table. The first hops of all equally good paths are
carried along as a bit set over the node's own links (bit i = its i-th neighbour), so that one
search yields the complete equal-cost sets for every destination.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from fabric.routing.topology import Link, Topology

UNLIMITED = 1 << 63
"""Stands for the bandwidth of a link without limit: above everything that can be configured."""

Weight = Callable[[Link], int | None]
"""What a link adds to a path, always > 0; None: the link may not be used."""


def shortest_paths(topology: Topology, source: int, weight: Weight) -> dict[int, tuple[int, int]]:
    """Dijkstra: destination → (distance, first hops). The source itself is not in the result.

    ``weight`` must be positive everywhere: then first hops are complete once a node is settled.
    """
    adjacency = topology.adjacency
    best: dict[int, int] = {source: 0}
    first: dict[int, int] = {source: 0}
    settled: dict[int, tuple[int, int]] = {}
    heap = [(0, source)]
    while heap:
        distance, node = heapq.heappop(heap)
        if node in settled:
            continue
        settled[node] = (distance, first[node])
        for position, end in enumerate(adjacency[node]):
            added = weight(end.link)
            if added is None or end.node in settled:
                continue
            total = distance + added
            hops = 1 << position if node == source else first[node]
            known = best.get(end.node)
            if known is None or total < known:
                best[end.node] = total
                first[end.node] = hops
                heapq.heappush(heap, (total, end.node))
            elif total == known:
                first[end.node] |= hops
    del settled[source]
    return settled


def bandwidth_of(link: Link) -> int:
    """Bits per second for comparison: no limit counts as UNLIMITED."""
    return link.bandwidth_bps or UNLIMITED


def widths(topology: Topology, source: int) -> dict[int, int]:
    """Destination → the largest bottleneck bandwidth of any path to it (UNLIMITED at most)."""
    adjacency = topology.adjacency
    settled: dict[int, int] = {}
    heap = [(-UNLIMITED, source)]
    while heap:
        negated, node = heapq.heappop(heap)
        if node in settled:
            continue
        settled[node] = -negated
        for end in adjacency[node]:
            if end.node not in settled:
                heapq.heappush(heap, (-min(-negated, bandwidth_of(end.link)), end.node))
    del settled[source]
    return settled
