"""The orchestrator: turns a request for a connection into a guest that carries it.

Owns: the life of a connection on this host, from its admission to its end. It is never in the data
path of an established connection; which packets begin one is the intake's. May import: errors,
wire, routing, and its neighbours in host; the kernel is reached only through :class:`Datapath`,
guests only through :class:`Guests`, so that all of this runs in a unit test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from fabric.errors import CapacityExceeded, FabricError, GuestFault
from fabric.host.config import HostConfig
from fabric.host.control.announcer import Announcement, Announcer
from fabric.host.control.capacity import Admission
from fabric.host.control.connections import Connection, ConnectionTable, HeldPacket, Role, State
from fabric.host.control.history import TableHistory
from fabric.host.control.instructions import instructions, wrapped_refusal
from fabric.host.control.keyring import Keyring
from fabric.host.control.messages import GuestMessages
from fabric.host.control.ports import Clock, Datapath, Guests
from fabric.host.control.succession import Succession
from fabric.host.events import EventLog
from fabric.host.faults import OnStep, Step, pass_by
from fabric.host.guest.adoption import Inheritance
from fabric.host.guest.guests import Guest
from fabric.host.guest.lifecycle import GuestState
from fabric.host.identity import GuestIdentity
from fabric.routing.policy import Policy
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.wire.control import Configure, InstallTable
from fabric.wire.inner import refusal
from fabric.wire.packet import (
    DEFAULT_HOP_LIMIT,
)

log = logging.getLogger(__name__)

# How often a lost guest is replaced before the connection is given up.
MAX_SPAWNS = 4
# Seconds a guest must have served for its loss to count as the first again.
STEADY = 60.0


class Orchestrator:
    """One per host. All methods run on the event loop's thread."""

    def __init__(
        self,
        config: HostConfig,
        topology: Topology,
        table: ForwardingTable,
        policy: Policy,
        *,
        datapath: Datapath,
        guests: Guests,
        events: EventLog,
        clock: Clock,
        succession: Succession | None = None,
        on_step: OnStep = pass_by,
        keyring: Keyring | None = None,
    ) -> None:
        self.config = config
        self.topology = topology
        self.table = table
        self.policy = policy
        self.events = events
        self.clock = clock
        self.history = TableHistory(clock)
        self.history.record(topology, table)
        self.connections = ConnectionTable()
        self.messages = GuestMessages(self.connections, topology, events, clock)
        self._datapath = datapath
        self._guests = guests
        self._succession = succession or Succession(None, events)
        self._on_step = on_step
        self._keyring = keyring or Keyring()
        self._announcer = Announcer(config, datapath, events, topology)
        self.on_audience: Callable[[], None] = lambda: None
        """Called when guests that carry a connection came or went."""
        self.down: Callable[[], tuple[str, ...]] = tuple
        """Gives the neighbours that must not be used, by address."""
        self._admission = Admission(config.limits, config.guest_memory_mib)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the life of a connection ------------------------------------------------------------------

    def carry(self, connection: Connection, held: HeldPacket) -> None:
        """A packet of a known connection that steering missed: hold it or pass it on."""
        if connection.state is State.ESTABLISHED and connection.guest is not None:
            self._datapath.deliver([held], connection.guest.index)
        else:
            self.hold(connection, held)

    def hold(self, connection: Connection, held: HeldPacket) -> None:
        connection.supersede(held)
        connection.last_active = self.clock.monotonic()
        limits = self.config.limits
        full = len(connection.held) >= limits.held_packets
        if full or self.connections.held_packets() >= limits.held_total:
            connection.held_dropped += 1
            if connection.held_dropped == 1:
                limit = "held_packets" if full else "held_total"
                self.events.emit("held-overflow", connection.label, limit=limit)
            return
        connection.held.append(held)

    def open(self, connection: Connection, held: HeldPacket | None) -> bool:
        """Admit the connection and start its guest; refuse the packet when that cannot be."""
        try:
            if self.config.spawning:
                guests = self._guests
                available = guests.memory_available_mib()
                self._admission.admit(guests.alive(), available, self.clock.monotonic())
        except CapacityExceeded as exc:
            if held is not None:
                self.refuse(connection, held, "capacity", exc.message, limit=exc.limit)
            return False
        connection.last_active = self.clock.monotonic()
        self.connections.add(connection)
        if held is not None:
            self.hold(connection, held)
        if self.config.spawning:
            connection.spawning = self._start(self._spawn(connection))
        return self.config.spawning

    def refuse(
        self, connection: Connection, held: HeldPacket, cause: str, why: str, **fields: object
    ) -> None:
        """Tell the application at once, by the means its own protocol has for it."""
        self.events.emit("refused", connection.label, cause=cause, why=why, **fields)
        if held.upstream is None:
            if (answer := refusal(held.data)) is not None:
                self._datapath.answer(answer)
            return
        if (datagram := wrapped_refusal(held, self.config.node)) is not None:
            self._datapath.send(datagram, held.upstream)

    async def _spawn(self, connection: Connection) -> None:
        """Steps (b) and (g): a guest for this connection, then its packets, then the steering."""
        connection.spawns += 1
        try:
            tier = self.policy.tier(connection.facts) if connection.facts else ""
            guest = await self._guests.spawn(
                connection.id, lambda identity: self._configure(connection, identity), tier
            )
        except GuestFault as exc:
            self._give_up(connection, str(exc))
            return
        except Exception:
            # A defect: it is reported, but the application must not wait for ever because of it.
            self._give_up(connection, "internal error")
            raise
        if connection.state is State.CLOSED:
            await self._guests.destroy(guest)
            return
        connection.guest = guest
        self.messages.on_ready(connection, guest)
        self._establish(connection, guest)

    def _establish(self, connection: Connection, guest: Guest) -> None:
        """Held packets first, then the kernel's rule; what slips between comes by ``_carry``."""
        held = [packet for packet in connection.held if packet is not connection.handed]
        handed = len(connection.held) - len(held)
        connection.held.clear()
        connection.handed = None
        connection.last_active = self.clock.monotonic()
        self._datapath.deliver(held, guest.index)
        self.events.emit("released", connection.label, packets=len(held), handed=handed)
        self._on_step(Step.RELEASED)
        connection.state = State.ESTABLISHED
        connection.established_at = connection.last_active
        self._succession.write_down(connection)
        self._on_step(Step.RECORDED)
        try:
            self._datapath.steer(connection, guest.index)
        except FabricError as exc:
            self._give_up(connection, str(exc))
            return
        self.events.emit("steering-installed", connection.label, guest=guest.name)
        self.on_audience()
        self._on_step(Step.STEERED)
        self._start(self.messages.align(connection))

    def _give_up(self, connection: Connection, why: str, cause: str = "spawn-failed") -> None:
        first = connection.held[0] if connection.held else None
        if first is not None:
            self.refuse(connection, first, cause, why)
        else:
            self.events.emit("refused", connection.label, cause=cause, why=why)
        self._start(self.end(connection, cause))

    def _configure(self, connection: Connection, identity: GuestIdentity) -> Configure:
        """The first packet of an application goes with the instructions: the agent sends it on
        before it does anything else, and so may have an answer to deliver before it says that it
        is ready."""
        self._datapath.admit(connection, identity.index)
        now_us = self.clock.unix_us()
        held = connection.held[0] if connection.held else None
        connection.handed = held if held is not None and held.upstream is None else None
        first = (connection.handed.data,) if connection.handed else ()
        return instructions(
            self.config,
            self.topology,
            self.table,
            connection,
            identity.index,
            now_us,
            first,
            self._keyring.key(connection.id, str(identity.address)),
            self.down(),
        )

    def on_guest_lost(self, guest: Guest) -> None:
        """The guest died under a live connection: hold its packets, get it another one."""
        connection = self.connections.by_id(guest.connection)
        if connection is None or connection.guest is not guest:
            return
        self._datapath.unsteer(connection)
        connection.guest, connection.state = None, State.HELD
        self.events.emit("guest-lost", connection.label, guest=guest.name)
        if self.clock.monotonic() - connection.established_at >= STEADY:
            connection.spawns = 0
        if connection.spawns >= MAX_SPAWNS:
            self._give_up(connection, f"{connection.spawns} guests were lost in a row")
        else:
            connection.spawning = self._start(self._spawn(connection))

    async def end(self, connection: Connection, why: str) -> None:
        """Steering goes first, the guest after it. Idempotent."""
        if connection.state is State.CLOSED:
            return
        guest = connection.guest
        self._datapath.unsteer(connection)
        self._on_step(Step.UNSTEERED)
        if guest is not None:
            await self.messages.refresh(connection)
        self.connections.remove(connection)
        self._announcer.forget(connection)
        self.on_audience()
        self._succession.forget(connection)
        self._on_step(Step.FORGOTTEN)
        self.events.emit("connection-ended", connection.label, why=why)
        if guest is not None:
            await self._guests.destroy(guest)

    def inherit(self, inheritance: Inheritance) -> None:
        """Go on with the connections of an earlier life: with their guests or, where those could
        not be adopted, with others."""
        refused = list(inheritance.refused)
        for each in inheritance.adopted:
            connection, guest = each.saved.restore(), each.guest
            if guest.state is not GuestState.RUNNING:
                refused.append((each.saved, "its guest was lost while others were asked"))
                continue
            self._take_up(connection, guest=guest.name)
            connection.guest, connection.state = guest, State.ESTABLISHED
            self._datapath.admit(connection, guest.index)
            self._datapath.steer(connection, guest.index)
            if each.table_version != self.table.version:
                self._send_table(connection, guest)
            self._start(self.messages.refresh(connection))
        for saved, why in refused:
            connection = saved.restore()
            self._take_up(connection, guest=None, why=why)
            self._datapath.unsteer(connection)
            if self.config.spawning:
                connection.spawning = self._start(self._spawn(connection))

    def _take_up(self, connection: Connection, **fields: object) -> None:
        connection.last_active = connection.established_at = self.clock.monotonic()
        self.connections.add(connection)
        role = connection.role.value
        self.events.emit("connection-adopted", connection.label, role=role, **fields)

    def sweep(self) -> None:
        """End the connections nobody uses any more; called about once a second."""
        now = self.clock.monotonic()
        for connection in self.connections:
            quiet = now - connection.last_active
            if connection.state is not State.ESTABLISHED and self.config.spawning:
                self._abandon_late(connection, quiet)
                continue
            self._keep_protected(connection, now)
            quiet = now - connection.last_active
            if quiet >= connection.idle_limit(self.config.idle_timeout):
                why = "closed" if connection.closing else "idle"
                self.events.emit("idle", connection.label, quiet_s=round(quiet, 3), why=why)
                connection.last_active = now
                self._start(self.end(connection, why))

    def _abandon_late(self, connection: Connection, quiet: float) -> None:
        """No guest for whoever has stopped asking; and nobody waits for a first one for ever: a
        refusal says more than the time-out of the application's kernel (TCP: 127 s)."""
        limit, why = self.config.limits.held_seconds, ""
        waited = (self.clock.unix_us() - connection.requested_at_us) / 1e6
        if quiet >= limit:
            why = f"no guest yet, and no packet for {quiet:.0f} s"
        elif not connection.established_at and waited >= limit:
            why = f"no guest within {waited:.0f} s"
        if why and connection.spawning is not None and connection.spawning.cancel():
            self._give_up(connection, why, "abandoned")

    def announce(
        self,
        connection: Connection,
        hop_limit: int = DEFAULT_HOP_LIMIT,
        told: Announcement | None = None,
        *,
        reply: bool = False,
    ) -> None:
        """See :meth:`fabric.host.control.announcer.Announcer.announce`."""
        self._announcer.announce(connection, self.table, hop_limit, told, reply=reply)

    def _keep_protected(self, connection: Connection, now: float) -> None:
        """Guests on alternate paths carry nothing, and would be taken for idle."""
        if not connection.protect or connection.role is Role.TRANSIT:
            return
        if now - connection.told_again_at >= self.config.idle_timeout / 3:
            connection.told_again_at = now
            told = Announcement(connection.flow, protect=True, again=True)
            reply = connection.role is Role.EGRESS
            self.announce(connection, told=told, reply=reply)

    def install(self, topology: Topology, table: ForwardingTable) -> None:
        """The network is another one now: agents get what concerns their connections; those stay
        where they are. Where a connection goes another way, the hosts there hear of it ahead."""
        before, self.topology, self.table = self.table, topology, table
        self.history.record(topology, table)
        self.events.emit("table-installed", version=table.version)
        for connection in self.connections:
            ends = (connection.source_node, connection.destination_node)
            rows = table.to_json(ends)
            if {**rows, "version": 0} == {**before.to_json(ends), "version": 0}:
                continue
            if connection.guest is not None:
                self._send_table(connection, connection.guest)
            for reply in (False, True):
                if connection.role is not (Role.INGRESS if reply else Role.EGRESS):
                    told = Announcement(connection.flow, protect=connection.protect)
                    self.announce(connection, told=told, reply=reply)

    def _send_table(self, connection: Connection, guest: Guest) -> None:
        ends = (connection.source_node, connection.destination_node)
        with contextlib.suppress(GuestFault):  # whose end its channel reports by itself
            guest.send(InstallTable(table=self.table.to_json(ends)))

    async def close(self) -> None:
        """End everything; afterwards no guest and no rule of ours is left."""
        for connection in self.connections:
            self._start(self.end(connection, "shutdown"))
        # Spawns under way end by this, not by running to their end.
        await self._guests.close()
        while self._tasks:
            # Not gather: from Python 3.12 on it comes back without a turn of the loop when all are
            # done, and their callbacks, which empty the set, would never run.
            await asyncio.wait(self._tasks)

    def _name(self, node: int) -> str:
        return self.topology.name_of(node)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.events.emit("internal-error", error=repr(exc))
            log.error("unexpected error in a background task", exc_info=exc)
