"""Rows with several paths that share as little as the network allows.

Owns: calculations ``disjoint`` and ``disperse``. May import: routing.{definitions,graph,pairs,rows,
view}, wire. Stays on the host.

``disjoint`` sends copies over two paths. They share as few links as possible, then as few hosts,
then cost as little as possible together: wherever two paths without a common link (or host) exist,
that is what they are. ``disperse`` sends packets in turn over paths that share no host at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from fabric.routing.definitions import Definition
from fabric.routing.graph import FAR
from fabric.routing.pairs import Pairs
from fabric.routing.pathwise import PathRows
from fabric.routing.rows import Row, row
from fabric.routing.view import View
from fabric.wire.packet import MAX_PATH


class DisjointRows(PathRows):
    """Calculation ``disjoint``: a pair of paths, or one where the two would be the same."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._known: Pairs | None = None

    @property
    def _pairs(self) -> Pairs:
        if self._known is None:
            self._known = Pairs(self.view)
        return self._known

    def follow(self, earlier: PathRows) -> set[int] | None:
        """See Calculation. Any link may be what makes a pair the best one."""
        if not self.view.same_as(earlier.view):
            return None
        if isinstance(earlier, DisjointRows):
            self._known = earlier._known
        return set()

    def row(self, goal: int) -> Row | None:
        """The pair, the better path first."""
        if not 0 < self.view.tree.distance[goal] < FAR:
            return None
        return paths_row(self.view, self._pairs.paths(goal))


class DisperseRows(PathRows):
    """Calculation ``disperse``: as many paths as there are, up to what the definition says."""

    def __init__(self, view: View, definition: Definition) -> None:
        super().__init__(view)
        self._most = definition.paths
        self._least = definition.least_paths

    def follow(self, earlier: PathRows) -> set[int] | None:
        """See Calculation."""
        return set() if self.view.same_as(earlier.view) else None

    def row(self, goal: int) -> Row | None:
        """Paths without a common host; none when there are too few of them for the share."""
        if not 0 < self.view.tree.distance[goal] < FAR:
            return None
        found = paths_row(self.view, without_common_host(self.view, goal, self._most))
        return found if found and len(found[1]) >= self._least else None


def paths_row(view: View, paths: list[list[int]]) -> Row | None:
    """A row of explicit paths, the best first. Paths too long to be walked are left out."""
    ids = view.graph.ids
    known: list[list[int]] = []
    hops: list[int] = []
    for weight, path in sorted((view.path_weight(path), path) for path in paths):
        if len(path) > MAX_PATH:
            continue
        links = [(w, at) for far, w, at in view.first if far == path[0]]
        # Parallel links to one neighbour are links of their own.
        free = [each for each in links if each[1] not in hops] or links
        hops.append(min(free)[1])
        known.append([view.meaning(weight), *(ids[at] for at in path)])
    return row(sum(path[0] for path in known), hops, [], known) if known else None


def without_common_host(view: View, goal: int, most: int) -> list[list[int]]:
    """At most ``most`` paths from the root that meet only at the goal, of least total weight.

    Successive shortest paths (Suurballe 1974, Bhandari 1999): every round finds the cheapest way to
    one path more, where walking an old path backwards takes it away. Each host is split into a door
    in (2n) and a door out (2n + 1), so that a path blocks the hosts it passes.
    """
    flow = _Flow(view, goal)
    while len(flow.before_goal) < most and flow.augment():
        pass
    return flow.paths()


class _Flow:
    """Paths found so far, and the search for one more."""

    def __init__(self, view: View, goal: int) -> None:
        self.view = view
        self.goal = goal
        self._back: dict[int, tuple[int, int, int]] = {}
        """Host on a path → (host before, weight, link number)."""
        self.before_goal: list[int] = []
        """The last host before the goal, of every path."""
        self._used: set[tuple[int, int]] = set()
        """(host, link number) walked in that direction."""
        # Distances from the root make all weights of the first round 0 along best paths.
        self._potential = [d for d in view.tree.distance for _ in "io"]

    def augment(self) -> bool:
        """One path more; False when there is none."""
        before = self._search()
        if before is None:
            return False
        door = 2 * self.goal
        walked: list[tuple[int, int]] = []
        while door != 2 * self.view.root + 1:
            came_from, number = before[door]
            if number >= 0 and not came_from & 1:
                # An old path's link, walked backwards: nobody walks it any more.
                self._used.discard((door >> 1, number))
            elif number >= 0:
                walked.append((came_from >> 1, number))
            door = came_from
        self._used.update(walked)
        self._rebuild()
        return True

    def _rebuild(self) -> None:
        self._back.clear()
        self.before_goal.clear()
        for here, number in self._used:
            link = self.view.topology.links[number]
            one, other = self.view.graph.index[link.a], self.view.graph.index[link.b]
            there = one if other == here else other
            if there == self.goal:
                self.before_goal.append(here)
            else:
                self._back[there] = (here, self.view.weights[number], number)

    def _search(self) -> dict[int, tuple[int, int]] | None:
        """Dijkstra over what the paths so far leave free: door → (door before, link or -1)."""
        potential, goal = self._potential, 2 * self.goal
        start = 2 * self.view.root + 1
        distance, before = {start: 0}, dict[int, tuple[int, int]]()
        heap, settled = [(0, start)], set[int]()
        while heap:
            reached, door = heapq.heappop(heap)
            if door in settled:
                continue
            settled.add(door)
            if door == goal:
                break
            for there, weight, number in self._ways_on(door):
                total = reached + weight + potential[door] - potential[there]
                if total < distance.get(there, FAR) and there not in settled:
                    distance[there], before[there] = total, (door, number)
                    heapq.heappush(heap, (total, there))
        if goal not in settled:
            return None
        end = distance[goal]
        for door in range(len(potential)):
            potential[door] += min(distance.get(door, end), end)
        return before

    def _ways_on(self, door: int) -> Iterator[tuple[int, int, int]]:
        """(door, weight, link or -1) that can be walked from here."""
        view, here = self.view, door >> 1
        taken = self._back.get(here)
        if door & 1:
            if taken:
                yield door - 1, 0, -1
            for far, number in view.graph.ends[here]:
                free = number not in view.shut and (here, number) not in self._used
                if free and far != view.root and view.tree.distance[far] < FAR:
                    yield 2 * far, view.weights[number], number
        elif taken:
            yield 2 * taken[0] + 1, -taken[1], taken[2]
        elif here not in view.idle:
            yield door + 1, 0, -1

    def paths(self) -> list[list[int]]:
        """The paths, each from the first host after the root to the goal."""
        found = []
        for last in sorted(self.before_goal):
            path = [self.goal]
            here = last
            while here != self.view.root:
                path.append(here)
                here = self._back[here][0]
            found.append(path[::-1])
        return found
