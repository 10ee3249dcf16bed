"""Rows where the first host chooses the whole path, or all neighbours at once.

Owns: calculations ``source``, ``bounded`` and ``flood``. May import: routing.{definitions,graph,
rows,spf,view}, wire. Stays on the host.

A path in the packet cannot loop, whatever the relays believe: it names every host once, and relays
follow it. ``flood`` is scoped by the hop limit: a host sends a copy only to neighbours from where
the rest of the limit still suffices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from fabric.routing.bounds import Bounds, best_within
from fabric.routing.definitions import Definition
from fabric.routing.graph import FAR
from fabric.routing.rows import Row, repair, row
from fabric.routing.spf import shortest_paths
from fabric.routing.view import View
from fabric.wire.packet import MAX_PATH


class PathRows:
    """What the calculations with one explicit path share. Nodes are given by index."""

    def __init__(self, view: View) -> None:
        self.view = view

    def goals(self) -> Iterator[int]:
        """Node indices within reach."""
        return (at for at, distance in enumerate(self.view.tree.distance) if 0 < distance < FAR)

    def follow(self, earlier: PathRows) -> set[int] | None:
        """See Calculation: true where a row depends on best paths only."""
        return self.view.moved_since(earlier.view)

    def _row(self, path: Sequence[int], alternate: list[int]) -> Row:
        view, ids = self.view, self.view.graph.ids
        best = path is view.tree.path(path[-1])  # then its weight is known
        metric = view.meaning(view.tree.distance[path[-1]] if best else view.path_weight(path))
        nodes = [ids[at] for at in path]
        return row(metric, [view.position_to(path[0])], alternate, [[metric, *nodes]])


class SourceRows(PathRows):
    """Calculation ``source``: the least sum of the metric, by way of the hosts asked for."""

    def __init__(self, view: View, definition: Definition) -> None:
        super().__init__(view)
        self._via = [view.graph.index[node] for node in definition.via]

    def follow(self, earlier: PathRows) -> set[int] | None:
        """See Calculation. A path by way of others may change where no best path does."""
        return None if self._via else super().follow(earlier)

    def row(self, goal: int) -> Row | None:
        """One explicit path."""
        view = self.view
        if not 0 < view.tree.distance[goal] < FAR:
            return None
        via = [at for at in self._via if at not in (goal, view.root)]
        path = self._by_way_of(via, goal) if via else view.tree.path(goal)
        if not 0 < len(path) <= MAX_PATH:
            return None
        # Who asked for a way does not want another one.
        around = [] if via else repair(view, goal, path[0], [view.position_to(path[0])])
        return self._row(path, around)

    def _by_way_of(self, via: list[int], goal: int) -> list[int]:
        """Leg by leg, each the best that meets no host again; the cheaper of both directions."""
        found = [self._legs([*order, goal]) for order in (via, via[::-1])]
        found = [path for path in found if path]
        return min(found, key=self.view.path_weight, default=[])

    def _legs(self, stops: list[int]) -> list[int]:
        view = self.view
        here, path = view.root, list[int]()
        arcs = list(view.arcs)
        arcs[stops[-1]] = []  # the path ends where it first gets there
        for stop in stops:
            if stop in path:
                continue
            tree = shortest_paths(arcs, here, view.first_of(here))
            leg = tree.path(stop)
            if not leg:
                return []
            for at in (here, *leg[:-1]):
                arcs[at] = []
            path += leg
            here = stop
        return path


class BoundedRows(PathRows):
    """Calculation ``bounded``: the least sum of the metric among the paths within all bounds.

    Sticky: a path that was in use stays while it is within bounds, whatever became better.
    """

    def __init__(
        self, view: View, definition: Definition, previous: Mapping[int, Sequence[int]]
    ) -> None:
        """``previous``: destination node → nodes of the path used so far."""
        super().__init__(view)
        self.bounds = Bounds(definition)
        self._previous = previous

    def follow(self, earlier: PathRows) -> set[int] | None:
        """See Calculation. Within bounds, more than the best paths counts."""
        moved = super().follow(earlier)
        if moved is None or not self.bounds.none:
            return None
        # A sticky path need not be a best one; it is looked at again when a link of it changed.
        # Rows that begin with a lost link of the root are looked at anyway.
        ids, root = self.view.graph.ids, self.view.root
        gone = {(ids[here], ids[there]) for here, there in self.view.gone if here != root}
        ends, index = {here for here, _ in gone}, self.view.graph.index
        return moved | {
            index[nodes[-1]]
            for nodes in self._previous.values()
            if not ends.isdisjoint(nodes) and any(hop in gone for hop in pairwise(nodes))
        }

    def row(self, goal: int) -> Row | None:
        """One explicit path."""
        if not 0 < self.view.tree.distance[goal] < FAR:
            return None
        path = self._kept(goal) or self._best(goal, -1, ())
        if not path:
            return None
        first, links = path[0], [self.view.position_to(path[0])]
        ids = self.view.graph.ids
        if self.bounds.none:
            return self._row(path, repair(self.view, goal, first, links))
        for banned, avoid in ((first, ()), (-1, links)):
            around = self._best(goal, banned, avoid) if banned != goal else []
            if around:
                position = self.view.position_to(around[0], avoid)
                nodes = [ids[at] for at in around]
                return self._row(path, [position, int(banned >= 0), *nodes])
        return self._row(path, [])

    def _kept(self, goal: int) -> list[int]:
        """The path in use, if every link of it is still there and it is within bounds."""
        view = self.view
        used = self._previous.get(view.graph.ids[goal])
        if not used:
            return []
        index, best = view.graph.index, view.tree.path(goal)
        path = [index.get(node, -1) for node in used]
        if path == best:
            path = best
        else:
            whole = view.best.keys() >= set(pairwise([view.root, *path]))
            if not whole or not view.idle.isdisjoint(path[:-1]):
                return []
        return path if self.bounds.hold(view, path) else []

    def _best(self, goal: int, banned: int, avoid: Collection[int]) -> list[int]:
        view = self.view
        if banned >= 0:
            tree = view.without_node(banned)
        else:
            tree = view.without_links(avoid) if avoid else view.tree
        path = tree.path(goal)
        if 0 < len(path) <= MAX_PATH and self.bounds.hold(view, path, avoid):
            return path
        if not path or self.bounds.none:
            return []
        return best_within(view, goal, self.bounds, banned, avoid)


class FloodRows:
    """Calculation ``flood``: every neighbour, with the hops a copy needs to get there that way."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.goals = PathRows(view).goals

    def follow(self, earlier: FloodRows) -> set[int] | None:
        """See Calculation. What came is a way to anybody."""
        return None if self.view.came else self.view.moved_since(earlier.view)

    @cached_property
    def _near(self) -> list[tuple[int, int, list[int]]]:
        """(neighbour, position of the link, its distances when nothing comes back through here)."""
        view = self.view
        return [(node, at, view.distances_apart(node)) for node, _, at in view.first]

    def row(self, goal: int) -> Row | None:
        """All neighbours from where the destination can be reached without coming back."""
        view = self.view
        mine = view.tree.distance[goal]
        if not 0 < mine < FAR:
            return None
        idle, meaning = view.idle, view.meaning
        useful = [
            (at, 1 + meaning(left))
            for node, at, distances in self._near
            if (left := distances[goal]) < FAR and (node == goal or node not in idle)
        ]
        hops = [at for at, _ in useful]
        return row(view.meaning(mine), hops, [], [[metric] for _, metric in useful])
