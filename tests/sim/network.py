"""Many forwarders joined in memory: one virtual host per node, one engine per connection and host.

Owns: VirtualNetwork. May import: fabric.routing, fabric.wire. Time is a number that only grows;
loss, reordering and delay come from a seeded generator.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from random import Random

from fabric.routing.actions import Actions
from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.table import ForwardingTable, NextHop

Paths = dict[tuple[int, int, int], tuple[int, ...]]
"""(node, destination, protocol) → neighbours of equal cost."""


def address(node: int, peer: int) -> str:
    """Underlay address of ``peer`` as ``node`` reaches it: unique per direction of a link."""
    return f"{peer}.{node}.0.1"


def tables(nodes: int, paths: Paths, mtu: int = 9000) -> dict[int, ForwardingTable]:
    """A table per node from its next hops."""
    entries: dict[int, dict[tuple[int, int], tuple[NextHop, ...]]] = {
        node: {} for node in range(1, nodes + 1)
    }
    for (node, destination, protocol), peers in paths.items():
        entries[node][destination, protocol] = tuple(
            NextHop(peer, address(node, peer), peer, mtu, 1) for peer in peers
        )
    return {node: ForwardingTable(node, 100 + node, routes) for node, routes in entries.items()}


@dataclass
class Connection:
    """Who talks to whom, by which protocol."""

    id: int
    source: int
    destination: int
    protocol: int


@dataclass
class VirtualNetwork:
    """Deliver what forwarders send. ``lost`` counts what the links dropped."""

    tables: dict[int, ForwardingTable]
    rng: Random
    loss: float = 0.0
    lost: int = 0
    now_us: int = 1_700_000_000_000_000
    delivered: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(node, connection id, inner packet)"""
    engines: dict[tuple[int, int], Forwarder] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    _flight: list[tuple[int, int, int, int, bytes, int]] = field(default_factory=list)
    _ticket: int = 0

    def engine(self, node: int, connection: int) -> Forwarder:
        """The engine of a connection at a host; made at its first packet, as guests are."""
        key = (node, connection)
        if key not in self.engines:
            known = self.connections[connection]
            config = ForwarderConfig(
                node=node,
                guest=len(self.engines) + 1,
                connection=connection,
                source_node=known.source,
                destination_node=known.destination,
                protocol=known.protocol if node == known.source else None,
                spawn_ms=self.rng.randrange(1000),
                interfaces={address(node, peer): peer for peer in self.tables},
            )
            self.engines[key] = Forwarder(config, self.tables[node])
        return self.engines[key]

    def send(self, connection: Connection, inners: list[bytes], *, reply: bool = False) -> None:
        """A burst from one end's application."""
        self.connections[connection.id] = connection
        node = connection.destination if reply else connection.source
        engine = self.engine(node, connection.id)
        self._perform(node, connection.id, engine.from_application(inners, self.now_us))

    def run(self) -> None:
        """Until nothing is in flight."""
        while self._flight:
            self.now_us, _, node, connection, datagram, sender = heapq.heappop(self._flight)
            engine = self.engine(node, connection)
            burst = [(datagram, address(node, sender))]
            self._perform(node, connection, engine.from_underlay(burst, self.now_us))

    def drops(self) -> int:
        """Packets counted as lost by all engines."""
        return sum(
            count
            for engine in self.engines.values()
            for name, count in engine.counters.items()
            if name.startswith("drop_")
        )

    def _perform(self, node: int, connection: int, actions: Actions) -> None:
        actions.stamp(self.rng.randrange(500))
        self.delivered += [(node, connection, bytes(inner)) for inner in actions.deliveries]
        for batch in actions.batches:
            peer = int(batch.address.partition(".")[0])
            for datagram in batch.datagrams():
                if self.rng.random() < self.loss:
                    self.lost += 1
                    continue
                self._ticket += 1
                arrival = self.now_us + 1000 + self.rng.randrange(5000)
                item = (arrival, self._ticket, peer, connection, datagram, node)
                heapq.heappush(self._flight, item)
