"""Rows of the largest bottleneck, then the least sum of the metric.

Owns: calculation ``widest`` and its alternates. May import: routing.{graph,rows,spf,view}.
Stays on the host.

Why no packet loops: let W(v) be the largest bottleneck from v to the destination d. Host v takes
the cheapest path among links of at least W(v). Its next hop u has W(u) >= W(v), as the rest of that
path shows. If W(u) = W(v), both search the same links and u is strictly nearer in cost; if it is
greater, no later host ever falls back, since W never shrinks along the way. So (W growing, then
cost shrinking) orders the hosts of every path. The packet also really gets the bottleneck v
promised. The *cost* may end up higher than v reckoned, where u knows a wider and dearer way:
bandwidth first, then cost, is not isotone, and hosts that each insist on their own best cannot have
both.

The same order says which neighbour N is a loop-free alternate of S (RFC 5286 knows sums only): one
with W(N) > W(S); or with W(N) = W(S), when S is on no cheapest path of N among links that wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from fabric.routing.constraints import bandwidth_of
from fabric.routing.graph import FAR
from fabric.routing.rows import Positions, Row, explicit, row
from fabric.routing.spf import UNLIMITED, First, widest_paths
from fabric.routing.view import View

Candidate = tuple[int, int, int, list[int], int, list[int], int]
"""A neighbour that may stand in for goals of some width: (position, node, bandwidth of the link,
its largest bottlenecks, the least of them that is of use, its distances among links of the width,
that to the root)."""


def _leads_on(candidate: Candidate, goal: int, width: int, mine: int) -> bool:
    """Whether no packet for ``goal`` comes back; see the module docstring. ``width``, ``mine``: the
    root's largest bottleneck, and its distance among links as wide."""
    _, _, _, widths, enough, distances, back = candidate
    theirs = widths[goal]
    return theirs >= enough and (theirs != width or distances[goal] < back + mine)


