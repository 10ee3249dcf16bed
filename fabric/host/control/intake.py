"""Packets nobody steers: what each of them is the beginning, the rest or the end of.

Owns: telling new connections from known and ended ones. May import: errors, wire, routing, and its
neighbours in host; nothing here touches the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fabric.errors import WireError
from fabric.host.control.announcer import Announcement
from fabric.host.control.connections import Connection, HeldPacket, Role
from fabric.host.control.orchestrator import Orchestrator
from fabric.routing.policy import ApplicationFacts, select
from fabric.wire.inner import FiveTuple, begins_connection, embedded_flow, parse_flow
from fabric.wire.packet import FLAG_REPLY, PAYLOAD_ANNOUNCE, Packet

log = logging.getLogger(__name__)


class Intake:
    """One per host. All methods run on the event loop's thread."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        find_facts: Callable[[FiveTuple, bytes], ApplicationFacts],
        first_serial: int,
    ) -> None:
        """``first_serial``: random start of the low half of connection ids, 0 … 2^32-1, so that
        ids of a restarted orchestrator do not meet those of its former life."""
        self._lives = orchestrator
        self._find_facts = find_facts
        self._serial = first_serial
        self._config, self._clock = orchestrator.config, orchestrator.clock
        self._events = orchestrator.events
        neighbours = orchestrator.topology.neighbours(self._config.node)
        self._neighbours = {hop.address for hop in neighbours}

    # -- packets from this host's applications -------------------------------------------------

    def on_miss(self, packets: list[tuple[bytes, FiveTuple | None]]) -> None:
        """Packets no steering rule knows, in order, each with the flow it belongs to."""
        for packet, flow in packets:
            if flow is None:
                self._on_unflowed(packet)
                continue
            held = HeldPacket(packet)
            if (connection := self._lives.connections.by_flow(flow)) is not None:
                self._lives.carry(connection, held)
            elif self._lives.connections.said_goodbye(flow) and not begins_connection(packet):
                # A last FIN sent again, a reset: no reason to boot a guest.
                self._events.counts["late-packet"] += 1
            else:
                self._request(flow, held)

    def _on_unflowed(self, packet: bytes) -> None:
        """An ICMP error about a known flow goes with that flow; the rest is not ours to carry."""
        about = embedded_flow(packet)
        connection = self._lives.connections.by_flow(about.reversed()) if about else None
        if connection is not None:
            self._lives.carry(connection, HeldPacket(packet))
        else:
            self._events.counts["unclassified-packet"] += 1

    def _request(self, flow: FiveTuple, held: HeldPacket) -> None:
        """Step (a): an application asks for a connection this host has never seen."""
        now_us = self._clock.unix_us()
        node = self._config.node
        connection = Connection(
            id=self._next_id(),
            role=Role.INGRESS,
            source_node=node,
            destination_node=0,
            requested_at_us=now_us,
            flow=flow,
        )
        self._events.emit("request", connection.label, flow=flow.to_json())
        connection.facts = facts = self._find_facts(flow, held.data)
        self._events.emit("facts", connection.label, facts=facts.to_json())
        choice = select(self._lives.policy, facts)
        connection.protocol = choice.protocol
        connection.protect = self._config.protect or self._lives.policy.protects(facts)
        destination = self._lives.topology.node_for(flow.destination)
        if destination is None or destination == node:
            self._lives.refuse(connection, held, "no-route", f"no host owns {flow.destination}")
            return
        connection.destination_node = destination
        if not self._lives.table.lookup(destination, choice.protocol):
            why = f"no {choice.name} route from {self._config.host} to node {destination}"
            self._lives.refuse(connection, held, "no-route", why)
            return
        if self._lives.open(connection, held):
            self._lives.announce(connection)

    def _next_id(self) -> int:
        """Adopted connections keep the ids an earlier life gave them."""
        while True:
            self._serial = (self._serial + 1) % (1 << 32)
            if (
                self._lives.connections.by_id(number := self._config.node << 32 | self._serial)
                is None
            ):
                return number

    # -- datagrams from neighbours ---------------------------------------------------------------

    def on_underlay(self, datagrams: list[tuple[bytes, str]]) -> None:
        """Fabric packets of connections no steering rule knows, with the sender's address."""
        for data, upstream in datagrams:
            if upstream not in self._neighbours:
                self._events.counts["foreign-datagram"] += 1
                continue
            try:
                packet = Packet.parse(data)
            except WireError as exc:
                self._events.counts["malformed-datagram"] += 1
                log.debug("malformed datagram from %s: %s", upstream, exc)
                continue
            connection = self._lives.connections.by_id(packet.header.connection)
            if packet.header.payload_type == PAYLOAD_ANNOUNCE:
                self._on_announce(packet, upstream, connection)
            elif connection is not None:
                self._lives.carry(connection, HeldPacket(data, upstream))
            elif self._lives.connections.said_goodbye(packet.header.connection):
                self._events.counts["late-packet"] += 1
            else:
                self._on_arrival(packet, HeldPacket(data, upstream))

    def _on_arrival(self, packet: Packet, held: HeldPacket) -> None:
        """Step (g): a packet of a connection that other hosts opened reaches this one."""
        header = packet.header
        is_reply = bool(header.flags & FLAG_REPLY)
        if is_reply and header.destination == self._config.node:
            # The connection ended here while its last replies were under way.
            self._events.counts["stale-reply"] += 1
            return
        flow = parse_flow(bytes(packet.payload))
        flow = flow.reversed() if is_reply and flow else flow
        here, now_us = self._config.node, self._clock.unix_us()
        names = self._lives.topology.protocol_names
        connection = Connection.arrived(header, flow, here, now_us, names)
        self._events.emit(
            "arrival",
            connection.label,
            role=connection.role.value,
            upstream=held.upstream,
            flow=connection.flow.to_json() if connection.flow else None,
            protocol=header.protocol,
            destination=self._lives.topology.name_of(connection.destination_node),
        )
        self._lives.open(connection, held)

    def _on_announce(self, packet: Packet, upstream: str, connection: Connection | None) -> None:
        told = Announcement.decode(packet)
        if told is None:
            self._events.counts["malformed-datagram"] += 1
            return
        if connection is None and self._lives.connections.said_goodbye(packet.header.connection):
            # A host further up learned of another path before it learned of the end.
            self._events.counts["late-packet"] += 1
            return
        if connection is None:
            connection = self._announced(packet, upstream, told)
        elif told.again:
            connection.last_active = self._clock.monotonic()
        else:
            return
        reply = bool(packet.header.flags & FLAG_REPLY)
        if connection is not None and connection.role is Role.TRANSIT:
            hop_limit = packet.header.hop_limit - 1
            self._lives.announce(connection, hop_limit, told, reply=reply)

    def _announced(self, packet: Packet, upstream: str, told: Announcement) -> Connection | None:
        """A connection that is coming; None: not to this host."""
        here, now_us = self._config.node, self._clock.unix_us()
        names = self._lives.topology.protocol_names
        connection = Connection.arrived(packet.header, told.flow, here, now_us, names)
        if connection.source_node == here:
            return None  # it has ended here
        connection.protect = told.protect
        self._events.emit(
            "announcement",
            connection.label,
            role=connection.role.value,
            upstream=upstream,
            flow=told.flow.to_json() if told.flow else None,
            protocol=packet.header.protocol,
            destination=self._lives.topology.name_of(connection.destination_node),
        )
        if not self._lives.open(connection, None):
            return None
        if connection.role is Role.EGRESS and connection.protect:
            self._lives.announce(connection, reply=True)
        return connection
