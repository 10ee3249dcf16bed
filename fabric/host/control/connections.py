"""The connections one host takes part in, and what is known of each.

Owns: the connection record, its states, the table with its two indices (id, flow), the history of
ended connections. May import: wire, routing. Does no I/O; times are passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from fabric.routing.policy import ApplicationFacts
from fabric.wire.inner import TCP, FiveTuple, begins_connection
from fabric.wire.packet import FLAG_REPLY, Header

if TYPE_CHECKING:
    import asyncio

    from fabric.host.guest.guests import Guest

# Seconds a connection stays after both ends closed it: late segments and the last look at it.
CLOSING_LINGER = 5.0
# Seconds an unanswered connection waits at least: guests further on may still be booting, and TCP
# sends its SYN again after up to 32 s (RFC 6298 with the usual five or six tries).
OPENING_PATIENCE = 65.0
# Ended connections kept for `fabric trace` and `fabric explain`.
HISTORY = 256
# Traces kept per connection; the agent's own ring has the same length.
TRACES = 256
# Closed connections whose last segments may still be on their way, by id and by flow.
FAREWELLS = 4096


class State(Enum):
    """Where a connection stands on this host."""

    HELD = "held"
    """Its packets wait for a guest."""
    ESTABLISHED = "established"
    """The kernel steers its packets to the guest."""
    CLOSED = "closed"


class Role(Enum):
    """What this host is to the connection."""

    INGRESS = "ingress"
    TRANSIT = "transit"
    EGRESS = "egress"


@dataclass(frozen=True)
class HeldPacket:
    """A packet waiting for a guest: an application's, or a neighbour's datagram."""

    data: bytes
    upstream: str | None = None
    """Underlay address of the neighbour that sent the datagram; None: an application's packet."""


@dataclass
class Connection:
    """One application flow and its reverse, as this host knows it."""

    id: int
    role: Role
    source_node: int
    destination_node: int
    requested_at_us: int
    """When this host first heard of it, Unix µs."""
    flow: FiveTuple | None = None
    facts: ApplicationFacts | None = None
    protocol: int | None = None
    protocol_name: str = ""
    need: str = ""
    rule: str = ""
    reason: str = ""
    state: State = State.HELD
    guest: Guest | None = None
    spawning: asyncio.Task[None] | None = None
    """What gets it a guest, or got it the one it has."""
    held: deque[HeldPacket] = field(default_factory=deque)
    handed: HeldPacket | None = None
    """The one of ``held`` that the agent was given with its instructions."""
    held_dropped: int = 0
    spawns: int = 0
    spawn_ms: float | None = None
    established_at: float = 0.0
    """Monotonic seconds at which it got the guest it has."""
    last_active: float = 0.0
    """Monotonic seconds of the last packet known of."""
    protect: bool = False
    """Guests are wanted on alternate paths, too."""
    told_again_at: float = 0.0
    """Monotonic seconds at which those were last told that it lives."""
    closing: bool = False
    """The application's TCP connection has ended both ways."""
    counters: dict[str, int] = field(default_factory=dict)
    traces: dict[tuple[bool, int], dict[str, Any]] = field(default_factory=dict)
    """(reply?, sequence) → trace, in order of arrival."""

    @classmethod
    def arrived(
        cls,
        header: Header,
        flow: FiveTuple | None,
        here: int,
        now_us: int,
        names: Mapping[int, str],
    ) -> Self:
        """The record of a connection opened elsewhere, by a packet or announcement of it.

        ``flow``: in forward sense, as the addresses become; ``here``: this host's node id;
        ``names``: of protocols.
        """
        ends = (header.source, header.destination)
        source, destination = ends[::-1] if header.flags & FLAG_REPLY else ends
        return cls(
            id=header.connection,
            role=Role.EGRESS if destination == here else Role.TRANSIT,
            source_node=source,
            destination_node=destination,
            requested_at_us=now_us,
            flow=flow,
            protocol=header.protocol,
            protocol_name=names.get(header.protocol, str(header.protocol)),
            reason="carried in the packet",
        )

    @property
    def label(self) -> str:
        """How people see the id: 16 hexadecimal digits."""
        return f"{self.id:016x}"

    @property
    def local_flow(self) -> FiveTuple | None:
        """The flow as this host's own applications send it: only end hosts have one."""
        if self.flow is None or self.role is Role.TRANSIT:
            return None
        return self.flow if self.role is Role.INGRESS else self.flow.reversed()

    def supersede(self, held: HeldPacket) -> None:
        """Forget SYNs that ``held`` sends again: only the newest gives a true round-trip time. An
        old one's timestamp would come back (RFC 7323) and make a sender that loses its next packet
        wait for minutes."""
        tcp = self.flow is not None and self.flow.protocol == TCP
        if tcp and held.upstream is None and begins_connection(held.data):
            kept = (h for h in self.held if h.upstream is not None or not begins_connection(h.data))
            self.held = deque(kept)

    @property
    def answered(self) -> bool:
        """Whether packets came from the far side already, as far as the agent has told."""
        far = "application_in" if self.role is Role.EGRESS else "packets_in"
        return self.counters.get(far, 0) > 0

    def idle_limit(self, idle_timeout: float) -> float:
        """Seconds without a packet after which the connection ends here."""
        if self.closing:
            return min(idle_timeout, CLOSING_LINGER)
        return idle_timeout if self.answered else max(idle_timeout, OPENING_PATIENCE)

    def remember_trace(self, key: tuple[bool, int], trace: dict[str, Any]) -> None:
        """Keep a trace, newest last, at most TRACES of them."""
        self.traces.setdefault(key, trace)
        while len(self.traces) > TRACES:
            del self.traces[next(iter(self.traces))]


