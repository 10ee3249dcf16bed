"""What hosts of one network have in common that see it alike: arcs and best paths.

Owns: Search, Commons and Shared. May import: routing.{constraints,graph,incremental,spf,topology}.
Stays on the host.

On a real host nobody is there to share with. Where the tables of thousands of hosts are computed in
one process, the best paths from a host are wanted by that host and by each of its neighbours (for
alternates), and searched once.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import NamedTuple

from fabric.routing.constraints import WEIGHTS
from fabric.routing.graph import Arc, Tree
from fabric.routing.incremental import Changes, changes, updated
from fabric.routing.spf import First, shortest_paths
from fabric.routing.topology import Topology

Sight = tuple[str, frozenset[int], frozenset[int]]
"""Metric, links that do not count, nodes that carry nothing for others."""


class Search(NamedTuple):
    """Which search a tree comes from."""

    root: int
    banned: int = -1
    """A node that must not be touched."""
    cut: frozenset[int] = frozenset()
    """Positions of the root's links that must not be used."""


class Tally:
    """Work done by commons that follow one another."""

    def __init__(self) -> None:
        self.searches = 0
        """From scratch."""
        self.updates = 0
        """Trees that a change made others."""


class Commons:
    """Of one topology; ``earlier``: of one with the same nodes, whose searches are brought up to
    date where they are wanted again."""

    def __init__(self, topology: Topology, earlier: Commons | None = None) -> None:
        self.topology = topology
        self.earlier = earlier
        self.tally: Tally = earlier.tally if earlier is not None else Tally()
        self._sights: dict[Hashable, Shared] = {}

    def shared(self, sight: Sight, words: Hashable) -> Shared:
        """``words``: what the definition says, which stays when link numbers change."""
        found = self._sights.get(words)
        if found is None:
            earlier = self.earlier._sights.get(words) if self.earlier is not None else None
            found = self._sights[words] = Shared(self.topology, sight, earlier, self.tally)
        return found


class Shared:
    """One way to see a topology. Nodes are given by index."""

    def __init__(
        self, topology: Topology, sight: Sight, earlier: Shared | None, tally: Tally
    ) -> None:
        metric, self.shut, self.idle = sight
        self.graph = topology.graph
        weigh = WEIGHTS[metric]
        self.weights = [weigh(link) for link in topology.links]
        weights, shut = self.weights, self.shut
        self.around: list[list[Arc]] = [
            [(far, weights[number]) for far, number in ends if number not in shut]
            for ends in self.graph.ends
        ]
        self.arcs: list[list[Arc]] = [
            [] if at in self.idle else arcs for at, arcs in enumerate(self.around)
        ]
        self._tally = tally
        self._trees: dict[Search, Tree] = {}
        if earlier is not None and (earlier.idle, earlier.graph.ids) != (self.idle, self.graph.ids):
            earlier = None
        self._earlier = earlier

    @cached_property
    def _changes(self) -> Changes:
        assert self._earlier is not None
        before = self._earlier.around
        touched = [at for at, arcs in enumerate(self.around) if arcs != before[at]]
        return changes(self._earlier.arcs, self, touched)

    def first_of(self, search: Search) -> list[First]:
        """Its root's links that may be used, with their positions."""
        return [
            (far, self.weights[number], position)
            for position, (far, number) in enumerate(self.graph.ends[search.root])
            if number not in self.shut and position not in search.cut
        ]

    def tree(self, search: Search) -> Tree:
        """Best paths, their first hops by the positions of the root's links."""
        found = self._trees.get(search)
        if found is None:
            found = self._trees[search] = self._find(search)
        return found

    def _find(self, search: Search) -> Tree:
        first, earlier = self.first_of(search), self._earlier
        old = earlier._trees.get(search) if earlier is not None else None
        if old is not None and earlier is not None and first == earlier.first_of(search):
            update = updated(old, self._changes, search.root, first, first, search.banned)
            if update is not None:
                self._tally.updates += update[0] is not old
                return update[0]
        self._tally.searches += 1
        return shortest_paths(self.arcs, search.root, first, search.banned)
