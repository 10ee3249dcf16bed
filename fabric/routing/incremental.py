"""Best paths after a few links changed, found where they changed.

Owns: Change and the update of a tree. May import: routing.{graph,spf}. Stays on the host.

A link somewhere in a large network is on the best paths to a few nodes only. Their part of the tree
is taken out and searched again from its rim (Ramalingam and Reps, "An incremental algorithm for a
generalization of the shortest-path problem", J. Algorithms 21, 1996). The result is the tree that a
search from scratch would find, to the last tie.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from fabric.routing.graph import FAR, Arc, Tree
from fabric.routing.spf import First, searched_again

WORTH_IT = 8
"""An update of more than one node in so many costs more than a search from scratch: it looks at
every arc four times."""

WORTH_LESS = 2
"""The same where nothing came: one look at what leads to a node, one at what leads on."""

Change = tuple[int, int, int]
"""(from node, to node, weight) of an arc that came or went."""


@dataclass(frozen=True)
class Changes:
    """What is different between two sets of arcs, and both of them."""

    before: Sequence[Sequence[Arc]]
    after: Sequence[Sequence[Arc]]
    around: Sequence[Sequence[Arc]]
    """All links of a node that count, also of those that carry nothing for others."""
    idle: frozenset[int]
    gone: tuple[Change, ...]
    come: tuple[Change, ...]


class Arcs(Protocol):
    """What a view has: see there."""

    arcs: list[list[Arc]]
    around: list[list[Arc]]
    idle: frozenset[int]


def changes(before: Sequence[Sequence[Arc]], view: Arcs, touched: Iterable[int]) -> Changes:
    """The difference between arcs and those of a view with the same nodes and the same idle ones.
    ``touched``: nodes whose arcs may differ."""
    gone: list[Change] = []
    come: list[Change] = []
    for node in touched:
        old, new = before[node], view.arcs[node]
        if old != new:
            gone += [(node, far, weight) for far, weight in old if (far, weight) not in new]
            come += [(node, far, weight) for far, weight in new if (far, weight) not in old]
            # Parallel links of one weight: one of two is no set difference.
            if len(set(old)) < len(old) or len(set(new)) < len(new):
                gone += [(node, *arc) for arc in old]
                come += [(node, *arc) for arc in new]
    return Changes(before, view.arcs, view.around, view.idle, tuple(gone), tuple(come))


def updated(
    old: Tree,
    changed: Changes,
    root: int,
    was: Sequence[First],
    first: Sequence[First],
    banned: int = -1,
) -> tuple[Tree, set[int]] | None:
    """The tree after the changes, and the nodes whose paths are other ones now; None when a search
    from scratch is cheaper.

    ``was``, ``first``: the root's links before and after; a position means the same in both. The
    old tree itself when nothing matters to it.
    """
    fixed, size = {root, banned}, len(old.distance)
    better = {
        there
        for here, there, weight in changed.come
        if old.distance[here] + weight <= old.distance[there] and here not in fixed
    }
    better |= {far for far, weight, _ in set(first).difference(was) if weight <= old.distance[far]}
    gone = {
        there
        for here, there, weight in changed.gone
        if old.distance[here] + weight == old.distance[there] and here != root
    }
    gone |= {far for far, weight, _ in set(was).difference(first) if weight == old.distance[far]}
    better, gone = better - fixed, gone - fixed
    if not better and not gone:
        return old, set()
    most = size // (WORTH_IT if better else WORTH_LESS) + WORTH_IT
    stale = beyond(old, changed.before, better | gone, most)
    if len(stale) > most:
        return None
    if not better:
        arcs, around = changed.after, changed.around
        return searched_again(old, stale, arcs, around, root, first, banned), stale
    direct: dict[int, list[tuple[int, int]]] = {}
    for far, weight, position in first:
        direct.setdefault(far, []).append((weight, 1 << position))
    search = _Search(old, changed, root, direct, banned)
    touched = search.distances(stale)
    return search.hops(touched)


def without(
    tree: Tree, view: Arcs, root: int, first: Sequence[First], banned: int, cut: Iterable[int]
) -> Tree:
    """What is left of a tree when a node, or some of the root's links, are gone.

    ``first``: the links left; ``cut``: positions of those gone.
    """
    bits = sum(1 << position for position in cut)
    stale = {at for at, by in enumerate(tree.hops) if by & bits} if bits else set()
    if banned >= 0:
        stale |= beyond(tree, view.arcs, {banned}, len(tree.distance))
    return searched_again(tree, stale, view.arcs, view.around, root, first, banned)


def beyond(tree: Tree, arcs: Sequence[Sequence[Arc]], these: Set[int], most: int) -> set[int]:
    """``these`` and all nodes with a best path over one of them, or more than ``most``."""
    distance, found = tree.distance, set(these)
    pending = list(these)
    for here in pending:
        if len(found) > most:
            break
        reached = distance[here]
        if reached < FAR:
            for there, weight in arcs[here]:
                if reached + weight == distance[there] and there not in found:
                    found.add(there)
                    pending.append(there)
    return found


def differences(old: Tree, new: Tree) -> set[int]:
    """Nodes whose paths in one tree are others than in another one with the same root."""
    distance, hops, parent = new.distance, new.hops, new.parent
    was = zip(old.distance, old.hops, old.parent, strict=True)
    same = [
        at
        for at, (far, by, before) in enumerate(was)
        if far == distance[at] and by == hops[at] and before == parent[at]
    ]
    moved = set(range(len(distance))).difference(same)
    # What hangs on them has another path, too, even if it begins and weighs the same.
    for node in sorted(same, key=distance.__getitem__):
        if parent[node] in moved:
            moved.add(node)
    return moved


class _Search:
    """The part of a tree that is searched again."""

    def __init__(
        self,
        old: Tree,
        changed: Changes,
        root: int,
        direct: dict[int, list[tuple[int, int]]],
        banned: int,
    ) -> None:
        self._distance, self._hops = list(old.distance), list(old.hops)
        self._parent = list(old.parent)
        self._changed = changed
        self._root = root
        self._direct = direct
        self._banned = banned

    def _into(self, node: int) -> list[tuple[int, int]]:
        """(node before, weight) of the arcs that end in a node, but for the root's."""
        shut = self._changed.idle
        return [
            (near, weight)
            for near, weight in self._changed.around[node]
            if near not in shut and near not in (self._root, self._banned)
        ]

    def distances(self, stale: set[int]) -> set[int]:
        """Search from the rim inwards, and outwards where that is nearer than before; says whose
        distance or equal paths may have changed."""
        distance, arcs = self._distance, self._changed.after
        for node in stale:
            distance[node] = FAR
        if self._banned >= 0:
            distance[self._banned] = -1
        heap: list[Arc] = []
        for node in stale:
            ways = [distance[near] + weight for near, weight in self._into(node)]
            ways += [weight for weight, _ in self._direct.get(node, ())]
            least = min(ways, default=FAR)
            if least < FAR:
                distance[node] = least
                heapq.heappush(heap, (least, node))
        touched = set(stale)
        while heap:
            reached, node = heapq.heappop(heap)
            if reached > distance[node]:
                continue
            for there, weight in arcs[node]:
                total = reached + weight
                if total < distance[there]:
                    distance[there] = total
                    touched.add(there)
                    heapq.heappush(heap, (total, there))
                elif total == distance[there]:
                    touched.add(there)
        if self._banned >= 0:
            distance[self._banned] = FAR
        touched.discard(self._root)
        return touched

    def hops(self, touched: set[int]) -> tuple[Tree, set[int]]:
        """First hops and parents of what was touched, and of all that hangs on it."""
        distance, hops, parent = self._distance, self._hops, self._parent
        heap = []
        for node in touched:
            hops[node], parent[node] = 0, -1
            if distance[node] < FAR:
                heap.append((distance[node], node))
        heapq.heapify(heap)
        while heap:
            reached, node = heapq.heappop(heap)
            ways = [near for near, weight in self._into(node) if distance[near] + weight == reached]
            bits = [bit for weight, bit in self._direct.get(node, ()) if weight == reached]
            parent[node] = min([*ways, self._root] if bits else ways)
            hops[node] = 0
            for near in ways:
                hops[node] |= hops[near]
            for bit in bits:
                hops[node] |= bit
            for there, weight in self._changed.after[node]:
                if reached + weight == distance[there] and there not in touched:
                    touched.add(there)
                    heapq.heappush(heap, (distance[there], there))
        return Tree(distance, hops, parent), touched