class ConnectionTable:
    """Live connections by id and by local flow, and the recently ended ones."""

    def __init__(self) -> None:
        self._by_id: dict[int, Connection] = {}
        self._by_flow: dict[FiveTuple, Connection] = {}
        self._history: deque[Connection] = deque(maxlen=HISTORY)
        self._farewells: dict[int | FiveTuple, None] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_id.values()))

    def add(self, connection: Connection) -> None:
        self._by_id[connection.id] = connection
        self.index_flow(connection)

    def index_flow(self, connection: Connection) -> None:
        """Make the connection findable by its local flow, once that is known."""
        if (flow := connection.local_flow) is not None:
            self._by_flow[flow] = connection

    def by_id(self, connection_id: int) -> Connection | None:
        return self._by_id.get(connection_id)

    def by_flow(self, flow: FiveTuple) -> Connection | None:
        return self._by_flow.get(flow)

    def remove(self, connection: Connection) -> None:
        """Move it to the history; nothing is done to another one that has its id by now."""
        if self._by_id.get(connection.id) is not connection:
            return
        del self._by_id[connection.id]
        flow = connection.local_flow
        if flow is not None and self._by_flow.get(flow) is connection:
            del self._by_flow[flow]
        connection.state = State.CLOSED
        connection.held.clear()
        self._history.append(connection)
        if connection.closing:
            self._farewells |= dict.fromkeys([connection.id, *([flow] if flow else [])])
            while len(self._farewells) > FAREWELLS:
                del self._farewells[next(iter(self._farewells))]

    def said_goodbye(self, who: int | FiveTuple) -> bool:
        """Whether a connection of this id or local flow ended lately because both its ends closed
        it: what still comes of it is late, not new."""
        return who in self._farewells

    def all(self) -> list[Connection]:
        """Live and remembered ones, newest request first."""
        everything = [*self._history, *self._by_id.values()]
        return sorted(everything, key=lambda c: c.requested_at_us, reverse=True)

    def find(self, label: str) -> list[Connection]:
        """Connections whose label starts with ``label``, newest first."""
        return [c for c in self.all() if c.label.startswith(label.lower())]

    def held_packets(self) -> int:
        return sum(len(c.held) for c in self._by_id.values())
