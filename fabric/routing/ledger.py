"""What one connection's forwarder remembers of the packets that passed.

Owns: Ledger: counters, the ring of traces, first-packet and loss events, when to report.
May import: fabric.wire, fabric.routing.actions. Pure; travels into guests.
"""

from __future__ import annotations

from collections import deque

from fabric.errors import WireError
from fabric.wire.packet import FLAG_REPLY, Packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.routing.actions import Actions
    from fabric.routing.table import NextHop
    from fabric.wire.packet import Buffer

TRACE_RING = 256
"""Delivered packets whose traces are kept: about 100 KB, a second of a busy connection."""
REPORT_INTERVAL_US = 1_000_000
"""µs between two reports of changed counters: the host must not drown in a hundred guests' news."""
EVENT_INTERVAL_US = 1_000_000
"""µs between two events about packets lost for one reason; the counters know them all."""


class Ledger:
    """Counts everything, tells the first of each kind, keeps the newest traces."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.last_activity_us = 0
        self._ring: deque[tuple[Buffer, ...]] = deque(maxlen=TRACE_RING)
        self._seen: set[tuple[str, int]] = set()
        self._event_at: dict[str, int] = {}
        self._changed = False
        self._report_at = 0

    def count(self, name: str, amount: int) -> None:
        """Add to a counter; nothing to add leaves it absent."""
        if amount:
            self.counters[name] = self.counters.get(name, 0) + amount

    def settle(self, actions: Actions) -> None:
        """Book what a burst sent and delivered."""
        delivered = len(actions.deliveries)
        self.count("packets_out", actions.packets)
        self.count("bytes_out", actions.octets)
        if actions.copies:
            self.count("copies", actions.copies)
        self.count("delivered", delivered)
        self.count("records_appended", actions.packets + delivered - actions.bare)
        self.count("records_omitted", actions.bare)
        if actions.packets or delivered:
            self.last_activity_us = actions.at_us
        if not self._changed:
            self._changed = True
            self._report_at = max(self._report_at, actions.at_us)

    def drop(self, actions: Actions, reason: str, datagram: Buffer | None = None) -> None:
        """Count a lost packet under its reason; tell it, at most once a second and reason.

        ``datagram`` is given where the codec can say what is wrong with it.
        """
        total = self.counters["drop_" + reason] = self.counters.get("drop_" + reason, 0) + 1
        if actions.at_us < self._event_at.get(reason, actions.at_us):
            return
        self._event_at[reason] = actions.at_us + EVENT_INTERVAL_US
        detail = ""
        if datagram is not None:
            try:
                Packet.parse(datagram)
            except WireError as exc:
                detail = str(exc)
        name = "no-route" if reason == "no_route" else "dropped"
        actions.events.append((name, {"reason": reason, "total": total, "detail": detail}))

    def is_first(self, direction: str, flags: int) -> bool:
        """True once per direction (in, out, forwarded, delivered) and way (forward, reply)."""
        key = (direction, flags & FLAG_REPLY)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def first(
        self, actions: Actions, direction: str, fields: tuple[int, ...], hop: NextHop | None
    ) -> None:
        """Tell a first packet by its header fields as unpacked by HEADER."""
        _, flags, protocol, hop_limit, length, hops, _, _, source, destination, sequence, _ = fields
        told = {
            "direction": direction,
            "reply": bool(flags & FLAG_REPLY),
            "sequence": sequence,
            "protocol": protocol,
            "source": source,
            "destination": destination,
            "hop_limit": hop_limit,
            "hop_count": hops,
            "payload_length": length,
            "next_hop": hop.node if hop else None,
        }
        actions.events.append(("first-packet", told))

    def keep_trace(self, *parts: Buffer) -> None:
        """Remember a delivered packet's trace; the parts are joined when somebody asks."""
        self._ring.append(parts)

    def traces(self, last: int = TRACE_RING) -> list[bytes]:
        """Header and records of the newest delivered packets, newest last."""
        return [b"".join(parts) for parts in list(self._ring)[-last:]] if last > 0 else []

    def next_report(self) -> int | None:
        """Host time in µs at which a report is due; None: nothing changed."""
        return self._report_at if self._changed else None

    def report_due(self, now_us: int) -> bool:
        """True, once, when counters changed and the last report is a second old."""
        if not self._changed or now_us < self._report_at:
            return False
        self._changed = False
        self._report_at = now_us + REPORT_INTERVAL_US
        return True
