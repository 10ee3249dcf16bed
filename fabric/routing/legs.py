"""Ways out of the first host for packets that do not simply follow the tables.

Owns: copies over several paths, dispersal over them, flooding, explicit paths, and the alternates
of dead next hops. May import: fabric.wire, fabric.routing. Pure; travels into guests. Part of the
forwarder: see routing.ways.
"""

from __future__ import annotations

from struct import Struct

from fabric.wire.packet import (
    DISPERSED,
    FIRST_BYTE,
    FLAG_MTU,
    FLAG_PATH,
    FLAG_REPAIRED,
    FLAG_REPLY,
    FLOODED,
    HEADER_SIZE,
    MAX_PATH,
    MAX_U16,
    NODE_SIZE,
    PAYLOAD_OF_VERSION,
    RECORD_SIZE,
    SINGLE,
    UNDERLAY_OVERHEAD,
    WAY,
    pack_path,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fabric.routing.actions import Actions
    from fabric.routing.forwarder import ForwarderConfig
    from fabric.routing.ledger import Ledger
    from fabric.routing.liveness import TcpLiveness
    from fabric.routing.table import ForwardingTable, NextHop, Path
    from fabric.wire.packet import Buffer

UNWAYED = Struct(">BBBBHBBQIIQH")
"""The fixed header up to the way fields."""
LEGS_CACHE = 16
"""(destination, protocol) pairs remembered: a connection has two; more are forged packets."""
MAX_INNER = MAX_U16 - UNDERLAY_OVERHEAD - HEADER_SIZE - RECORD_SIZE - MAX_PATH * NODE_SIZE
"""Bytes of the largest inner packet that fits in one datagram with the longest path."""


class Leg:
    """One way out of this host for new packets, and what went that way."""

    __slots__ = ("flags", "hop", "limit", "octets", "packets", "tail")

    def __init__(self, hop: NextHop, flags: int, limit: int, tail: bytes) -> None:
        self.hop = hop
        self.flags = flags
        self.limit = limit
        self.tail = tail
        """Way fields and explicit path."""
        self.packets = self.octets = 0


class Legs:
    """All ways out for one (destination, protocol), or the reason why there is none."""

    __slots__ = ("legs", "reason", "spread")

    def __init__(self, legs: list[Leg], reason: str = "", *, spread: bool = False) -> None:
        self.legs = legs
        self.reason = reason
        self.spread = spread
        """One packet per leg in turn, rather than every packet on every leg."""

    def for_packet(self, size: int) -> Sequence[Leg]:
        """The legs of the next packet, of ``size`` bytes.

        In turn means: the leg with the fewest packets, and of several the one with the fewest
        bytes. No leg is ever more than one packet ahead, and sizes even out as well.
        """
        if not self.spread:
            return self.legs
        leg = min(self.legs, key=lambda each: (each.packets, each.octets))
        leg.packets += 1
        leg.octets += size
        return (leg,)


class Departures:
    """Everything this host sends on ways of its own choice."""

    def __init__(self, config: ForwarderConfig, ledger: Ledger, tcp: TcpLiveness) -> None:
        self._config = config
        self._ledger = ledger
        self._tcp = tcp
        self._table: ForwardingTable
        self._down: frozenset[str] = frozenset()
        self._legs: dict[tuple[int, int], Legs] = {}

    def install(self, table: ForwardingTable, down: frozenset[str]) -> None:
        """Use another table, and avoid other neighbours, from the next packet on."""
        self._table = table
        self._down = down
        self._legs.clear()

    def encapsulate(
        self,
        actions: Actions,
        burst: Iterable[Buffer],
        way: tuple[int, int, int, int],
        sequence: int,
    ) -> int:
        """Send inner packets; ``way``: flags, protocol, reply protocol XOR protocol, destination.

        Returns the last sequence number used.
        """
        flags, protocol, difference, destination = way
        ways = self._ways_out(destination, protocol, difference)
        if not ways.legs:
            for _ in burst:
                self._ledger.drop(actions, ways.reason)
            return sequence
        for inner in burst:
            length = len(inner)
            kind = PAYLOAD_OF_VERSION.get(inner[0] >> 4) if length else None
            if kind is None or length > MAX_INNER:
                self._ledger.drop(actions, "malformed_inner")
                continue
            self._tcp.watch(inner, flags & FLAG_REPLY)
            sequence += 1
            legs = ways.for_packet(length)
            for leg in legs:
                self._send_new(actions, inner, leg, (flags, protocol, destination), sequence)
            actions.copies += len(legs) - 1
        return sequence

    def _send_new(
        self, actions: Actions, inner: Buffer, leg: Leg, way: tuple[int, int, int], sequence: int
    ) -> None:
        flags, protocol, destination = way
        config, hop, length = self._config, leg.hop, len(inner) + len(leg.tail) - WAY.size
        size, hops, flag = HEADER_SIZE + length + RECORD_SIZE, 1, flags | leg.flags
        record: Buffer = actions.record(hop.interface)
        if size + UNDERLAY_OVERHEAD > hop.mtu:
            size, hops, flag, record = size - RECORD_SIZE, 0, flag | FLAG_MTU, b""
            actions.bare += 1
        kind = PAYLOAD_OF_VERSION[inner[0] >> 4]
        fields = (FIRST_BYTE, flag, protocol, leg.limit, length, hops, kind,
                  config.connection, config.node, destination, sequence, 0)  # fmt: skip
        actions.send(hop.address, size, UNWAYED.pack(*fields) + leg.tail, inner, record)
        if self._ledger.is_first("out", flags):
            self._ledger.first(actions, "out", fields, hop)

    def _ways_out(self, destination: int, protocol: int, difference: int) -> Legs:
        key = (destination, protocol)
        found = self._legs.get(key)
        if found is None:
            found = self._find_ways_out(destination, protocol, difference)
            if len(self._legs) < LEGS_CACHE:
                self._legs[key] = found
        return found

    def _find_ways_out(self, destination: int, protocol: int, difference: int) -> Legs:
        table, limit = self._table, self._config.hop_limit
        treatment = table.treatment(protocol)
        paths = table.paths(destination, protocol)
        live = [path for path in paths if path.hop.address not in self._down]
        if treatment is None or (treatment == SINGLE and not live):
            around = self.alternate(destination, protocol)
            if around is None:
                return Legs([], "neighbour_down" if paths else "no_route")
            return Legs([leg_for(around, FLAG_REPAIRED, 0, (limit, SINGLE, difference))])
        if treatment == DISPERSED and len(live) < table.option(protocol, "least_paths", 1):
            # Fewer paths would show their hosts more than the share that was promised.
            return Legs([], "share" if paths else "no_route")
        if treatment == FLOODED:
            metric = table.metric(destination, protocol) or 0
            limit = min(limit, metric + table.option(protocol, "slack", 0))
            live = [path for path in live if path.hop.metric <= limit]
        if not live:
            return Legs([], "neighbour_down" if paths else "no_route")
        if treatment == SINGLE:
            live = live[:1]
        way = (limit, treatment, difference)
        legs = [leg_for(path, FLAG_PATH, paths.index(path), way) for path in live]
        return Legs(legs, spread=treatment == DISPERSED)

    def alternate(self, destination: int, protocol: int) -> Path | None:
        """The table's alternate, if its next hop is not dead as well."""
        found = self._table.alternate(destination, protocol)
        return found if found is not None and found.hop.address not in self._down else None


def leg_for(path: Path, flags: int, number: int, way: tuple[int, int, int]) -> Leg:
    """The leg on path ``number``; ``way``: hop limit, treatment, reply protocol XOR protocol."""
    limit, treatment, difference = way
    if path.nodes:
        flags |= FLAG_PATH
    tail = WAY.pack(number, len(path.nodes), treatment, difference) + pack_path(path.nodes)
    return Leg(path.hop, flags, limit, tail)
