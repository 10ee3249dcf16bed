"""The forwarding engine of one guest: bursts in, actions out.

Owns: encapsulation, hop records, loop guards, next-hop choice, delivery.
May import: fabric.wire, fabric.routing. Pure: time comes in as an argument; no socket, no clock.

The same object runs in a guest, in unit tests, and by the hundred in one simulated network. It
serves exactly one connection, in both directions. Nothing raises on bytes from the network: every
packet is sent on, delivered, or counted under the reason of its loss.
"""

from __future__ import annotations

from fabric.routing.actions import Actions, RecordIdentity
from fabric.routing.choice import choose
from fabric.routing.ledger import TRACE_RING, Ledger
from fabric.routing.liveness import TcpLiveness
from fabric.wire.fact import Fact
from fabric.wire.packet import (
    DEFAULT_HOP_LIMIT,
    FIRST_BYTE,
    FLAG_AUTHENTICATED,
    FLAG_MTU,
    FLAG_OVERFLOW,
    FLAG_PATH,
    FLAG_REPLY,
    HEAD,
    HEADER,
    HEADER_LENGTHS,
    HEADER_SIZE,
    HEADER_SIZE_MAX,
    MAX_RECORDS,
    MAX_U16,
    PAYLOAD_OF_VERSION,
    RECORD_SIZE,
    UNDERLAY_OVERHEAD,
    VERSION_OF_PAYLOAD,
    WAY,
    WAY_OFFSET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fabric.routing.table import ForwardingTable, NextHop
    from fabric.routing.ways import Ways
    from fabric.wire.packet import Buffer

MAX_INNER = MAX_U16 - UNDERLAY_OVERHEAD - HEADER_SIZE - RECORD_SIZE
"""Bytes of the largest inner packet that one underlay datagram can carry with one record."""
NEXT_HOP_CACHE = 64
"""Entries remembered: a connection has two ends and one protocol; more keys are forged packets."""
_SPECIAL = FLAG_AUTHENTICATED | FLAG_PATH
"""Packets that do not simply follow the table: one test for all of them."""


class ForwarderConfig(Fact):
    """One connection as one host sees it."""

    node: int
    guest: int
    connection: int
    source_node: int
    destination_node: int
    protocol: int | None = None
    """Selected at the ingress; elsewhere what the packet or announcement said, or learned."""
    spawn_ms: int = 0
    interfaces: dict[str, int] = {}  # noqa: RUF012 - a fact is never mutated
    """Underlay address of a neighbour → our interface id towards it."""
    hop_limit: int = DEFAULT_HOP_LIMIT
    reply_protocol: int | None = None
    """For the direction back, where it shall be another one: known at the ingress, which tells the
    egress in its packets."""
    first_sequence: int = 1
    """Of the packets encapsulated here."""


class Forwarder:
    """See the module docstring. ``counters`` has the reasons of loss as ``drop_*``."""

    def __init__(self, config: ForwarderConfig, table: ForwardingTable) -> None:
        self.config = config
        self.protocol = config.protocol
        self._ledger = Ledger()
        self._tcp = TcpLiveness()
        self._sequence = config.first_sequence - 1
        self._next_hops: dict[tuple[int, int], NextHop | None] = {}
        self._down: frozenset[str] = frozenset()
        self._ways: Ways | None = None
        self._replies_by = config.reply_protocol
        self._reply_difference = 0
        if config.reply_protocol is not None and config.node == config.source_node:
            self._reply_difference = config.reply_protocol ^ (config.protocol or 0)
        self.install(table)

    def install(self, table: ForwardingTable) -> None:
        """Use another table from the next packet on."""
        config = self.config
        self._table = table
        self._next_hops.clear()
        self._identity = RecordIdentity(config.node, config.guest, table.version, config.spawn_ms)
        if self._ways is not None:
            self._ways.install(table, self._down)

    def neighbour_down(self, which: str | int) -> None:
        """Take the table's alternates to a neighbour, given by a link's address or its node id."""
        self.avoid(self._down | self._addresses(which))

    def neighbour_up(self, which: str | int) -> None:
        """Take back :meth:`neighbour_down`; the table's first choices hold again."""
        self.avoid(self._down - self._addresses(which))

    def _addresses(self, which: str | int) -> set[str]:
        return {which} if isinstance(which, str) else {h.address for h in self._table.toward(which)}

    def avoid(self, down: frozenset[str]) -> bool:
        """Use none of these links (far ends' addresses), and all others; whether that is new."""
        if down == self._down:
            return False
        self._down = down
        self.install(self._table)
        return True

    def _special(self) -> Ways:
        # Most connections never need it, and a guest pays for every import.
        if self._ways is None:
            from fabric.routing.ways import Ways

            self._ways = Ways(self.config, self._ledger, self._tcp)
            self._ways.install(self._table, self._down)
        return self._ways

    @property
    def counters(self) -> dict[str, int]:
        """Sums since the start; see docs/wire-format.md for the names."""
        return self._ledger.counters

    @property
    def table_version(self) -> int:
        """Of the table in use."""
        return self._table.version

    @property
    def last_activity_us(self) -> int:
        """Host time of the newest packet sent or delivered, Unix µs; 0: none yet."""
        return self._ledger.last_activity_us

    @property
    def closing(self) -> bool:
        """TCP said goodbye in this connection: FIN both ways, or a reset."""
        return self._tcp.closing

    def traces(self, last: int = TRACE_RING) -> list[bytes]:
        """Header and records of the newest delivered packets, newest last."""
        return self._ledger.traces(last)

    def next_timer(self) -> int | None:
        """Host time in µs at which handle_timer wants to be called; None: nothing to do."""
        report = self._ledger.next_report()
        order = self._ways.next_timer() if self._ways is not None else None
        return min((at for at in (report, order) if at is not None), default=None)

    def handle_timer(self, now_us: int) -> Actions:
        """``report`` is set when counters changed and a report is due; there may be deliveries,
        of packets that have waited long enough for earlier ones."""
        actions = Actions(self._identity, now_us, 0)
        if self._ways is not None:
            self._ways.handle_timer(actions)
            if actions.deliveries:
                self._ledger.settle(actions)
        actions.report = self._ledger.report_due(now_us)
        return actions

    def from_application(
        self, burst: Iterable[Buffer], now_us: int, queue_depth: int = 1
    ) -> Actions:
        """Encapsulate inner packets read from the application's side at ``now_us``.

        ``queue_depth``: packets read together with these, themselves included.
        """
        actions = Actions(self._identity, now_us, queue_depth)
        config = self.config
        flags, destination, protocol = 0, config.destination_node, self.protocol
        if config.node != config.source_node:
            flags, destination = FLAG_REPLY, config.source_node
            protocol = self.protocol if self._replies_by is None else self._replies_by
        if config.node not in (config.source_node, config.destination_node) or protocol is None:
            reason = "no_protocol" if protocol is None else "not_an_endpoint"
            for _ in burst:
                self._ledger.drop(actions, reason)
        elif hop := self._next_hop(destination, protocol):
            self._encapsulate(actions, burst, hop, (flags, protocol, destination))
        else:
            way = (flags, protocol, self._reply_difference, destination)
            departures = self._special().departures
            self._sequence = departures.encapsulate(actions, burst, way, self._sequence)
        self._ledger.count("application_in", actions.packets - actions.copies)
        self._ledger.settle(actions)
        return actions

    def _encapsulate(
        self,
        actions: Actions,
        burst: Iterable[Buffer],
        hop: NextHop,
        way: tuple[int, int, int],
    ) -> None:
        flags, protocol, destination = way
        config, watch, send, pack = self.config, self._tcp.watch, actions.send, HEADER.pack
        record = actions.record(hop.interface)
        first = self._ledger.is_first("out", flags)
        room = hop.mtu - UNDERLAY_OVERHEAD - HEADER_SIZE - RECORD_SIZE
        if self._reply_difference:
            pack = self._pack_asking
        for inner in burst:
            length = len(inner)
            payload_type = PAYLOAD_OF_VERSION.get(inner[0] >> 4) if length else None
            if payload_type is None or length > MAX_INNER:
                self._ledger.drop(actions, "malformed_inner")
                continue
            watch(inner, flags & FLAG_REPLY)
            self._sequence += 1
            size, flag, hops, tail = HEADER_SIZE + length + RECORD_SIZE, flags, 1, record
            if length > room:
                size, flag, hops, tail = size - RECORD_SIZE, flags | FLAG_MTU, 0, bytearray()
                actions.bare += 1
            fields = (FIRST_BYTE, flag, protocol, config.hop_limit, length, hops, payload_type,
                      config.connection, config.node, destination, self._sequence, 0)  # fmt: skip
            send(hop.address, size, pack(*fields), inner, tail)
            if first:
                first = False
                self._ledger.first(actions, "out", fields, hop)

    def _pack_asking(self, *fields: int) -> bytes:
        # A header that asks for replies by another protocol.
        return HEADER.pack(*fields)[:WAY_OFFSET] + WAY.pack(0, 0, 0, self._reply_difference)

    def from_underlay(
        self, burst: Iterable[tuple[Buffer, str]], now_us: int, queue_depth: int = 1
    ) -> Actions:
        """Forward or deliver fabric datagrams, given with their source address, read at ``now_us``.

        ``queue_depth``: datagrams read together with these, themselves included.
        """
        actions = Actions(self._identity, now_us, queue_depth)
        drop, unpack, lengths = self._ledger.drop, HEADER.unpack_from, HEADER_LENGTHS
        connection, node = self.config.connection, self.config.node
        packets = octets = 0
        for datagram, neighbour in burst:
            size = len(datagram)
            packets += 1
            octets += size
            if size < HEADER_SIZE:
                drop(actions, "malformed", datagram)
                continue
            fields = unpack(datagram)
            trace = lengths.get(fields[0], HEADER_SIZE_MAX) + fields[4]
            if (
                trace + fields[5] * RECORD_SIZE != size
                or fields[5] > MAX_RECORDS
                or fields[0] not in lengths
            ):
                drop(actions, "malformed", datagram)
            elif fields[1] & _SPECIAL:
                self._take_special(actions, datagram, neighbour, fields, trace)
            elif fields[7] != connection:
                drop(actions, "wrong_connection")
            elif fields[3] == 0:
                drop(actions, "hop_limit")
            elif fields[5] and self._visited(datagram, trace, size):
                drop(actions, "loop")
            elif fields[9] == node:
                self._deliver(actions, datagram, neighbour, fields, trace)
            else:
                self._forward(actions, datagram, neighbour, fields, trace)
        self._ledger.count("packets_in", packets)
        self._ledger.count("bytes_in", octets)
        self._ledger.count("forwarded", actions.packets)
        self._ledger.settle(actions)
        return actions

    def _take_special(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        drop = self._ledger.drop
        if fields[1] & FLAG_AUTHENTICATED:
            # Version 1 has no keys: what claims to be authenticated cannot be checked.
            drop(actions, "authentication")
        elif fields[7] != self.config.connection:
            drop(actions, "wrong_connection")
        elif fields[3] == 0:
            drop(actions, "hop_limit")
        else:
            # Explicit paths end by themselves, and may lead back: no look at the trace.
            if fields[9] == self.config.node:
                self._learn(datagram, fields[2])
            self._special().take(actions, datagram, neighbour, fields, trace)

    def _learn(self, datagram: Buffer, protocol: int) -> None:
        """What protocol the other end uses, and wants for replies; the first packet decides."""
        if self.protocol is None:
            self.protocol = protocol
        if self._replies_by is None:
            self._replies_by = protocol ^ WAY.unpack_from(datagram, WAY_OFFSET)[3]

    def _visited(self, datagram: Buffer, trace: int, size: int) -> bool:
        # Compared as bytes: slicing four of them is cheaper than unpacking a number, and a plain
        # loop is cheaper than any() over a generator.
        mine = self._identity.node_bytes
        for at in range(trace, size, RECORD_SIZE):  # noqa: SIM110
            if datagram[at : at + 4] == mine:
                return True
        return False

    def _forward(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        first, flags, protocol, hop_limit, length, hops, kind, _, _, destination, _, _ = fields
        hop = self._next_hop(destination, protocol)
        if hop is None or hop_limit == 1:
            if hop_limit == 1:
                self._ledger.drop(actions, "hop_limit")
            else:
                self._special().detour(actions, datagram, neighbour, fields, trace)
            return
        size = len(datagram) + RECORD_SIZE
        tail: Buffer = b""
        if hops >= MAX_RECORDS:
            flags |= FLAG_OVERFLOW
        elif size + UNDERLAY_OVERHEAD > hop.mtu:
            flags |= FLAG_MTU
        else:
            hops += 1
            ingress = self.config.interfaces.get(neighbour, 0)
            tail = actions.record(ingress << 16 | hop.interface)
        if not tail:
            size -= RECORD_SIZE
            actions.bare += 1
        self._tcp.watch(datagram, flags & FLAG_REPLY, trace - length)
        head = HEAD.pack(first, flags, protocol, hop_limit - 1, length, hops, kind)
        actions.send(hop.address, size, head, datagram[HEAD.size :], tail)
        if self._ledger.is_first("forwarded", flags):
            self._ledger.first(actions, "in", fields, None)
            self._ledger.first(actions, "forwarded", fields, hop)

    def _deliver(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        _, flags, protocol, hop_limit, length, hops, kind = fields[:7]
        start = trace - length
        if not length or VERSION_OF_PAYLOAD.get(kind) != datagram[start] >> 4:
            # An announcement that arrives behind the packets it wanted to precede ends here too.
            self._ledger.drop(actions, "not_deliverable")
            return
        if self._replies_by is None:
            self._learn(datagram, protocol)
        tail: Buffer = b""
        if hops >= MAX_RECORDS:
            flags |= FLAG_OVERFLOW
            actions.bare += 1
        else:
            hops += 1
            tail = actions.record(self.config.interfaces.get(neighbour, 0) << 16)
        self._tcp.watch(datagram, flags & FLAG_REPLY, start)
        actions.deliveries.append(datagram[start:trace])
        # The trace outlives the receive buffer, hence copies; the record is stamped later.
        head = HEAD.pack(FIRST_BYTE, flags, protocol, hop_limit, length, hops, kind)
        middle = bytes(datagram[HEAD.size : HEADER_SIZE])
        self._ledger.keep_trace(head, middle, bytes(datagram[trace:]), tail)
        if self._ledger.is_first("delivered", flags):
            actions.first_delivery = True
            self._ledger.first(actions, "in", fields, None)
            self._ledger.first(actions, "delivered", fields, None)

    def _next_hop(self, destination: int, protocol: int) -> NextHop | None:
        key = (destination, protocol)
        if key in self._next_hops:
            return self._next_hops[key]
        hop, down = None, self._down
        if self._table.treatment(protocol) is None:
            live = [h for h in self._table.lookup(destination, protocol) if h.address not in down]
            hop = choose(live, self.config.connection, self.config.node) if live else None
        if len(self._next_hops) < NEXT_HOP_CACHE:
            self._next_hops[key] = hop
        return hop