class WidestRows:
    """Calculation ``widest``. Nodes are given by index."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._positions = Positions()
        self._levels: dict[int, View] = {}
        self._widths: dict[int, list[int]] = {}
        self._repairs: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        self._candidates: dict[int, list[Candidate]] = {}
        bandwidth = [bandwidth_of(link) for link in view.topology.links]
        self._arcs = [
            [(far, bandwidth[number]) for far, number in each if number not in view.shut]
            for each in view.graph.ends
        ]
        self._around = list(self._arcs)
        for at in view.idle:
            self._arcs[at] = []
        self._first: list[First] = [
            (far, bandwidth[view.link_at(position)], position) for far, _, position in view.first
        ]
        self._of_position = {position: far for far, _, position in view.first}

    def goals(self) -> Iterator[int]:
        """Node indices within reach."""
        for at, width in enumerate(self._reach):
            if width and at != self.view.root:
                yield at

    def follow(self, earlier: WidestRows) -> set[int] | None:
        """See Calculation. What a row says depends on largest bottlenecks, from here, from the
        neighbours and after failures, and on best paths among links that wide."""
        came = {position for _, _, position in set(self._first).difference(earlier._first)}
        if not came <= self.view.came:
            return None
        as_wide = self._around == earlier._around and self.view.idle == earlier.view.idle
        if as_wide:
            self._reach, self._widths = earlier._reach, earlier._widths
            self._repairs = earlier._repairs
        if self.view.moved_since(earlier.view) is None:
            return None
        if as_wide and self.view.same_as(earlier.view):
            self._levels = earlier._levels
            return set()
        moved = set() if as_wide else self._wider_or_narrower(earlier)
        for width, level in earlier._levels.items():
            self._levels[width] = self.view.at_least(width, level)
            others = self._levels[width].moved_since(level)
            if others is None or self._levels[width].near_moved:
                return None  # alternates compare with distances between neighbours
            moved |= others
        return moved | self._newly_led() if came else moved

    def _newly_led(self) -> set[int]:
        """Destinations for which a link that came may be an alternate."""
        found, came = set[int](), dict[int, list[Candidate]]()
        for goal, width in enumerate(self._reach):
            if not width or goal == self.view.root:
                continue
            if width not in came:
                came[width] = [each for each in self._near(width) if each[0] in self.view.came]
            mine = self._level(width).tree.distance[goal]
            if any(_leads_on(each, goal, width, mine) for each in came[width]):
                found.add(goal)
        return found

    def _wider_or_narrower(self, earlier: WidestRows) -> set[int]:
        """Nodes with another largest bottleneck in any search."""
        left = {far for far, _, _ in earlier._first} - {far for far, _, _ in self._first}
        moved = {at for at, width in enumerate(self._reach) if width != earlier._reach[at]}
        for node in earlier._widths.keys() - left:
            widths, now = earlier._widths[node], self._widths_of(node)
            moved |= {at for at, width in enumerate(widths) if width != now[at]}
        for (banned, cut), widths in earlier._repairs.items():
            if banned in left or not self.view.lost.isdisjoint(cut):
                continue  # only rows that name a lost link looked at it, and at its neighbour
            now = self._after(banned, cut)
            moved |= {at for at, width in enumerate(widths) if width != now[at]}
        return moved

    @cached_property
    def _reach(self) -> list[int]:
        return widest_paths(self._arcs, self.view.root, self._first)

    def row(self, goal: int) -> Row | None:
        """Largest bottleneck, then least sum of the metric; all equally good next hops."""
        width = self._reach[goal]
        if not width or goal == self.view.root:
            return None
        hops = self._positions.of(self._level(width).tree.hops[goal])
        metric = 0 if width == UNLIMITED else width
        return row(metric, hops, self._alternate(goal, width, hops), [])

    def width(self, goal: int) -> int:
        """The largest bottleneck to ``goal``; 0: out of reach."""
        return self._reach[goal]

    def width_from(self, node: int, goal: int) -> int:
        """The same from another node."""
        return self._widths_of(node)[goal]

    def _level(self, width: int) -> View:
        """Only links of at least ``width``."""
        found = self._levels.get(width)
        if found is None:
            found = self._levels[width] = self.view.at_least(width)
        return found

    def _widths_of(self, node: int) -> list[int]:
        found = self._widths.get(node)
        if found is None:
            first = [(far, bandwidth, 0) for far, bandwidth in self._around[node]]
            found = self._widths[node] = widest_paths(self._arcs, node, first)
        return found

    def _alternate(self, goal: int, width: int, hops: list[int]) -> list[int]:
        failed = self._of_position[hops[0]]
        if len(hops) > 1 and any(self._of_position[at] != failed for at in hops):
            return []
        idle, mine = self.view.idle, self._level(width).tree.distance[goal]
        onwards = [each for each in self._near(width) if _leads_on(each, goal, width, mine)]
        found = [
            (
                node == failed or self._passes(node, failed, goal),
                -min(bandwidth, widths[goal]),
                position,
            )
            for position, node, bandwidth, widths, *_ in onwards
            if position not in hops and (node == goal or node not in idle)
        ]
        best = min(found, default=None)
        if best is not None and not best[0]:
            return [best[2], 1]
        around = self._repair(goal, failed, hops)
        if best is not None and not (around and around[1]):
            return [best[2], 0]
        return around

    def _near(self, width: int) -> list[Candidate]:
        """The root's links, and what is known of those behind them, for goals this wide."""
        found = self._candidates.get(width)
        if found is None:
            level, root = self._level(width), self.view.root
            found = self._candidates[width] = []
            for node, bandwidth, position in self._first:
                distances = level.distances_from(node)
                # Nobody comes back through a host that carries nothing for others.
                enough, back = (1, FAR) if root in self.view.idle else (width, distances[root])
                widths = self._widths_of(node)
                found.append((position, node, bandwidth, widths, enough, distances, back))
        return found

    def _passes(self, node: int, failed: int, goal: int) -> bool:
        """Whether packets for ``goal`` might go from a neighbour past ``failed``."""
        if failed == goal:
            return True
        theirs, dead = self._widths_of(node)[goal], self._widths_of(failed)[goal]
        if theirs != dead:
            return theirs < dead
        level = self._level(theirs)
        ours = level.distances_from(node)
        return ours[goal] >= ours[failed] + level.distances_from(failed)[goal]

    def _after(self, banned: int, cut: tuple[int, ...]) -> list[int]:
        """Largest bottlenecks after a failure: of a host, or of links at these positions."""
        found = self._repairs.get((banned, cut))
        if found is None:
            left = [each for each in self._first if each[2] not in cut]
            found = widest_paths(self._arcs, self.view.root, left, banned)
            self._repairs[banned, cut] = found
        return found

    def _repair(self, goal: int, failed: int, hops: list[int]) -> list[int]:
        """The best explicit path around the dead neighbour, or else around its dead links."""
        for protects in (1, 0):
            if protects and goal == failed:
                continue
            after = self._after(failed, ()) if protects else self._after(-1, tuple(hops))
            width = after[goal]
            found = explicit(self._level(width), goal, failed, hops, protects) if width else []
            if found:
                return found
        return []
