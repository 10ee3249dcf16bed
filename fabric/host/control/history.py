"""The tables this host has had, and what each was computed from.

Owns: TableHistory. May import: routing, host.control.ports. In memory: what a restart forgets,
nobody makes up again; see docs/decisions/0016-replay.md.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from fabric.host.control.ports import Clock
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology

KEPT = 64
"""Versions remembered: minutes of a busy network. An old one is the rows that were used, tens of
KB, and a topology that shares all but what changed with its neighbours."""


@dataclass(frozen=True)
class Recorded:
    """One version."""

    table: ForwardingTable
    topology: Topology
    since_us: int
    """When it came into use, Unix µs."""

    @property
    def version(self) -> int:
        """As hop records have it."""
        return self.table.version


class TableHistory:
    """Versions in the order they came into use, the newest last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: OrderedDict[int, Recorded] = OrderedDict()

    def record(self, topology: Topology, table: ForwardingTable) -> None:
        """A table comes into use. Of the one before, what nobody looked at is let go."""
        for version, last in list(self._found.items())[-1:]:
            self._found[version] = replace(last, table=last.table.settled())
        self._found[table.version] = Recorded(table, topology, self._clock.unix_us())
        self._found.move_to_end(table.version)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)

    def find(self, version: int) -> Recorded | None:
        """None: it never was in use here, or is too old."""
        return self._found.get(version)

    def all(self) -> list[Recorded]:
        """Newest last."""
        return list(self._found.values())
