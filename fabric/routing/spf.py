"""Shortest and widest paths from one node.

Owns: the graph searches. May import: routing.graph. Knows nothing of protocols.

The first hops of all equally good paths are carried along as a bit set over the root's own links
(bit i = its i-th link), so that one search yields the complete equal-cost sets for every
destination.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from fabric.routing.graph import FAR, Arc, Tree

UNLIMITED = 1 << 63
"""Stands for the bandwidth of a link without limit: above everything that can be configured."""

First = tuple[int, int, int]
"""(far node, weight, position) of one of the root's links."""


def shortest_paths(
    arcs: Sequence[Sequence[Arc]], root: int, first: Sequence[First], banned: int = -1
) -> Tree:
    """Dijkstra over positive weights. ``first`` takes the place of the root's arcs; ``banned`` is a
    node not to be touched.

    Weights must be positive everywhere: then first hops are complete once a node is settled.
    """
    distance, hops, parent = [FAR] * len(arcs), [0] * len(arcs), [-1] * len(arcs)
    if banned >= 0:
        distance[banned] = -1  # nothing is nearer, nothing is as near
    distance[root] = 0
    heap: list[Arc] = []
    push, pop = heapq.heappush, heapq.heappop
    for far, weight, position in first:
        if weight < distance[far]:
            distance[far], hops[far], parent[far] = weight, 1 << position, root
            push(heap, (weight, far))
        elif weight == distance[far]:
            hops[far] |= 1 << position
    while heap:
        reached, node = pop(heap)
        if reached > distance[node]:
            continue
        by = hops[node]
        for far, weight in arcs[node]:
            total = reached + weight
            known = distance[far]
            if total < known:
                distance[far], hops[far], parent[far] = total, by, node
                push(heap, (total, far))
            elif total == known:
                hops[far] |= by
                if node < parent[far]:  # noqa: PLR1730 - one path, in whatever order; min() is slow
                    parent[far] = node
    if banned >= 0:
        distance[banned] = FAR
    return Tree(distance, hops, parent)


def widest_paths(
    arcs: Sequence[Sequence[Arc]], root: int, first: Sequence[First], banned: int = -1
) -> list[int]:
    """The largest bottleneck per node; the ``weight`` of an arc is its bandwidth.

    0 means out of reach; the root's own is UNLIMITED.
    """
    width = [0] * len(arcs)
    width[root] = UNLIMITED
    if banned >= 0:
        width[banned] = UNLIMITED
    heap: list[Arc] = []
    push, pop = heapq.heappush, heapq.heappop
    for far, bandwidth, _ in first:
        if bandwidth > width[far]:
            width[far] = bandwidth
            push(heap, (-bandwidth, far))
    while heap:
        negated, node = pop(heap)
        if -negated < width[node]:
            continue
        for far, bandwidth in arcs[node]:
            least = bandwidth if bandwidth < -negated else -negated
            if least > width[far]:
                width[far] = least
                push(heap, (-least, far))
    if banned >= 0:
        width[banned] = 0
    return width
