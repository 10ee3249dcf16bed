"""Many forwarders joined in memory: one virtual host per node, one engine per connection and host.

Owns: VirtualNetwork and its wirings. May import: fabric.routing, fabric.wire. Time is a number that
only grows; loss, reordering and delay come from a seeded generator.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from fabric.routing.actions import Actions
from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.table import ForwardingTable, NextHop
from fabric.routing.topology import Topology

Paths = dict[tuple[int, int, int], tuple[int, ...]]
"""(node, destination, protocol) → neighbours of equal cost."""

LINK_US = 1000
"""Least time a link takes, µs."""


class Wiring(Protocol):
    """Which address is whose."""

    def arrival(self, sender: int, address: str) -> tuple[int, str]:
        """(receiving node, the sender's address as it sees it)."""

    def interfaces(self, node: int) -> dict[str, int]:
        """Neighbours' addresses as a node sees them → its interface ids."""


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


@dataclass(frozen=True)
class EveryPair:
    """Any node can reach any other: for tables made of next hops alone."""

    nodes: int

    def arrival(self, sender: int, address_: str) -> tuple[int, str]:
        """See Wiring."""
        peer = int(address_.partition(".")[0])
        return peer, address(peer, sender)

    def interfaces(self, node: int) -> dict[str, int]:
        """See Wiring."""
        return {address(node, peer): peer for peer in range(1, self.nodes + 1)}


@dataclass(frozen=True)
class Links:
    """The links of a topology."""

    topology: Topology

    def arrival(self, sender: int, address_: str) -> tuple[int, str]:
        """See Wiring."""
        for end in self.topology.neighbours(sender):
            if end.address == address_:
                return end.node, end.local_address
        raise AssertionError(f"node {sender} has no neighbour at {address_}")

    def interfaces(self, node: int) -> dict[str, int]:
        """See Wiring."""
        return {end.address: end.interface for end in self.topology.neighbours(node)}


@dataclass
class Connection:
    """Who talks to whom, by which protocol."""

    id: int
    source: int
    destination: int
    protocol: int
    reply_protocol: int | None = None


@dataclass
class VirtualNetwork:
    """Deliver what forwarders send. ``lost`` counts what links and dead hosts dropped."""

    tables: Mapping[int, ForwardingTable]
    rng: Random
    loss: float = 0.0
    wiring: Wiring | None = None
    """None: any node reaches any other."""
    jitter_us: int = 5000
    lost: int = 0
    now_us: int = 1_700_000_000_000_000
    delivered: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(node, connection id, inner packet)"""
    seen: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(node, connection id) → datagrams that arrived there."""
    delivered_at_us: int = 0
    """When the newest of them was."""
    dead: set[int] = field(default_factory=set)
    engines: dict[tuple[int, int], Forwarder] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    _dying: set[int] = field(default_factory=set)
    _flight: list[tuple[int, int, int, int, bytes, str]] = field(default_factory=list)
    _awake: set[tuple[int, int]] = field(default_factory=set)
    """Engines that may have a timer running."""
    _ticket: int = 0

    def __post_init__(self) -> None:
        self._wiring = self.wiring or EveryPair(len(self.tables))

    @classmethod
    def of(
        cls, topology: Topology, known: Mapping[int, ForwardingTable], rng: Random
    ) -> VirtualNetwork:
        """The hosts and links of a topology."""
        return cls(known, rng, wiring=Links(topology))

    def engine(self, node: int, connection: int) -> Forwarder:
        """The engine of a connection at a host; made at its first packet, as guests are."""
        key = (node, connection)
        if key not in self.engines:
            known = self.connections[connection]
            ingress = node == known.source
            config = ForwarderConfig(
                node=node,
                guest=len(self.engines) + 1,
                connection=connection,
                source_node=known.source,
                destination_node=known.destination,
                protocol=known.protocol if ingress else None,
                spawn_ms=self.rng.randrange(1000),
                interfaces=self._wiring.interfaces(node),
                reply_protocol=known.reply_protocol if ingress else None,
            )
            self.engines[key] = Forwarder(config, self.tables[node])
            for dead in self.dead:
                self.engines[key].neighbour_down(dead)
        return self.engines[key]

    def send(self, connection: Connection, inners: list[bytes], *, reply: bool = False) -> None:
        """A burst from one end's application."""
        self.connections[connection.id] = connection
        node = connection.destination if reply else connection.source
        engine = self.engine(node, connection.id)
        self._perform(node, connection.id, engine.from_application(inners, self.now_us))

    def run(self) -> None:
        """Until nothing is in flight and nobody waits for anything."""
        while (due := self._due()) or self._flight:
            if due and (not self._flight or due[0] <= self._flight[0][0]):
                at, node, connection = due
                self.now_us = max(self.now_us, at)
                actions = self.engines[node, connection].handle_timer(self.now_us)
                self._perform(node, connection, actions)
                continue
            self.now_us, _, node, connection, datagram, sender = heapq.heappop(self._flight)
            self.seen[node, connection] += 1
            engine = self.engine(node, connection)
            self._perform(node, connection, engine.from_underlay([(datagram, sender)], self.now_us))

    def kill(self, node: int, *, tell: bool = False) -> None:
        """A host dies; ``tell``: its neighbours notice, now and in engines made later."""
        self._dying.add(node)
        if tell:
            self.dead.add(node)
            for engine in self.engines.values():
                engine.neighbour_down(node)

    def revive(self, node: int) -> None:
        """It is back, and everybody beside it knows."""
        self._dying.discard(node)
        self.dead.discard(node)
        for engine in self.engines.values():
            engine.neighbour_up(node)

    def drops(self) -> int:
        """Packets counted as lost by all engines."""
        return sum(
            count
            for engine in self.engines.values()
            for name, count in engine.counters.items()
            if name.startswith("drop_")
        )

    def total(self, counter: str) -> int:
        """A counter, summed over all engines."""
        return sum(engine.counters.get(counter, 0) for engine in self.engines.values())

    def _due(self) -> tuple[int, int, int] | None:
        timers = []
        for node, connection in list(self._awake):
            at = self.engines[node, connection].next_timer()
            if at is None:
                self._awake.discard((node, connection))
            else:
                timers.append((at, node, connection))
        return min(timers, default=None)

    def _perform(self, node: int, connection: int, actions: Actions) -> None:
        self._awake.add((node, connection))
        actions.stamp(self.rng.randrange(500))
        if actions.deliveries:
            self.delivered_at_us = self.now_us
        self.delivered += [(node, connection, bytes(inner)) for inner in actions.deliveries]
        for batch in actions.batches:
            peer, sender = self._wiring.arrival(node, batch.address)
            for datagram in batch.datagrams():
                if peer in self._dying or self.rng.random() < self.loss:
                    self.lost += 1
                    continue
                self._ticket += 1
                arrival = self.now_us + LINK_US + self.rng.randrange(self.jitter_us)
                item = (arrival, self._ticket, peer, connection, datagram, sender)
                heapq.heappush(self._flight, item)
