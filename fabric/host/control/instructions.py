"""What the orchestrator tells an agent, and what it tells an application it must turn away.

Owns: filling ``Configure``; wrapping refusals. May import: wire, routing, host. Pure.
"""

from __future__ import annotations

from fabric.host.config import HostConfig
from fabric.host.control.connections import Connection, HeldPacket, Role
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.wire.control import Configure
from fabric.wire.inner import refusal
from fabric.wire.packet import (
    DEFAULT_HOP_LIMIT,
    FLAG_REPLY,
    PAYLOAD_ANNOUNCE,
    PAYLOAD_IPV4,
    PAYLOAD_IPV6,
    SEQUENCES_PER_MS,
    Header,
    Packet,
)

SEQUENCE_EPOCH_US = 1_704_067_200_000_000
"""2024-01-01, Unix µs."""


def first_sequence(now_us: int) -> int:
    """The first sequence number of a guest that is configured now: above those of every earlier
    guest of its connection, whatever became of that one and of those who knew it."""
    return max(0, now_us - SEQUENCE_EPOCH_US) // 1000 * SEQUENCES_PER_MS + 1


def instructions(
    config: HostConfig,
    topology: Topology,
    table: ForwardingTable,
    connection: Connection,
    guest: int,
    now_us: int,
    first: tuple[bytes, ...] = (),
    notice_key: bytes = b"",
    down: tuple[str, ...] = (),
) -> Configure:
    """What the agent of guest number ``guest`` is told about itself, its connection, its host.
    ``first``: inner packets it is to send on at once; ``notice_key`` and ``down``: see
    fabric.wire.notice."""
    ingress = connection.role is Role.INGRESS
    # The connection's own rows: an agent decides for nobody else.
    ends = (connection.source_node, connection.destination_node)
    return Configure(
        connection=connection.id,
        lab=config.lab,
        host=config.host,
        node=config.node,
        guest=guest,
        role=connection.role.value,
        facts=connection.facts.to_json() if connection.facts else None,
        policy=config.policy if ingress else None,
        protocol=None if ingress else connection.protocol,
        table=table.to_json(ends),
        interfaces={hop.address: hop.interface for hop in topology.neighbours(config.node)},
        port=config.port,
        overlay_mtu=config.overlay_mtu,
        requested_at_us=connection.requested_at_us,
        host_now_us=now_us,
        source_node=connection.source_node,
        destination_node=connection.destination_node,
        first=[packet.hex() for packet in first],
        first_sequence=first_sequence(now_us),
        notice_key=notice_key.hex(),
        down=list(down),
    )


def wrapped_refusal(held: HeldPacket, node: int) -> bytes | None:
    """The refusal of a datagram's inner packet as a fabric packet back to its source.

    To the application it is as if the far end had answered with a reset or an ICMP error.
    """
    packet = Packet.parse(held.data)
    header = packet.header
    if header.payload_type == PAYLOAD_ANNOUNCE:
        return None
    answer = refusal(packet.payload)
    if answer is None:
        return None
    back = Header(
        flags=(header.flags & FLAG_REPLY) ^ FLAG_REPLY,
        protocol=header.protocol,
        hop_limit=DEFAULT_HOP_LIMIT,
        payload_length=len(answer),
        hop_count=0,
        payload_type=PAYLOAD_IPV6 if answer[0] >> 4 == 6 else PAYLOAD_IPV4,
        connection=header.connection,
        source=node,
        destination=header.source,
        sequence=0,
    )
    return Packet(back, answer).encode()
