"""How the orchestrator shows itself: the documents of its HTTP API.

Owns: the shapes (pydantic models, and so the OpenAPI document) and their filling. May import:
routing, host. Reads; never changes anything.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fabric.host.control.connections import Connection
from fabric.host.control.history import Recorded
from fabric.host.control.orchestrator import Orchestrator
from fabric.host.control.topology_keeper import TopologyKeeper
from fabric.host.events import iso
from fabric.host.guest.guests import Guest
from fabric.host.upkeep.reaper import Action
from fabric.routing.choice import choose
from fabric.routing.topology import Topology


class Status(BaseModel):
    lab: str
    host: str
    node: int
    pid: int
    started_at: str
    version: str
    table_version: int
    guests: int
    connections: int
    tier: str
    kept_ready: dict[str, int]
    preparing: str
    """What is being done before guests of that tier can be had; empty when nothing is."""
    acceleration: dict[str, Any]
    limits: dict[str, Any]
    protocols: list[str]
    overlay_addresses: list[str]
    refused_packets: dict[str, int]
    """Of guests, by cause; see fabric.host.network.guard."""


class ConnectionView(BaseModel):
    id: str
    state: str
    role: str
    protocol: int | None
    protocol_name: str
    need: str
    rule: str
    reason: str
    flow: dict[str, Any] | None
    application: dict[str, Any] | None
    guest: str | None
    guest_address: str | None
    guest_mac: str | None
    guest_host_key: str | None
    guest_key_digest: str | None
    """Of its connection's key, once its agent was asked (which it is when it is quiet)."""
    tap: str | None
    source_node: str
    destination_node: str
    created_at: str
    created_at_us: int
    spawn_ms: float | None
    phases: dict[str, float]
    closing: bool
    counters: dict[str, int]
    traces: int


class GuestView(BaseModel):
    name: str
    index: int
    address: str
    mac: str
    tap: str
    connection: str
    state: str
    spawn_ms: float | None
    phases: dict[str, float]


class LinkView(BaseModel):
    """One link of this host as its watch sees it; see fabric.host.links.prober.Standing."""

    neighbour: str
    interface: int
    address: str
    up: bool | None
    """None: not known yet, taken for what the topology says."""
    state: str
    diagnostic: str
    carrier: bool
    since: str
    rtt_us: int | None
    delay_us: int | None
    least_us: int | None
    jitter_us: int | None
    loss: float | None
    used_bps: int | None
    available_bps: int | None
    interval_us: int
    detection_us: int
    published: dict[str, Any]
    """What this host tells the others of it."""


class LinksView(BaseModel):
    host: str
    watched: bool
    """False: the link watch is gone, and this is what it said last."""
    load: float | None
    links: list[LinkView]


class Hop(BaseModel):
    host: str
    address: str
    interface: int
    metric: int


class Route(BaseModel):
    destination: int
    destination_host: str
    protocol: int
    protocol_name: str
    next_hops: list[Hop]
    table_version: int


class Explanation(BaseModel):
    connection: str
    host: str
    role: str
    facts: dict[str, Any] | None
    selection: dict[str, Any]
    table: dict[str, Any]
    next_hop: Hop | None


class TableVersion(BaseModel):
    version: int
    since: str
    nodes: int
    links: int


class TableDocument(BaseModel):
    version: int
    since: str
    host: str
    node: int
    topology: dict[str, Any]
    table: dict[str, Any]


class ActionView(BaseModel):
    verb: str
    what: str
    why: str


def table_version(recorded: Recorded) -> TableVersion:
    topology = recorded.topology
    return TableVersion(
        version=recorded.version,
        since=iso(recorded.since_us),
        nodes=len(topology.nodes),
        links=len(topology.links),
    )


def table_document(recorded: Recorded, host: str, destination: int = 0) -> TableDocument:
    """``destination``: only the rows to this node; 0: all."""
    table = recorded.table
    return TableDocument(
        version=recorded.version,
        since=iso(recorded.since_us),
        host=host,
        node=table.node,
        topology=recorded.topology.to_json(),
        table=table.to_json((destination,) if destination else None),
    )


