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

WORTH_IT = 2
"""An update of more than one node in so many costs more than a search from scratch: it looks once
at what leads to a node, and twice at what leads on."""

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


def changes(before: Sequence[Sequence[Arc]], view: Arcs, ends: Iterable[int]) -> Changes:
    """The difference between arcs and those of a view with the same nodes and the same idle ones.
    ``ends``: nodes whose arcs may differ."""
    gone: list[Change] = []
    come: list[Change] = []
    for node in ends:
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
    most = len(old.distance) // WORTH_IT + WORTH_IT
    rim = touched(old.distance, changed, root, was, first, banned, most)
    if not rim:
        return old, rim
    stale = beyond(old, changed.before, rim, most)
    if len(stale) > most:
        return None
    arcs, around = changed.after, changed.around
    return searched_again(old, stale, arcs, around, root, first, banned), stale


def touched(
    distance: Sequence[int],
    changed: Changes,
    root: int,
    was: Sequence[First],
    first: Sequence[First],
    banned: int = -1,
    most: int = 0,
) -> set[int]:
    """Nodes whose best paths from ``root`` ended with an arc that went, or have new ones beside or
    before them; of the latter no more than it takes to be more than ``most``.

    ``distance``: before the changes; otherwise see :func:`updated`.
    """
    fixed = {root, banned}
    ways = [
        (distance[here] + weight, there)
        for here, there, weight in changed.come
        if here not in fixed
    ]
    ways += [(weight, far) for far, weight, _ in set(first).difference(was)]
    gone = {
        there
        for here, there, weight in changed.gone
        if distance[here] + weight == distance[there] and here != root
    }
    gone |= {far for far, weight, _ in set(was).difference(first) if weight == distance[far]}
    return (_nearer(distance, changed.after, ways, fixed, most) | gone) - fixed


def _nearer(
    distance: Sequence[int],
    arcs: Sequence[Sequence[Arc]],
    ways: list[Arc],
    fixed: Set[int],
    most: int,
) -> set[int]:
    """Nodes with a new path that is shorter than theirs, or as short, or more than ``most``.

    ``ways``: (length, node) of the new paths that end where something came; changed.
    """
    found, now = set[int](), dict[int, int]()
    heapq.heapify(ways)
    while ways and len(found) <= most:
        reached, node = heapq.heappop(ways)
        known = now.get(node, distance[node])
        if reached > known or node in fixed:
            continue
        found.add(node)
        if reached < known:
            now[node] = reached
            for far, weight in arcs[node]:
                if reached + weight <= distance[far]:
                    heapq.heappush(ways, (reached + weight, far))
    return found


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
