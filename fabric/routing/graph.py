"""Nodes and links as small numbers: what the path searches run on.

Owns: Graph and Tree. May import: nothing. Stays on the host.

Searches over a thousand nodes run a dozen times per table. Lists indexed by number are several
times faster there than dictionaries of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

FAR = 1 << 200
"""Distance of what cannot be reached: above every sum of weights."""

Arc = tuple[int, int]
"""(far node, weight), in one direction."""


class Graph:
    """Node indices ascend with node ids; a link's number is its position in the topology."""

    __slots__ = ("ends", "ids", "index", "keys")

    def __init__(self, nodes: Iterable[int], links: Sequence[tuple[int, int, int, int]]) -> None:
        """``links``: (node, its interface, node, its interface)."""
        self.ids = sorted(nodes)
        self.keys = [str(node) for node in self.ids]
        """Node ids as JSON has them."""
        self.index = {node: at for at, node in enumerate(self.ids)}
        ends: list[list[tuple[int, int, int]]] = [[] for _ in self.ids]
        for number, (a, a_interface, b, b_interface) in enumerate(links):
            one, other = self.index[a], self.index[b]
            ends[one].append((other, a_interface, number))
            ends[other].append((one, b_interface, number))
        self.ends = [[(far, number) for far, _, number in sorted(each)] for each in ends]
        """Per node: (far node, link number), ordered by far node, then own interface."""


class Tree:
    """Best paths from one node to all others, by node index."""

    __slots__ = ("_paths", "distance", "hops", "parent", "spelled")

    def __init__(self, distance: list[int], hops: list[int], parent: list[int]) -> None:
        self.distance = distance
        self.hops = hops
        """First hops of *all* best paths, as a bit set over the root's links."""
        self.parent = parent
        """The node before, on one best path; -1 where there is none."""
        self._paths: dict[int, list[int]] = {}
        self.spelled: dict[int, list[int]] = {}
        """What routing.rows made of the paths; as good as the tree itself."""

    def path(self, goal: int) -> list[int]:
        """The nodes after the root, ``goal`` last; not to be changed. Empty for the root itself,
        and for what is out of reach."""
        paths, parent, new = self._paths, self.parent, list[int]()
        at = goal
        while at not in paths and parent[at] >= 0:
            new.append(at)
            at = parent[at]
        found = paths.get(at, [])
        for at in reversed(new):
            found = paths[at] = [*found, at]
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and (
            (self.distance, self.hops, self.parent) == (other.distance, other.hops, other.parent)
        )

    __hash__ = None  # type: ignore[assignment]
