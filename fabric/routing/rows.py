"""Rows of a forwarding table, computed when somebody looks.

Owns: the shape of a row and the mapping that computes them. May import: routing.{graph,view}, wire.
Stays on the host; guests get finished rows.

A row is ``[metric, hops, alternate, paths]``, empty parts at the end left out:
- hops: positions of the node's links (its neighbours in order) that lead on;
- alternate: ``[position, 1 if it avoids the dead neighbour or 0 if only the dead link, *nodes]``:
  what to do when all hops are dead. Without nodes it is a loop-free alternate; with nodes the
  packet must carry them, an explicit path to the destination;
- paths: one ``[metric, *nodes]`` per hop, where the protocol lets packets carry their paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fabric.routing.graph import Graph, Tree
from fabric.routing.view import View
from fabric.wire.packet import MAX_PATH

Row = list[Any]


class Calculation(Protocol):
    """What a protocol's rows come from. Destinations are given by node index."""

    view: View

    def goals(self) -> Iterator[int]:
        """Those that may have a row."""

    def row(self, goal: int) -> Row | None:
        """The row of one; None: out of reach, or excluded by a constraint."""

    def follow(self, earlier: Any) -> set[int] | None:
        """Take over what is still true of a calculation of the same kind for the topology before.

        Says whose rows may be other ones now; None: anybody's.
        """


class Rows(Mapping[str, Row]):
    """Destination (as JSON has it: text) → row."""

    def __init__(
        self,
        graph: Graph,
        calculation: Calculation,
        earlier: Rows | None = None,
    ) -> None:
        """``earlier``: rows of the topology before; those that stay are not computed again."""
        self._graph = graph
        self._calculation = calculation
        self._found: dict[str, Row | None] = {}
        if earlier is not None:
            self._keep(earlier)

    def _keep(self, earlier: Rows) -> None:
        moved = self._calculation.follow(earlier._calculation)
        if moved is not None and earlier._graph.ids == self._graph.ids:
            gone = {self._graph.keys[at] for at in moved}
            lost = self._calculation.view.lost
            self._found = {
                key: row
                for key, row in earlier._found.items()
                if key not in gone and not (lost and row and names(row, lost))
            }

    def __getitem__(self, key: str) -> Row:
        found: Row | None = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """The row, or ``default``: computed once."""
        if key in self._found:
            found = self._found[key]
        else:
            at = self._graph.index.get(int(key), -1)
            found = self._found[key] = self._calculation.row(at) if at >= 0 else None
        return default if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole())

    def whole(self) -> dict[str, Row]:
        """All rows."""
        found, keys, row_of = self._found, self._graph.keys, self._calculation.row
        rows = {}
        for goal in self._calculation.goals():
            key = keys[goal]
            if key not in found:
                found[key] = row_of(goal)
            if (row := found[key]) is not None:
                rows[key] = row
        return rows

    def __len__(self) -> int:
        return len(self.whole())

    def known(self) -> dict[str, Row]:
        """What was computed so far."""
        return {key: row for key, row in self._found.items() if row is not None}


def row(metric: int, hops: list[int], alternate: list[int], paths: list[list[int]]) -> Row:
    """A row without its empty parts at the end."""
    if paths:
        return [metric, hops, alternate, paths]
    if alternate:
        return [metric, hops, alternate]
    return [metric, hops] if hops else [metric]


def names(row: Row, positions: frozenset[int]) -> bool:
    """Whether a row leads over any of these links."""
    hops = row[1] if len(row) > 1 else ()
    alternate = row[2][:1] if len(row) > 2 else ()
    return not (positions.isdisjoint(hops) and positions.isdisjoint(alternate))


class Positions:
    """Bit sets over a node's links as lists; each distinct one is made once."""

    def __init__(self) -> None:
        self._lists: dict[int, list[int]] = {}

    def of(self, bits: int) -> list[int]:
        """Positions of the bits that are set, ascending."""
        found = self._lists.get(bits)
        if found is None:
            found = [at for at in range(bits.bit_length()) if bits >> at & 1]
            self._lists[bits] = found
        return found


def repair(view: View, goal: int, failed: int, positions: list[int]) -> list[int]:
    """An explicit way around a dead neighbour ``failed``, or else around its dead links; empty:
    there is none."""
    return explicit(view, goal, failed, positions, 1) or explicit(view, goal, failed, positions, 0)


def explicit(view: View, goal: int, failed: int, positions: list[int], protects: int) -> list[int]:
    """The best path after the failure (the idea of TI-LFA, RFC 9855), spelled out to its end: no
    relay has to know of the failure, or to agree with anybody about the rest.

    ``protects``: 1 for the death of a neighbour, 0 for that of the links at these positions.
    """
    if protects and goal == failed:
        return []
    tree = view.without_node(failed) if protects else view.without_links(positions)
    found = tree.spelled.get(goal)
    return _spell(view, tree, goal, positions, protects) if found is None else found


def _spell(view: View, tree: Tree, goal: int, positions: list[int], protects: int) -> list[int]:
    """The same for a destination not asked for yet, and for all on the way to it: each is one node
    more than the one before."""
    spelled, parent, ids, new = tree.spelled, tree.parent, view.graph.ids, list[int]()
    at = goal
    while at not in spelled and parent[at] >= 0:
        new.append(at)
        at = parent[at]
    found = spelled.setdefault(at, [])  # the root's too is empty, and that of what is out of reach
    for at in reversed(new):
        if parent[at] == view.root:
            found = [view.position_to(at, () if protects else positions), protects, ids[at]]
        elif found:
            # Two numbers stand before the nodes.
            found = [*found, ids[at]] if len(found) < MAX_PATH + 2 else []
        spelled[at] = found
    return found
