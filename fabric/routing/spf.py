"""Shortest and widest paths from one node, and the shortest again when something went away.

Owns: the graph searches. May import: routing.graph. Knows nothing of protocols.

The first hops of all equally good paths are carried along as a bit set over the root's own links
(bit i = its i-th link), so that one search yields the complete equal-cost sets for every
destination.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set

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
    push = heapq.heappush
    for far, weight, position in first:
        if weight < distance[far]:
            distance[far], hops[far], parent[far] = weight, 1 << position, root
            push(heap, (weight, far))
        elif weight == distance[far]:
            hops[far] |= 1 << position
    _settle(arcs, distance, hops, parent, heap)
    if banned >= 0:
        distance[banned] = FAR
    return Tree(distance, hops, parent)


def distances(
    arcs: Sequence[Sequence[Arc]],
    root: int,
    around: Sequence[Arc],
    known: list[int] | None = None,
    banned: int = -1,
) -> list[int]:
    """The distances that :func:`shortest_paths` finds, without the paths.

    ``around`` takes the place of the root's arcs; ``known``: lengths of some paths to all nodes,
    FAR where there is none; changed. The search only looks at what is nearer than that.
    """
    distance = [FAR] * len(arcs) if known is None else known
    if banned >= 0:
        distance[banned] = -1
    distance[root] = 0
    heap: list[Arc] = []
    push, pop = heapq.heappush, heapq.heappop
    for far, weight in around:
        if weight < distance[far]:
            distance[far] = weight
            push(heap, (weight, far))
    while heap:
        reached, node = pop(heap)
        if reached > distance[node]:
            continue
        for far, weight in arcs[node]:
            total = reached + weight
            if total < distance[far]:
                distance[far] = total
                push(heap, (total, far))
    if banned >= 0:
        distance[banned] = FAR
    return distance


def _settle(
    arcs: Sequence[Sequence[Arc]],
    distance: list[int],
    hops: list[int],
    parent: list[int],
    heap: list[Arc],
) -> None:
    """Dijkstra's loop, from whatever the heap holds."""
    push, pop = heapq.heappush, heapq.heappop
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


def searched_again(
    tree: Tree,
    stale: Set[int],
    arcs: Sequence[Sequence[Arc]],
    around: Sequence[Sequence[Arc]],
    root: int,
    first: Sequence[First],
    banned: int = -1,
) -> Tree:
    """What :func:`shortest_paths` finds now, where it found ``tree`` before something went away.

    ``stale``: every node with a best path over what is gone, and over one that is stale; never the
    root. ``around``: each node's links, also of nodes whose ``arcs`` are empty because they carry
    nothing for others.
    """
    distance, hops, parent = list(tree.distance), list(tree.hops), list(tree.parent)
    for node in stale:
        distance[node], hops[node], parent[node] = FAR, 0, -1
    if banned >= 0:
        distance[banned] = -1
    for far, weight, position in first:
        if far in stale and weight < distance[far]:
            distance[far], hops[far], parent[far] = weight, 1 << position, root
        elif far in stale and weight == distance[far]:
            hops[far] |= 1 << position
    found = Tree(distance, hops, parent)
    heap = _rim(found, stale, arcs, around, {*stale, root, banned})
    _settle(arcs, distance, hops, parent, heap)
    if banned >= 0:
        distance[banned] = FAR
    return found


def _rim(
    tree: Tree,
    stale: Set[int],
    arcs: Sequence[Sequence[Arc]],
    around: Sequence[Sequence[Arc]],
    closed: Set[int],
) -> list[Arc]:
    """Paths to stale nodes from those that are not, or from the root as noted; a heap of them."""
    distance, hops, parent = tree.distance, tree.hops, tree.parent
    heap: list[Arc] = []
    for node in stale:
        least = distance[node]
        for near, weight in around[node]:
            if near in closed or not arcs[near]:
                continue
            total = distance[near] + weight
            if total < least:
                least = total
                hops[node], parent[node] = hops[near], near
            elif total == least:
                hops[node] |= hops[near]
                if near < parent[node]:  # noqa: PLR1730
                    parent[node] = near
        if 0 <= least < FAR:  # not the banned one
            distance[node] = least
            heap.append((least, node))
    heapq.heapify(heap)
    return heap


def widest_paths(
    arcs: Sequence[Sequence[Arc]], root: int, first: Sequence[First], banned: int = -1
) -> list[int]:
    """The largest bottleneck per node; the ``weight`` of an arc is its bandwidth.

    0 means out of reach; the root's own is UNLIMITED. Networks have few different bandwidths, so
    nodes wait by bandwidth, and the widest wait is over first.
    """
    width = [0] * len(arcs)
    width[root] = UNLIMITED
    if banned >= 0:
        width[banned] = UNLIMITED
    waiting: dict[int, list[int]] = {}
    for far, bandwidth, _ in first:
        if bandwidth > width[far]:
            width[far] = bandwidth
            waiting.setdefault(bandwidth, []).append(far)
    levels = [-level for level in waiting]
    heapq.heapify(levels)
    while levels:
        level = -heapq.heappop(levels)
        reached = waiting.pop(level)
        for node in reached:
            if width[node] > level:
                continue
            for far, bandwidth in arcs[node]:
                if bandwidth >= level:
                    if width[far] < level:
                        width[far] = level
                        reached.append(far)
                elif bandwidth > width[far]:
                    width[far] = bandwidth
                    if bandwidth not in waiting:
                        waiting[bandwidth] = []
                        heapq.heappush(levels, -bandwidth)
                    waiting[bandwidth].append(far)
    if banned >= 0:
        width[banned] = 0
    return width
