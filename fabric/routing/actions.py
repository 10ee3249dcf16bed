"""What the forwarder wants done: datagrams to send, packets to deliver, things to report.

Owns: RecordIdentity, Batch and Actions. May import: fabric.wire. Pure; travels into guests.

A datagram is three buffers, head, body and record, never joined here: the shell hands them to one
``sendmsg`` as they are. All packets of a burst that enter and leave by the same interfaces share
one *mutable* record, so that their residence time is written once, when the burst leaves.
"""

from __future__ import annotations

from fabric.wire.packet import MAX_U16, MAX_U32, RECORD, RESIDENCE, RESIDENCE_OFFSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fabric.wire.packet import Buffer

GSO_MAX_SEGMENTS = 64
"""Datagrams in one UDP_SEGMENT call: the kernel's UDP_MAX_SEGMENTS before 6.9."""
GSO_MAX_BYTES = 65507
"""Bytes in one UDP_SEGMENT call: the largest UDP payload over IPv4."""
PARTS = 3
"""Buffers per datagram."""


class RecordIdentity:
    """The parts of a hop record that do not change from packet to packet."""

    __slots__ = ("guest", "node", "node_bytes", "spawn_ms", "table_version")

    def __init__(self, node: int, guest: int, table_version: int, spawn_ms: int) -> None:
        self.node = node
        self.node_bytes = node.to_bytes(4, "big")
        self.guest = guest
        self.table_version = table_version
        self.spawn_ms = min(spawn_ms, MAX_U32)


class Batch:
    """Datagrams for one next hop, in order: ``size`` bytes each; the last may be shorter."""

    __slots__ = ("address", "buffers", "room", "size")

    def __init__(self, address: str, size: int) -> None:
        self.address = address
        self.size = size
        self.buffers: list[Buffer] = []
        self.room = max(1, min(GSO_MAX_SEGMENTS, GSO_MAX_BYTES // size))

    def __len__(self) -> int:
        return len(self.buffers) // PARTS

    def datagrams(self) -> list[bytes]:
        """Each datagram joined: for tests, simulation, and senders without UDP_SEGMENT."""
        parts = self.buffers
        return [b"".join(parts[i : i + PARTS]) for i in range(0, len(parts), PARTS)]


class Actions:
    """The outcome of one burst. Call :meth:`stamp` once, then perform, then forget."""

    __slots__ = (
        "_batch_of",
        "_records",
        "at_us",
        "bare",
        "batches",
        "copies",
        "deliveries",
        "events",
        "first_delivery",
        "identity",
        "octets",
        "packets",
        "queue_depth",
        "report",
    )

    def __init__(self, identity: RecordIdentity, at_us: int, queue_depth: int) -> None:
        self.identity = identity
        self.at_us = at_us
        self.queue_depth = min(queue_depth, MAX_U16)
        self.batches: list[Batch] = []
        self.deliveries: list[Buffer] = []
        """Inner packets for the application of this host; views into the received buffers."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.first_delivery = False
        """A direction's first packet is among the deliveries: its trace is news."""
        self.report = False
        """Counters are due."""
        self.packets = self.octets = self.bare = self.copies = 0
        """Datagrams sent, their bytes, how many of them got no record here, and how many repeat
        another one."""
        self._batch_of: dict[str, Batch] = {}
        self._records: dict[int, bytearray] = {}

    def record(self, interfaces: int) -> bytearray:
        """The record shared by this burst's packets of one (ingress << 16 | egress) pair."""
        record = self._records.get(interfaces)
        if record is None:
            who = self.identity
            record = self._records[interfaces] = bytearray(RECORD.size)
            RECORD.pack_into(
                record,
                0,
                who.node,
                who.guest,
                interfaces >> 16,
                interfaces & MAX_U16,
                self.at_us,
                0,  # residence: see stamp
                self.queue_depth,
                who.table_version,
                who.spawn_ms,
            )
        return record

    def send(self, address: str, size: int, head: bytes, body: Buffer, record: Buffer) -> None:
        """Append a datagram of ``size`` bytes to the batch for ``address``, in order."""
        batch = self._batch_of.get(address)
        if batch is None or batch.room == 0 or size > batch.size:
            batch = self._batch_of[address] = Batch(address, size)
            self.batches.append(batch)
        batch.buffers += (head, body, record)
        # A shorter datagram ends a segmented send.
        batch.room = 0 if size < batch.size else batch.room - 1
        self.packets += 1
        self.octets += size

    def stamp(self, residence_us: int) -> None:
        """Write the time between reading and sending this burst, µs, into its records."""
        for record in self._records.values():
            RESIDENCE.pack_into(record, RESIDENCE_OFFSET, min(max(residence_us, 0), MAX_U32))
