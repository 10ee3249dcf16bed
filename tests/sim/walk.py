"""Follow packets through tables, without engines: every choice of every host at once.

Owns: the walk, and what a failure is. May import: fabric.routing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fabric.routing.table import ForwardingTable, NextHop, Path
from fabric.routing.topology import Topology

Tables = Mapping[int, ForwardingTable]
State = tuple[int, bool]
"""(host, whether the packet was repaired before)."""


@dataclass(frozen=True)
class Failure:
    """What is dead: links by position, and hosts with all their links."""

    topology: Topology
    links: frozenset[int] = frozenset()
    nodes: frozenset[int] = frozenset()

    @cached_property
    def _dead(self) -> set[tuple[int, int]]:
        return {
            end
            for at, link in enumerate(self.topology.links)
            if at in self.links or link.a in self.nodes or link.b in self.nodes
            for end in ((link.a, link.a_interface), (link.b, link.b_interface))
        }

    def alive(self, node: int, interface: int) -> bool:
        """Whether a host's link can be used."""
        return (node, interface) not in self._dead

    def walkable(self, tables: Tables, start: int, nodes: Sequence[int]) -> bool:
        """Whether an explicit path is whole."""
        here = start
        for there in nodes:
            hops = tables[here].toward(there)
            if not any(self.alive(here, hop.interface) for hop in hops):
                return False
            here = there
        return True


def outcomes(tables: Tables, start: int, goal: int, protocol: int, failure: Failure) -> set[str]:
    """What may become of a packet that travels hop by hop, whatever equal next hop each host takes:
    ``arrived``, ``lost`` (a dead neighbour and no way around, or no entry), ``loop``."""
    found: set[str] = set()
    done: set[State] = set()

    def visit(state: State, above: frozenset[State]) -> None:
        if state in above:
            found.add("loop")
        if state in done or state in above:
            return
        node, repaired = state
        if node == goal:
            found.add("arrived")
        else:
            for there in _next(tables, node, goal, protocol, failure, repaired):
                if there is None:
                    found.add("lost")
                else:
                    visit(there, above | {state})
        done.add(state)

    visit((start, False), frozenset())
    return found


def _next(
    tables: Tables, node: int, goal: int, protocol: int, failure: Failure, repaired: bool
) -> list[State | None]:
    table = tables[node]
    live = [h for h in table.lookup(goal, protocol) if failure.alive(node, h.interface)]
    if live:
        return [(hop.node, repaired) for hop in live]
    around = table.alternate(goal, protocol)
    if repaired or around is None or not usable(tables, node, around, failure):
        return [None]
    return [(goal if around.nodes else around.hop.node, True)]


def usable(tables: Tables, node: int, path: Path, failure: Failure) -> bool:
    """Whether a way on is alive: its first link, and all of it where the packet carries it."""
    hop: NextHop = path.hop
    return failure.alive(node, hop.interface) and (
        not path.nodes or failure.walkable(tables, node, path.nodes)
    )
