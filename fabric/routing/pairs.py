"""Two paths to every node that share as little as possible: one search for all destinations.

Owns: Pairs. May import: routing.{graph,view}. Stays on the host.

The algorithm is Suurballe and Tarjan's ("A quick method for finding shortest pairs of disjoint
paths", Networks 14, 1984). It finds two paths without a common arc. Here each host is split into a
door in (2n) and a door out (2n + 1), with an arc between, so that hosts are arcs too. What cannot
be avoided must stay possible: beside every arc lies a second one, the same but for a penalty.
Penalties are far above all weights, and a link's far above a host's, so that the sum of the pair
counts first the links both use, then the hosts both pass, then the weights.
"""

from __future__ import annotations

import heapq

from fabric.routing.graph import FAR
from fabric.routing.view import View

HOST_PENALTY = 1 << 112
"""Above the weight of any path: 2^24 hops of combined weights below 2^88."""
LINK_PENALTY = 1 << 136
"""Above 2^24 host penalties."""


class Pairs:
    """From a view's root to everywhere."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._start = 2 * view.root + 1
        doors = 2 * len(view.arcs)
        self._out: list[list[tuple[int, int]]] = [[] for _ in range(doors)]
        self._in: list[list[tuple[int, int]]] = [[] for _ in range(doors)]
        self._children: list[list[int]] = [[] for _ in range(doors)]
        self._parent = [-1] * doors
        self._extra = [FAR] * doors
        """What a pair costs more than two best paths, penalties included."""
        self._last = [-1] * doors
        """The door before, on the path that is not the tree's…"""
        self._split = [-1] * doors
        """…and the door whose labelling made that path possible."""
        self._part = [0] * doors
        """The piece of the tree a door is in, while it is not settled."""
        self._parts = 0
        self._settled = [False] * doors
        self._build()
        self._label()

    def shared(self, goal: int) -> tuple[int, int]:
        """How many links, and how many hosts between the ends, both paths to ``goal`` use."""
        extra = self._extra[2 * goal]
        return extra // LINK_PENALTY, extra % LINK_PENALTY // HOST_PENALTY

    def paths(self, goal: int) -> list[list[int]]:
        """The two paths, from the first host after the root; one when they are the same."""
        end = 2 * goal
        marked, door = set[int](), end
        while door != self._start:
            marked.add(door)
            door = self._split[door]
        found = []
        for _ in range(2):
            path, door = list[int](), end
            while door != self._start:
                if not door & 1:
                    path.append(door >> 1)
                if door in marked:
                    marked.remove(door)
                    door = self._last[door]
                else:
                    door = self._parent[door]
            found.append(path[::-1])
        return found if found[0] != found[1] else found[:1]

    def _build(self) -> None:
        """The split graph without the arcs of the tree; weights are reduced by the distances."""
        view, distance, parent = self.view, self.view.tree.distance, self.view.tree.parent
        tree_link: dict[int, int] = {}
        for here, ends in enumerate(view.graph.ends):
            if distance[here] >= FAR:
                continue
            if here != view.root and here not in view.idle:
                self._parent[2 * here + 1] = 2 * here
                self._children[2 * here].append(2 * here + 1)
                self._add(2 * here, 2 * here + 1, HOST_PENALTY)
            elif here != view.root:
                continue
            for far, number in ends:
                if number in view.shut or far == view.root:
                    continue
                weight = distance[here] + view.weights[number] - distance[far]
                self._add(2 * here + 1, 2 * far, weight + LINK_PENALTY)
                if weight == 0 and parent[far] == here and far not in tree_link:
                    tree_link[far] = number
                    self._parent[2 * far] = 2 * here + 1
                    self._children[2 * here + 1].append(2 * far)
                else:
                    self._add(2 * here + 1, 2 * far, weight)

    def _add(self, here: int, there: int, weight: int) -> None:
        self._out[here].append((there, weight))
        self._in[there].append((here, weight))

    def _label(self) -> None:
        """Settle doors by ascending extra cost. Settling one cuts the tree into pieces, and an arc
        between two pieces now ends a second path, which shares nothing with the tree's but what
        lies before that door."""
        extra, heap = self._extra, [(0, self._start)]
        extra[self._start] = 0
        while heap:
            reached, door = heapq.heappop(heap)
            if self._settled[door]:
                continue
            self._settled[door] = True
            for here, there, weight in self._arcs_cut_by(door):
                total = reached + weight
                if total < extra[there]:
                    extra[there] = total
                    self._last[there], self._split[there] = here, door
                    heapq.heappush(heap, (total, there))

    def _arcs_cut_by(self, door: int) -> list[tuple[int, int, int]]:
        """Arcs between the pieces that settling ``door`` leaves of its part, or out of it."""
        part, settled, old = self._part, self._settled, self._part[door]
        newest = self._parts
        cut_off = self._cut(door)

        def of_old(other: int) -> bool:
            return not settled[other] and (part[other] == old or part[other] > newest)

        found = [(door, there, w) for there, w in self._out[door] if of_old(there)]
        for here in cut_off:
            mine = part[here]
            for there, w in self._out[here]:
                if part[there] != mine and of_old(there):
                    found.append((here, there, w))
            for there, w in self._in[here]:
                # Arcs between two cut-off pieces are found from where they begin.
                if part[there] == old and not settled[there]:
                    found.append((there, here, w))
        return found

    def _cut(self, door: int) -> list[int]:
        """Make every piece of the tree around ``door`` a part of its own, but for one, and say
        which doors that changed.

        The pieces are walked in step until one is left. Whatever is walked is thus no larger than
        what keeps its part, and no door changes its part more often than log2 of all doors.
        """
        settled, parent = self._settled, self._parent
        starts = [*self._children[door], *([parent[door]] if parent[door] >= 0 else [])]
        pieces = [([(start, door)], [0]) for start in starts if not settled[start]]
        cut_off = []
        while len(pieces) > 1:
            for piece in list(pieces):
                found, at = piece
                if at[0] == len(found):
                    pieces.remove(piece)
                    if pieces:
                        cut_off.append([each for each, _ in found])
                    continue
                here, came_from = found[at[0]]
                at[0] += 1
                for there in (*self._children[here], parent[here]):
                    if there >= 0 and there != came_from and not settled[there]:
                        found.append((there, here))
        for doors in cut_off:
            self._parts += 1
            for each in doors:
                self._part[each] = self._parts
        return [each for doors in cut_off for each in doors]
