"""Telling hosts ahead that a connection is coming, so that all its guests appear in parallel.

Owns: what an announcement says and where it goes. May import: errors, routing, wire, host. An
optimisation: every announcement may be lost, and the connection works, only slower.

An announcement follows the way its packets will take: the next host of the table, or the path the
first host chose for them. Of a protected connection it goes to the alternates as well, so that
guests are there when a neighbour dies; from a host on an alternate only its own way on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import WireError
from fabric.host.config import HostConfig
from fabric.host.control.connections import Connection, Role
from fabric.host.control.ports import Datapath
from fabric.host.events import EventLog
from fabric.routing.choice import choose
from fabric.routing.table import ForwardingTable, NextHop, Path
from fabric.routing.topology import Topology
from fabric.wire.inner import FiveTuple
from fabric.wire.packet import FLAG_REPLY, FLOODED, PAYLOAD_ANNOUNCE, Header, Packet


@dataclass(frozen=True)
class Announcement:
    """What the next host is told."""

    flow: FiveTuple | None
    """In forward sense."""
    path: tuple[int, ...] = ()
    """Hosts after that one, where its own table does not decide."""
    protect: bool = False
    """That host, too, is to announce the connection on its alternates."""
    again: bool = False
    """Only a sign that the connection still wants its guests."""

    def encode(self, connection: Connection, hop_limit: int, *, reply: bool = False) -> bytes:
        """The packet that says it. ``reply``: on the way back."""
        told: dict[str, Any] = {"flow": self.flow.to_json() if self.flow else None}
        told |= {"path": list(self.path)} if self.path else {}
        told |= {name: True for name in ("protect", "again") if getattr(self, name)}
        body = json.dumps(told).encode()
        ends = (connection.source_node, connection.destination_node)
        source, destination = ends[::-1] if reply else ends
        header = Header(
            flags=FLAG_REPLY if reply else 0,
            protocol=connection.protocol or 0,
            hop_limit=hop_limit,
            payload_length=len(body),
            hop_count=0,
            payload_type=PAYLOAD_ANNOUNCE,
            connection=connection.id,
            source=source,
            destination=destination,
            sequence=0,
        )
        return Packet(header, body).encode()

    @classmethod
    def decode(cls, packet: Packet) -> Announcement | None:
        """None when it cannot be read."""
        try:
            told = json.loads(packet.payload)
            flow = FiveTuple.from_json(told["flow"])
            path = tuple(int(node) for node in told.get("path", ()))
            flags = [bool(told.get(name, False)) for name in ("protect", "again")]
        except (ValueError, KeyError, TypeError, AttributeError, WireError):
            return None
        return cls(flow, path, *flags)


@dataclass
class Announcer:
    """One host's announcements."""

    config: HostConfig
    datapath: Datapath
    events: EventLog
    topology: Topology
    sent: set[tuple[int, str]] = field(default_factory=set)
    """(connection, next address) of connections that live: the same is said once."""

    def announce(
        self,
        connection: Connection,
        table: ForwardingTable,
        hop_limit: int,
        told: Announcement | None = None,
        *,
        reply: bool = False,
    ) -> None:
        """``told``: what this host was told itself; None: the connection begins here. ``reply``: on
        the way from its far end to its beginning."""
        if not self.config.announce or connection.protocol is None or hop_limit <= 0:
            return
        told = told or Announcement(connection.flow, protect=connection.protect)
        goal = connection.source_node if reply else connection.destination_node
        for way, aside in self._ways(connection, table, told, goal):
            key = (connection.id, way.hop.address)
            if key in self.sent and not told.again:
                continue
            self.sent.add(key)
            onward = Announcement(
                connection.flow, way.nodes[1:], told.protect and not aside, told.again
            )
            self.datapath.send(onward.encode(connection, hop_limit, reply=reply), way.hop.address)
            if not told.again:
                name = self.topology.name_of(way.hop.node)
                why = {"alternate": True} if aside else {}
                self.events.emit("announced", connection.label, next_hop=name, **why)

    def forget(self, connection: Connection) -> None:
        """The connection has ended here."""
        self.sent = {key for key in self.sent if key[0] != connection.id}

    def _ways(
        self, connection: Connection, table: ForwardingTable, told: Announcement, goal: int
    ) -> Iterator[tuple[Path, bool]]:
        """(way on, whether it is an alternate)."""
        here, protocol = self.config.node, connection.protocol
        assert protocol is not None  # checked by the caller
        if told.path:
            links = table.toward(told.path[0])
            if links:
                yield Path(choose(links, connection.id, here), told.path), False
            return
        treatment = table.treatment(protocol)
        if treatment is None or treatment == FLOODED:
            hops: tuple[NextHop, ...] = table.lookup(goal, protocol)
            if not hops:
                return
            chosen = hops if treatment == FLOODED else (choose(hops, connection.id, here),)
            yield from ((Path(hop), False) for hop in chosen)
        elif connection.role is not Role.TRANSIT:
            yield from ((path, False) for path in table.paths(goal, protocol))
        if told.protect and (around := table.alternate(goal, protocol)) is not None:
            yield around, True
