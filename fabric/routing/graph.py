"""Nodes and links as small numbers: what the path searches run on.

Owns: Graph and Tree. May import: nothing. Stays on the host.

Searches over a thousand nodes run a dozen times per table. Lists indexed by number are several
times faster there than dictionaries of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

FAR = 1 << 200
"""Distance of what cannot be reached: above every sum of weights."""

Arc = tuple[int, int]
"""(far node, weight), in one direction."""


class Graph:
    """Node indices ascend with node ids; a link's number is its position in the topology."""

    __slots__ = ("ends", "ids", "index")

    def __init__(self, nodes: Iterable[int], links: Sequence[tuple[int, int, int, int]]) -> None:
        """``links``: (node, its interface, node, its interface)."""
        self.ids = sorted(nodes)
        self.index = {node: at for at, node in enumerate(self.ids)}
        ends: list[list[tuple[int, int, int]]] = [[] for _ in self.ids]
        for number, (a, a_interface, b, b_interface) in enumerate(links):
            one, other = self.index[a], self.index[b]
            ends[one].append((other, a_interface, number))
            ends[other].append((one, b_interface, number))
        self.ends = [[(far, number) for far, _, number in sorted(each)] for each in ends]
        """Per node: (far node, link number), ordered by far node, then own interface."""


class Tree(NamedTuple):
    """Best paths from one node to all others, by node index."""

    distance: list[int]
    hops: list[int]
    """First hops of *all* best paths, as a bit set over the root's links."""
    parent: list[int]
    """The node before, on one best path; -1 where there is none."""

    def path(self, goal: int) -> list[int]:
        """The nodes after the root, ``goal`` last. Empty for the root itself."""
        found = []
        while self.parent[goal] >= 0:
            found.append(goal)
            goal = self.parent[goal]
        found.reverse()
        return found
