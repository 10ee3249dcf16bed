"""One host: what it knows, its table, and an engine for each connection, as guests would be.

Owns: Host. May import: routing, sim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fabric.routing.definitions import Definition
from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.protocols import compute_table
from fabric.routing.table import ForwardingTable
from fabric.sim.maps import Map, Maps


class Ends(NamedTuple):
    """A connection: who speaks to whom, by which protocol."""

    id: int
    source: int
    destination: int
    protocol: int


class Host:
    """A table is computed when the first packet comes, as the first guest would need it; from then
    on with every change."""

    def __init__(self, node: int, maps: Maps, protocols: Mapping[int, Definition]) -> None:
        self.node = node
        self.alive = True
        self.reported: frozenset[tuple[int, int]] = frozenset()
        """(link, end): what this host has heard to be down."""
        self.installing = False
        """A new table is being computed."""
        self.engines: dict[int, Forwarder] = {}
        self.ready_us: dict[int, int] = {}
        """Connection → when its guest is there."""
        self.dead: dict[str, int] = {}
        """Addresses of neighbours that do not answer → the link."""
        self._maps = maps
        self._protocols = protocols
        self._down: frozenset[int] = frozenset()
        self._map: Map = maps.whole
        self._table: ForwardingTable | None = None
        self._interfaces: dict[str, int] | None = None
        self.tables = 0
        """Computed so far."""

    @property
    def table(self) -> ForwardingTable:
        """The table in use."""
        if self._table is None:
            self._table = self._compute()
        return self._table

    def _compute(self) -> ForwardingTable:
        known = self._map = self._maps.without(self._down)
        self.tables += 1
        return compute_table(
            known.topology, self.node, known.version, self._protocols, self._table, known.commons
        )

    def install(self) -> bool:
        """Use a table of what is known now; says whether it is another one."""
        down = frozenset(link for link, _ in self.reported)
        if down == self._down:
            return False
        self._down = down
        if self._table is not None:
            self._table = self._compute()
            for engine in self.engines.values():
                engine.install(self._table)
        return True

    def engine(self, ends: Ends, now_us: int, spawn_us: int) -> Forwarder:
        """The engine of a connection; made at its first packet."""
        found = self.engines.get(ends.id)
        if found is None:
            if self._interfaces is None:
                whole = self._maps.whole.topology
                self._interfaces = {e.address: e.interface for e in whole.neighbours(self.node)}
            config = ForwarderConfig(
                node=self.node,
                guest=len(self.engines) + 1 & 0xFFFF,
                connection=ends.id,
                source_node=ends.source,
                destination_node=ends.destination,
                protocol=ends.protocol if self.node == ends.source else None,
                interfaces=self._interfaces,
            )
            found = self.engines[ends.id] = Forwarder(config, self.table)
            self.ready_us[ends.id] = now_us + spawn_us
            for address in self.dead:
                found.neighbour_down(address)
        return found

    def neighbour(self, address: str, link: int, *, dead: bool) -> None:
        """Tell all guests that a neighbour is dead, or back."""
        if dead:
            self.dead[address] = link
        else:
            self.dead.pop(address, None)
        for engine in self.engines.values():
            (engine.neighbour_down if dead else engine.neighbour_up)(address)
