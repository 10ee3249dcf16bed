"""What agents tell their host, folded into the connection records and the event log.

Owns: the meaning of agent messages on the host; decoding of traces into what people read. May
import: wire, routing, host.control.connections, host.events.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar, cast

from fabric.errors import GuestFault, WireError
from fabric.host.control.connections import Connection, ConnectionTable, State
from fabric.host.control.ports import Clock
from fabric.host.events import EventLog, iso
from fabric.host.guest.guest import Guest, unless_lost
from fabric.routing.topology import Topology
from fabric.wire.control import AgentEvent, Align, ClockReading, Counters, Query, Traces
from fabric.wire.packet import FLAG_REPLY, Packet

CLOCK_SAMPLES = 4
# An agent that is alive answers a question in a few ms, under emulation and load in some 100 ms.
ANSWER_DEADLINE = 3.0


_Answer = TypeVar("_Answer")


class GuestMessages:
    """Receives every message of every agent on this host."""

    def __init__(
        self, connections: ConnectionTable, topology: Topology, events: EventLog, clock: Clock
    ) -> None:
        self._connections = connections
        self._topology = topology
        self._events = events
        self._clock = clock
        self._answers: dict[tuple[int, type], asyncio.Future[Any]] = {}

    def on_ready(self, connection: Connection, guest: Guest) -> None:
        """The agent has selected the protocol (step d) and waits for packets."""
        ready = guest.ready
        if ready is None:
            return
        connection.protocol = ready.protocol
        connection.protocol_name = ready.protocol_name
        connection.need, connection.rule, connection.reason = ready.need, ready.rule, ready.reason
        connection.spawn_ms = ready.spawn_ms
        self._events.emit(
            "agent-ready", connection.label, guest=guest.name, spawn_ms=ready.spawn_ms
        )
        self._events.emit(
            "selected",
            connection.label,
            protocol=ready.protocol,
            protocol_name=ready.protocol_name,
            need=ready.need,
            rule=ready.rule,
            reason=ready.reason,
        )

    def on_message(self, guest: Guest, message: object) -> None:
        """Anything an agent says after it is ready."""
        connection = self._connections.by_id(guest.connection)
        if connection is None or connection.guest not in (None, guest):
            return
        if isinstance(message, Counters):
            self._on_counters(connection, message)
        elif isinstance(message, Traces):
            for line in message.traces:
                self._on_trace(connection, line)
        elif isinstance(message, AgentEvent):
            self._events.emit(
                message.name, connection.label, **{"guest": guest.name, **message.fields}
            )
        waiting = self._answers.get((connection.id, type(message)))
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _on_counters(self, connection: Connection, message: Counters) -> None:
        before = connection.counters
        packets = ("packets_in", "packets_out")
        if any(message.counters.get(k, 0) != before.get(k, 0) for k in packets):
            connection.last_active = self._clock.monotonic()
        connection.counters = dict(message.counters)
        connection.closing = message.closing

    def _on_trace(self, connection: Connection, line: str) -> None:
        try:
            packet = Packet.parse_trace(bytes.fromhex(line))
        except (ValueError, WireError):
            self._events.counts["malformed-trace"] += 1
            return
        key = (bool(packet.header.flags & FLAG_REPLY), packet.header.sequence)
        connection.remember_trace(key, self.trace_view(connection, packet))

    def trace_view(self, connection: Connection, packet: Packet) -> dict[str, Any]:
        """One packet's trace as the API gives it."""
        header = packet.header
        known = self._topology.protocol_names
        name = self._topology.name_of
        return {
            "connection": connection.label,
            "protocol": header.protocol,
            "protocol_name": known.get(header.protocol, str(header.protocol)),
            "source": name(header.source),
            "destination": name(header.destination),
            "sequence": header.sequence,
            "reply": bool(header.flags & FLAG_REPLY),
            "flags": header.flag_names(),
            "treatment": header.treatment,
            "path_number": header.path_number,
            "hops": [
                {
                    "host": name(record.node),
                    "guest": f"g{record.guest}",
                    "received_at": iso(record.received_at_us),
                    "received_at_us": record.received_at_us,
                    "residence_us": record.residence_us,
                    "queue": record.queue_depth,
                    "table_version": record.table_version,
                    "spawn_ms": record.spawn_ms,
                    "ingress_interface": record.ingress_interface,
                    "egress_interface": record.egress_interface,
                }
                for record in packet.records
            ],
        }

    async def refresh(self, connection: Connection, last: int = 256) -> None:
        """Ask the agent for its counters and newest traces; an agent that is gone adds nothing."""
        guest = connection.guest
        if guest is None or connection.state is not State.ESTABLISHED:
            return
        try:
            await self._ask(connection, guest, Query(what="counters", last=0), Counters)
            await self._ask(connection, guest, Query(what="traces", last=last), Traces)
        except (TimeoutError, GuestFault, OSError):
            self._events.emit("agent-silent", connection.label, guest=guest.name)

    async def align(self, connection: Connection) -> None:
        """Set the agent's clock as closely as the channel allows.

        Configure set it by its arrival, which is late by the way through the channel and the
        guest's wake-up. Of a few questions the one answered soonest has the least of both (RFC
        5905, section 10: the clock filter); half its round trip is the error that stays.
        """
        guest = connection.guest
        if guest is None:
            return
        samples: list[tuple[int, int]] = []
        try:
            for _ in range(CLOCK_SAMPLES):
                sent = self._clock.unix_us()
                answer = await self._ask(connection, guest, Query(what="clock"), ClockReading)
                received = self._clock.unix_us()
                samples.append((received - sent, (sent + received) // 2 - answer.now_us))
            round_trip_us, delta_us = min(samples)
            guest.send(Align(delta_us=delta_us))
        except (TimeoutError, GuestFault, OSError):
            self._events.emit("agent-silent", connection.label, guest=guest.name)
            return
        fields = {"delta_us": delta_us, "round_trip_us": round_trip_us}
        self._events.emit("clock-aligned", connection.label, guest=guest.name, **fields)

    async def _ask(
        self, connection: Connection, guest: Guest, query: Query, answer: type[_Answer]
    ) -> _Answer:
        """The answer to a question. Raises TimeoutError, GuestFault (also when the guest ends)."""
        key = (connection.id, answer)
        if (waiting := self._answers.get(key)) is None:
            waiting = self._answers[key] = asyncio.get_running_loop().create_future()
        guest.send(query)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE):
                return cast(_Answer, await unless_lost(guest, asyncio.shield(waiting)))
        finally:
            self._answers.pop(key, None)