def action_view(action: Action) -> ActionView:
    return ActionView(verb=action.verb.value, what=action.what, why=action.why)


def connection_view(connection: Connection, topology: Topology) -> ConnectionView:
    guest = connection.guest
    identity = guest.identity if guest else None
    return ConnectionView(
        id=connection.label,
        state=connection.state.value,
        role=connection.role.value,
        protocol=connection.protocol,
        protocol_name=connection.protocol_name,
        need=connection.need,
        rule=connection.rule,
        reason=connection.reason,
        flow=connection.flow.to_json() if connection.flow else None,
        application=connection.facts.to_json() if connection.facts else None,
        guest=guest.name if guest else None,
        guest_address=str(identity.address) if identity else None,
        guest_mac=identity.mac if identity else None,
        guest_host_key=guest.host_key.line if guest and guest.host_key else None,
        guest_key_digest=guest.key_digest or None if guest else None,
        tap=identity.tap if identity else None,
        source_node=topology.name_of(connection.source_node),
        destination_node=topology.name_of(connection.destination_node),
        created_at=iso(connection.requested_at_us),
        created_at_us=connection.requested_at_us,
        spawn_ms=connection.spawn_ms,
        phases=dict(guest.phases) if guest else {},
        closing=connection.closing,
        counters=connection.counters,
        traces=len(connection.traces),
    )


def guest_view(guest: Guest, connection: Connection) -> GuestView:
    return GuestView(
        name=guest.name,
        index=guest.index,
        address=str(guest.identity.address),
        mac=guest.identity.mac,
        tap=guest.identity.tap,
        connection=connection.label,
        state=guest.state.value,
        spawn_ms=connection.spawn_ms,
        phases=dict(guest.phases),
    )


def links_view(keeper: TopologyKeeper, host: str) -> LinksView:
    told = {at: link.to_json() for at, link in keeper.report.links.items()}
    views = [
        LinkView(
            **{
                **link,
                "neighbour": keeper.topology.name_of(link["neighbour"]),
                "since": iso(link["since_us"]),
                "published": told.get(link["interface"], {}),
            }
        )
        for link in keeper.standings
    ]
    return LinksView(host=host, watched=keeper.watched, load=keeper.report.load, links=views)


def routes(orchestrator: Orchestrator, protocol: str = "") -> list[Route]:
    """The table, ordered by destination and protocol; ``protocol`` narrows it by name."""
    table, topology = orchestrator.table, orchestrator.topology
    found = []
    for (destination, number), hops in sorted(table.entries.items()):
        name = topology.protocol_names.get(number, str(number))
        if protocol and protocol != name:
            continue
        found.append(
            Route(
                destination=destination,
                destination_host=topology.name_of(destination),
                protocol=number,
                protocol_name=name,
                next_hops=[_hop(hop, topology) for hop in hops],
                table_version=table.version,
            )
        )
    return found


def explanation(connection: Connection, orchestrator: Orchestrator) -> Explanation:
    """Facts → policy line → protocol → table entry → next hop, at this host."""
    table, topology = orchestrator.table, orchestrator.topology
    protocol = connection.protocol
    toward = connection.destination_node
    hops = () if protocol is None else table.lookup(toward, protocol)
    chosen = choose(hops, connection.id, table.node) if hops else None
    return Explanation(
        connection=connection.label,
        host=orchestrator.config.host,
        role=connection.role.value,
        facts=connection.facts.to_json() if connection.facts else None,
        selection={
            "rule": connection.rule,
            "need": connection.need,
            "protocol": protocol,
            "protocol_name": connection.protocol_name,
            "reason": connection.reason,
        },
        table={
            "version": table.version,
            "destination": topology.name_of(toward),
            "entry": [_hop(hop, topology).model_dump() for hop in hops],
        },
        next_hop=_hop(chosen, topology) if chosen else None,
    )


def _hop(hop: Any, topology: Topology) -> Hop:
    return Hop(
        host=topology.name_of(hop.node),
        address=hop.address,
        interface=hop.interface,
        metric=hop.metric,
    )
