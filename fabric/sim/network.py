"""Hosts joined by links: packets on their way, from engine to engine.

Owns: Network. May import: routing, sim.

A link takes its latency. What is on a link when it dies is lost, and so is what is sent to a host
that is dead. Bandwidth and random loss do not count: what is lost here, a failure took.
"""

from __future__ import annotations

from functools import partial
from random import Random

from fabric.routing.actions import Actions
from fabric.routing.forwarder import Forwarder
from fabric.routing.topology import Topology
from fabric.sim.clock import Clock
from fabric.sim.control import Control
from fabric.sim.hosts import Host
from fabric.sim.maps import Maps
from fabric.sim.settings import Settings
from fabric.sim.streams import Path, Stream, packet, sequence_of

EPOCH_US = 1_700_000_000_000_000
"""Unix time at the beginning, as engines want to know it."""


class Network:
    """See the module docstring."""

    def __init__(self, topology: Topology, settings: Settings, rng: Random) -> None:
        self.topology = topology
        self.clock = Clock()
        self.maps = Maps(topology)
        protocols = {each.id: each for each in settings.protocols}
        self.hosts = {node.id: Host(node.id, self.maps, protocols) for node in topology.nodes}
        self.control = Control(topology, self.hosts, settings, self.clock, rng)
        self.lost_on_links = 0
        self.datagrams = 0
        """Sent over links."""
        self._settings = settings
        self._far: dict[str, tuple[int, int, str]] = {}
        """Address → (link, the host there, the sender's address as that host sees it)."""
        for number, link in enumerate(topology.links):
            self._far[link.b_address] = (number, link.b, link.a_address)
            self._far[link.a_address] = (number, link.a, link.b_address)
        self._timers: set[int] = set()

    def send(self, stream: Stream) -> None:
        """One packet from the stream's application, now."""
        host, now = self.hosts[stream.ends.source], self.clock.now_us
        sequence = len(stream.sent_us)
        stream.sent_us.append(now)
        if not host.alive:
            return
        engine = host.engine(stream.ends, now, 0)
        actions = engine.from_application([packet(sequence)], EPOCH_US + now)
        self._perform(host, stream, sequence, (), actions)

    def _perform(
        self, host: Host, stream: Stream, sequence: int, path: Path, actions: Actions
    ) -> None:
        actions.stamp(0)
        for inner in actions.deliveries:
            stream.delivered.setdefault(sequence_of(bytes(inner)), self.clock.now_us)
        for batch in actions.batches:
            number, there, sender = self._far[batch.address]
            latency = self.topology.links[number].latency_us
            for datagram in batch.datagrams():
                self.datagrams += 1
                if number in self.control.down:
                    self.lost_on_links += 1
                    continue
                arrival = partial(
                    self._arrive, there, stream, sequence, (*path, number), datagram, sender
                )
                self.clock.after(latency, arrival)

    def _arrive(
        self, node: int, stream: Stream, sequence: int, path: Path, datagram: bytes, sender: str
    ) -> None:
        host, now = self.hosts[node], self.clock.now_us
        if path[-1] in self.control.down or not host.alive:
            self.lost_on_links += 1
            return
        engine = host.engine(stream.ends, now, self._settings.spawn_us)
        ready = host.ready_us[stream.ends.id]
        if now < ready:  # held until the guest is there
            again = partial(self._arrive, node, stream, sequence, path, datagram, sender)
            self.clock.at(ready, again)
            return
        if node == stream.ends.destination:
            stream.arrived.setdefault(sequence, path)
        before = _ended(engine)
        actions = engine.from_underlay([(datagram, sender)], EPOCH_US + now)
        if (ended := _ended(engine)) != before:
            # At a host that found itself in the trace; or by the hop limit, which a way may also
            # meet by being long.
            stream.loops += ended[0] > before[0] or self._comes_back(stream.ends.source, path)
        self._perform(host, stream, sequence, path, actions)
        if stream.definition.calculation == "disperse" and node == stream.ends.destination:
            self._wait_for_order(host, stream)

    def _comes_back(self, source: int, path: Path) -> bool:
        """Whether a path passes a host twice."""
        passed = [source]
        for number in path:
            link = self.topology.links[number]
            passed.append(link.a + link.b - passed[-1])
        return len(set(passed)) < len(passed)

    def _wait_for_order(self, host: Host, stream: Stream) -> None:
        """Let the egress give up on packets that do not come."""
        due = host.engines[stream.ends.id].next_timer()
        if due is not None and stream.ends.id not in self._timers:
            self._timers.add(stream.ends.id)
            self.clock.at(due - EPOCH_US, partial(self._on_timer, host, stream))

    def _on_timer(self, host: Host, stream: Stream) -> None:
        self._timers.discard(stream.ends.id)
        actions = host.engines[stream.ends.id].handle_timer(EPOCH_US + self.clock.now_us)
        self._perform(host, stream, 0, (), actions)
        self._wait_for_order(host, stream)

    def drops(self, connections: frozenset[int]) -> dict[str, int]:
        """What engines of these connections counted as lost, by reason."""
        found: dict[str, int] = {}
        for host in self.hosts.values():
            for connection, engine in host.engines.items():
                if connection in connections:
                    for name, count in engine.counters.items():
                        if name.startswith("drop_") and count:
                            reason = name.removeprefix("drop_")
                            found[reason] = found.get(reason, 0) + count
        return dict(sorted(found.items()))


def _ended(engine: Forwarder) -> tuple[int, int]:
    """Packets it dropped because they had been there, or by their hop limit."""
    counters = engine.counters
    return counters.get("drop_loop", 0), counters.get("drop_hop_limit", 0)
