"""Rows where every host chooses the next one by itself: least sum, and least load.

Owns: calculations ``spf`` and ``deflect`` and their alternates. May import: routing.{graph,rows,
view}, errors. Stays on the host. (``widest`` is in routing.widest.)

Why no packet loops, although every host decides for itself. Let d be the destination.
- *spf* weighs a path by a sum of positive integers. Every next hop is strictly nearer to d by the
  same sum. Hosts that carry nothing for others are leaves of the graph; that a host makes an
  exception for itself changes no other host's distance, since none of its paths leads through it.
- *deflect* takes any neighbour that is strictly nearer to d by the sum of the metric; whatever the
  loads are, and whatever each host believes they are, the distance shrinks at every hop.

Alternates are those of RFC 5286: neighbour N is loop-free for a packet of S to D when
D(N,D) < D(N,S) + D(S,D) (inequality 1), and protects against the death of the next host E when
D(N,D) < D(N,E) + D(E,D) (inequality 3). Distances are exact integers, so both are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from fabric.routing.graph import FAR
from fabric.routing.rows import Positions, Row, repair, row
from fabric.routing.view import View

LOAD_STEPS = 8
"""Loads are compared in eighths: a host a few percent busier is no reason to leave the best way,
and a load that wavers within a step moves nothing."""

Candidate = tuple[int, int, int, int, list[int], int]
"""A neighbour that may stand in: (position, node, weight of the link, its distance to the root, its
distances, its distance to the dead one)."""


class ShortestRows:
    """Calculation ``spf``."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._positions = Positions()
        self._of_position = {position: far for far, _, position in view.first}
        self._candidates: dict[int, list[Candidate]] = {}

    def goals(self) -> Iterator[int]:
        """Node indices within reach."""
        return (at for at, distance in enumerate(self.view.tree.distance) if 0 < distance < FAR)

    def follow(self, earlier: ShortestRows) -> set[int] | None:
        """See Calculation. Whether a neighbour is free of loops is a matter of distances between
        neighbours, whatever the destination."""
        moved = None if self.view.near_moved else self.view.moved_since(earlier.view)
        return None if moved is None else moved | self._newly_led()

    def _newly_led(self) -> set[int]:
        """Destinations for which a link that came may be an alternate."""
        view, mine, found = self.view, self.view.tree.distance, set[int]()
        for distances in view.from_new_neighbours():
            back = FAR if view.root in view.idle else distances[view.root]
            found |= {at for at, left in enumerate(distances) if left < back + mine[at]}
        return found

    def row(self, goal: int) -> Row | None:
        """Least sum of the metric; all equally good next hops, by node id, then interface."""
        tree = self.view.tree
        distance = tree.distance[goal]
        if not 0 < distance < FAR:
            return None
        hops = self._positions.of(tree.hops[goal])
        return row(self.view.meaning(distance), hops, self.alternate(goal, hops), [])

    def alternate(self, goal: int, hops: list[int]) -> list[int]:
        """What to do when every one of ``hops`` is dead; hops to several hosts need nothing more.

        Best: a neighbour that avoids the dead host; then an explicit path that does; then the same
        for the dead links only.
        """
        failed = self._of_position[hops[0]]
        if len(hops) > 1 and any(self._of_position[at] != failed for at in hops):
            return []
        best = self._loop_free(goal, failed, hops)
        if best is not None and not best[0]:
            return [best[2], 1]
        found = repair(self.view, goal, failed, hops)
        if best is not None and not (found and found[1]):
            return [best[2], 0]
        return found

    def _loop_free(self, goal: int, failed: int, hops: list[int]) -> tuple[bool, int, int] | None:
        """(does not avoid the dead host, metric, position) of the best neighbour, or None."""
        view = self.view
        candidates = self._candidates.get(failed) or self._stand_ins(failed)
        mine, beyond = view.tree.distance[goal], view.distances_from(failed)[goal]
        found = [
            (node == failed or left >= to_failed + beyond, weight + left, position)
            for position, node, weight, to_root, distances, to_failed in candidates
            if (left := distances[goal]) < to_root + mine
            and left < FAR
            and position not in hops
            and (node == goal or node not in view.idle)
        ]
        return min(found, default=None)

    def _stand_ins(self, failed: int) -> list[Candidate]:
        root, found = self.view.root, list[Candidate]()
        for node, weight, position in self.view.first:
            distances = self.view.distances_from(node)
            # A host that carries nothing for others never brings a packet back.
            to_root = FAR if root in self.view.idle else distances[root]
            found.append((position, node, weight, to_root, distances, distances[failed]))
        self._candidates[failed] = found
        return found


class DeflectRows:
    """Calculation ``deflect``."""

    def __init__(self, view: View) -> None:
        self.view = view
        load = {view.graph.index[n.id]: int(n.load * LOAD_STEPS) for n in view.topology.nodes}
        self._loads = {node: load[node] for node, _, _ in view.first}
        self.goals = ShortestRows(view).goals

    @cached_property
    def _near(self) -> list[tuple[int, int, int, list[int], int]]:
        """Of each neighbour: position, node, weight of the link, distances, load in steps."""
        distances_from, loads = self.view.distances_from, self._loads
        return [
            (position, node, weight, distances_from(node), loads[node])
            for node, weight, position in self.view.first
        ]

    def follow(self, earlier: DeflectRows) -> set[int] | None:
        """See Calculation."""
        if any(earlier._loads.get(node, load) != load for node, load in self._loads.items()):
            return None
        moved, mine = self.view.moved_since(earlier.view), self.view.tree.distance
        if moved is None:
            return None
        for distances in self.view.from_new_neighbours():
            moved = moved | {at for at, left in enumerate(distances) if left < mine[at]}
        return moved

    def row(self, goal: int) -> Row | None:
        """The least-loaded of the neighbours that are nearer; among equals the best way."""
        mine = self.view.tree.distance[goal]
        if not 0 < mine < FAR:
            return None
        nearer = []
        for position, node, weight, distances, load in self._near:
            left = distances[goal]
            if left >= mine or (node in self.view.idle and node != goal):
                continue
            # At the destination's own door its load is no choice any more.
            nearer.append((load if node != goal else 0, weight + left, position, node, left))
        least = min(nearer)[:2]
        chosen = [each for each in nearer if each[:2] == least]
        hops = [each[2] for each in chosen]
        alternate = self._alternate(goal, chosen[0][3], hops, nearer)
        return row(self.view.meaning(least[1]), hops, alternate, [])

    def _alternate(
        self, goal: int, failed: int, hops: list[int], nearer: list[tuple[int, int, int, int, int]]
    ) -> list[int]:
        if any(node != failed for _, _, position, node, _ in nearer if position in hops):
            return []
        beyond = self.view.distances_from(failed)[goal]
        # From a host that is not farther than the dead one, nobody comes past the dead one.
        others = [
            (node == failed or left > beyond, load, metric, position)
            for load, metric, position, node, left in nearer
            if position not in hops
        ]
        best = min(others, default=None)
        if best is not None and not best[0]:
            return [best[3], 1]
        found = repair(self.view, goal, failed, hops)
        if best is not None and not (found and found[1]):
            return [best[3], 0]
        return found
