"""How packets travel that do not simply follow the tables hop by hop.

Owns: explicit paths and floods at relays, repair around dead neighbours, elimination and order at
the egress; what the ingress does is in routing.legs. May import: fabric.wire, fabric.routing.
Pure; travels into guests, and is loaded by those connections only that need it. Part of the
forwarder: see routing.forwarder.

The packet says for itself how it travels (FLAG_PATH and the way fields, docs/wire-format.md), so
relay and egress need not know the protocol, or agree with the ingress about it.
"""

from __future__ import annotations

from fabric.routing.legs import Departures
from fabric.routing.recovery import Order, Seen
from fabric.wire.packet import (
    DISPERSED,
    FIRST_BYTE,
    FLAG_MTU,
    FLAG_OVERFLOW,
    FLAG_PATH,
    FLAG_REPAIRED,
    FLAG_REPLY,
    FLOODED,
    HEAD,
    HEADER_SIZE,
    MAX_PATH,
    MAX_RECORDS,
    MAX_U16,
    NODE_SIZE,
    RECORD_SIZE,
    REPLICATED,
    SINGLE,
    UNDERLAY_OVERHEAD,
    VERSION_OF_PAYLOAD,
    WAY,
    WAY_OFFSET,
    pack_path,
    unpack_path,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.routing.actions import Actions
    from fabric.routing.forwarder import ForwarderConfig
    from fabric.routing.ledger import Ledger
    from fabric.routing.liveness import TcpLiveness
    from fabric.routing.table import ForwardingTable, NextHop, Path
    from fabric.wire.packet import Buffer

DEFAULT_HOLD_US = 50_000
"""µs to wait for a missing packet where the table does not say; see routing.definitions."""
STEPS_CACHE = 64
"""(explicit path, path number) pairs remembered: a connection has a handful."""
_COPIED = (REPLICATED, FLOODED)


class Ways:
    """See the module docstring."""

    def __init__(self, config: ForwarderConfig, ledger: Ledger, tcp: TcpLiveness) -> None:
        self._config = config
        self._ledger = ledger
        self._tcp = tcp
        self._table: ForwardingTable
        self._down: frozenset[str] = frozenset()
        self.departures = Departures(config, ledger, tcp)
        self._steps: dict[tuple[bytes, int], NextHop | str] = {}
        self._eliminated: dict[int, Seen] = {}
        self._order: Order | None = None

    def install(self, table: ForwardingTable, down: frozenset[str]) -> None:
        """Use another table, and avoid other neighbours, from the next packet on."""
        self._table = table
        self._down = down
        self._steps.clear()
        self.departures.install(table, down)

    # -- transit and egress ----------------------------------------------------------------------

    def take(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        """A packet with FLAG_PATH, checked so far; ``fields`` as HEADER has them, ``trace``: where
        its records begin."""
        number, nodes, treatment, _ = WAY.unpack_from(datagram, WAY_OFFSET)
        start = trace - fields[4]
        inner = start + nodes * NODE_SIZE
        if nodes > MAX_PATH or inner > trace:
            self._ledger.drop(actions, "malformed", datagram)
        elif fields[9] == self._config.node:
            self._deliver(actions, datagram, neighbour, fields, (treatment, inner, trace))
        elif fields[3] == 1:
            self._ledger.drop(actions, "hop_limit")
        elif treatment == FLOODED:
            self._flood(actions, datagram, neighbour, fields, trace)
        else:
            step = (bytes(datagram[start:inner]), number)
            self._follow(actions, datagram, neighbour, fields, (step, treatment, inner, trace))

    def _follow(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        way: tuple[tuple[bytes, int], int, int, int],
    ) -> None:
        step, treatment, inner, trace = way
        hop = self._steps.get(step) or self._step(step)
        if not isinstance(hop, str):
            self._tcp.watch(datagram, fields[1] & FLAG_REPLY, inner)
            self._send_on(actions, datagram, neighbour, fields, hop)
        elif treatment == SINGLE and hop != "off_path":
            self.detour(actions, datagram, neighbour, fields, trace)
        else:
            # The other copies live; and a share must not move to hosts that see another one.
            self._ledger.drop(actions, hop)

    def _step(self, step: tuple[bytes, int]) -> NextHop | str:
        """The link to the next host of an explicit path, or why there is none."""
        block, number = step
        path, here = unpack_path(block), self._config.node
        at = path.index(here) + 1 if here in path else len(path)
        hops = self._table.toward(path[at]) if at < len(path) else ()
        live = [hop for hop in hops if hop.address not in self._down]
        found: NextHop | str
        if live:
            # Copies that meet the same two hosts take different ones of their parallel links.
            found = live[number % len(live)]
        elif at == len(path):
            found = "off_path"
        else:
            found = "neighbour_down" if hops else "no_route"
        if len(self._steps) < STEPS_CACHE:
            self._steps[step] = found
        return found

    def _send_on(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        hop: NextHop,
    ) -> None:
        first, flags, protocol, hop_limit, length, hops, kind = fields[:7]
        size = len(datagram) + RECORD_SIZE
        flags, hops, record = self._record(actions, neighbour, (flags, hops), size, hop)
        head = HEAD.pack(first, flags, protocol, hop_limit - 1, length, hops, kind)
        if not record:
            size -= RECORD_SIZE
        actions.send(hop.address, size, head, datagram[HEAD.size :], record)
        if self._ledger.is_first("forwarded", flags):
            self._first_forwarded(actions, fields, hop)

    def _record(
        self,
        actions: Actions,
        neighbour: str,
        counted: tuple[int, int],
        size: int,
        hop: NextHop,
    ) -> tuple[int, int, Buffer]:
        flags, hops = counted
        if hops >= MAX_RECORDS:
            flags |= FLAG_OVERFLOW
        elif size + UNDERLAY_OVERHEAD > hop.mtu:
            flags |= FLAG_MTU
        else:
            ingress = self._config.interfaces.get(neighbour, 0)
            return flags, hops + 1, actions.record(ingress << 16 | hop.interface)
        actions.bare += 1
        return flags, hops, b""

    def _first_forwarded(self, actions: Actions, fields: tuple[int, ...], hop: NextHop) -> None:
        self._ledger.first(actions, "in", fields, None)
        self._ledger.first(actions, "forwarded", fields, hop)

    def _flood(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        flags, protocol, hop_limit, destination = fields[1], fields[2], fields[3], fields[9]
        own = fields[8] == self._config.node
        if own or not self._seen(flags).fresh(fields[10], actions.at_us):
            self._ledger.count("eliminated", 1)
            return
        self._tcp.watch(datagram, flags & FLAG_REPLY, trace - fields[4])
        hops = [
            hop
            for hop in self._table.lookup(destination, protocol)
            # From there the rest of the limit must do, and the sender has it already.
            if hop.metric < hop_limit and hop.address not in {*self._down, neighbour}
        ]
        for hop in hops:
            self._send_on(actions, datagram, neighbour, fields, hop)
        if hops:
            actions.copies += len(hops) - 1
        else:
            # A dead end is no loss: the other copies went elsewhere.
            self._ledger.count("eliminated", 1)

    def _seen(self, flags: int) -> Seen:
        way = flags & FLAG_REPLY
        if way not in self._eliminated:
            self._eliminated[way] = Seen()
        return self._eliminated[way]

    def _deliver(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        way: tuple[int, int, int],
    ) -> None:
        treatment, inner, trace = way
        _, flags, protocol, hop_limit, length, hops, kind = fields[:7]
        if inner == trace or VERSION_OF_PAYLOAD.get(kind) != datagram[inner] >> 4:
            self._ledger.drop(actions, "not_deliverable")
            return
        if treatment in _COPIED and not self._seen(flags).fresh(fields[10], actions.at_us):
            self._ledger.count("eliminated", 1)
            return
        record: Buffer = b""
        if hops >= MAX_RECORDS:
            flags |= FLAG_OVERFLOW
            actions.bare += 1
        else:
            hops += 1
            record = actions.record(self._config.interfaces.get(neighbour, 0) << 16)
        self._tcp.watch(datagram, flags & FLAG_REPLY, inner)
        head = HEAD.pack(FIRST_BYTE, flags, protocol, hop_limit, length, hops, kind)
        middle = bytes(datagram[HEAD.size : HEADER_SIZE])
        self._ledger.keep_trace(head, middle, bytes(datagram[trace:]), record)
        if treatment == DISPERSED:
            # A copy: it may outlive the receive buffer.
            self._put_in_order(actions, protocol, fields[10], bytes(datagram[inner:trace]))
        else:
            actions.deliveries.append(datagram[inner:trace])
        if self._ledger.is_first("delivered", flags):
            actions.first_delivery = True
            self._ledger.first(actions, "in", fields, None)
            self._ledger.first(actions, "delivered", fields, None)

    def _put_in_order(self, actions: Actions, protocol: int, sequence: int, packet: bytes) -> None:
        order = self._order
        if order is None:
            order = Order(self._table.option(protocol, "hold_us", DEFAULT_HOLD_US))
            self._order = order
        waited, late = order.waited, order.late
        actions.deliveries.extend(order.push(sequence, packet, actions.at_us))
        self._ledger.count("reordered", order.waited - waited)
        self._ledger.count("late", order.late - late)

    def next_timer(self) -> int | None:
        """When packets that wait for an earlier one have waited enough, µs."""
        return self._order.deadline() if self._order is not None else None

    def handle_timer(self, actions: Actions) -> None:
        """Deliver what has waited enough."""
        if self._order is not None:
            actions.deliveries.extend(self._order.overdue(actions.at_us))

    # -- repair ----------------------------------------------------------------------------------

    def detour(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        trace: int,
    ) -> None:
        """Send on a packet whose way leads no farther, or that lacks the path its protocol wants.

        A packet is repaired once. A second repair could send it back to the first, and a path that
        was spelled out to its end has no business to fail twice.
        """
        flags, protocol, destination = fields[1], fields[2], fields[9]
        table = self._table
        entry = table.lookup(destination, protocol)
        if flags & FLAG_REPAIRED:
            self._ledger.drop(actions, "neighbour_down" if entry else "no_route")
            return
        paths = table.paths(destination, protocol) if table.treatment(protocol) is not None else ()
        live = [path for path in paths if path.hop.address not in self._down]
        best = min(live, key=lambda path: path.hop.metric, default=None)
        found = best or self.departures.alternate(destination, protocol)
        if found is None:
            self._ledger.drop(actions, "neighbour_down" if entry else "no_route")
            return
        # One that never had a path and gets the first choice now, is not broken.
        repaired = 0 if found is best and not flags & FLAG_PATH else FLAG_REPAIRED
        self._ledger.count("repaired", int(bool(repaired)))
        self._redirect(actions, datagram, neighbour, fields, (found, repaired, trace))

    def _redirect(
        self,
        actions: Actions,
        datagram: Buffer,
        neighbour: str,
        fields: tuple[int, ...],
        way: tuple[Path, int, int],
    ) -> None:
        """Put a packet on another path, or on none."""
        found, repaired, trace = way
        first, flags, protocol, hop_limit, length, hops, kind = fields[:7]
        _, nodes, _, difference = WAY.unpack_from(datagram, WAY_OFFSET)
        start = trace - length
        inner = start + (nodes * NODE_SIZE if flags & FLAG_PATH else 0)
        block = pack_path(found.nodes)
        length = trace - inner + len(block)
        if length > MAX_U16:
            self._ledger.drop(actions, "no_room")
            return
        self._tcp.watch(datagram, flags & FLAG_REPLY, inner)
        flags = flags & ~FLAG_PATH | repaired | (FLAG_PATH if block else 0)
        size = start + len(block) + len(datagram) - inner + RECORD_SIZE
        flags, hops, record = self._record(actions, neighbour, (flags, hops), size, found.hop)
        head = b"".join(
            (
                HEAD.pack(first, flags, protocol, hop_limit - 1, length, hops, kind),
                datagram[HEAD.size : WAY_OFFSET],
                WAY.pack(0, len(found.nodes), SINGLE, difference),
                datagram[HEADER_SIZE:start],
                block,
            )
        )
        if not record:
            size -= RECORD_SIZE
        actions.send(found.hop.address, size, head, datagram[inner:], record)
        if self._ledger.is_first("forwarded", flags):
            self._first_forwarded(actions, fields, found.hop)
