"""Comparing what is there with what should be, and mending the differences, once a minute.

Owns: looking, doing, the order of both. May import: errors, wire, and its neighbours in host. What
follows from a difference is :mod:`fabric.host.upkeep.reaper`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fabric.errors import FabricError, HypervisorDown
from fabric.host.config import HostConfig
from fabric.host.control.connections import Connection, ConnectionTable, State
from fabric.host.control.records import Records
from fabric.host.control.succession import Succession
from fabric.host.events import EventLog
from fabric.host.guest import template
from fabric.host.guest.guests import GuestManager
from fabric.host.guest.lifecycle import GuestState
from fabric.host.identity import GuestIdentity, domain_name
from fabric.host.journal import GUEST_KIND, Journal
from fabric.host.network.steering import Entries
from fabric.host.upkeep.reaper import Action, Known, KnownGuest, Observed, Target, Verb, due
from fabric.host.vmm.domains import Hypervisor
from fabric.host.vmm.remains import qemus
from fabric.wire.inner import FiveTuple

log = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two comparisons: one costs some 10 ms, and what it finds is rare."""

_NOT_THERE_YET = (GuestState.REQUESTED, GuestState.CREATING)
_NOT_THERE_ANY_MORE = (GuestState.FAILED, GuestState.DESTROYING, GuestState.GONE)


class KernelState(Protocol):
    """What of :class:`fabric.host.control.datapath.KernelDatapath` is needed here."""

    def admit(self, connection: Connection, guest_index: int) -> None: ...
    def steer(self, connection: Connection, guest_index: int) -> None: ...
    def entries(self) -> Entries | None: ...
    def neighbours(self) -> Mapping[int, str]: ...
    def attached(self) -> Mapping[int, str]: ...
    def reinstall(self) -> None: ...
    def attach_again(self, slot: int) -> None: ...
    def detach_slot(self, slot: int) -> None: ...
    def remove_entry(self, entry: FiveTuple | int) -> None: ...


@dataclass(frozen=True)
class House:
    """Everything that is compared."""

    config: HostConfig
    hypervisor: Hypervisor
    journal: Journal
    guests: GuestManager
    connections: ConnectionTable
    kernel: KernelState
    records: Records
    succession: Succession
    events: EventLog


class Housekeeper:
    """See the module docstring. On the event loop; what blocks for long has a thread."""

    def __init__(self, house: House) -> None:
        self._house = house
        kernel = house.kernel
        self._doers: dict[Verb, Callable[[Any], Awaitable[None] | None]] = {
            Verb.INSTALL: lambda _: kernel.reinstall(),
            Verb.DESTROY: self._destroy,
            Verb.LOSE: self._lose,
            Verb.UNSTEER: kernel.remove_entry,
            Verb.STEER: self._steer,
            Verb.DETACH: kernel.detach_slot,
            Verb.ATTACH: kernel.attach_again,
            Verb.RECORD: self._record,
            Verb.FORGET: house.records.forget,
            Verb.UNLINK: self._unlink,
            Verb.ABANDON: self._abandon,
        }
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self._missed: frozenset[Target] = frozenset()
        """Guests libvirt did not know at the last look. A libvirtd that has just come back may not
        know all of them yet: one look is not enough."""

    async def run(self, *, dry_run: bool = False, quick: bool = False) -> list[Action]:
        """Compare and, unless ``dry_run``, mend; the differences that were due. ``quick``: only
        what can be looked at at once, the kernel's state and the records: libvirt's list takes
        seconds while it destroys domains."""
        async with self._one_at_a_time:
            if self._closed:
                return []
            before = self._known()
            elsewhere = Observed() if quick else await asyncio.to_thread(self._look_elsewhere)
            observed = self._look(elsewhere)
            actions = due(observed, before, self._known())
            lost = {a.target for a in actions if a.verb is Verb.LOSE}
            actions = [a for a in actions if a.verb is not Verb.LOSE or a.target in self._missed]
            if not dry_run:
                self._missed = frozenset(lost)
                for action in actions:
                    await self._do(action)
            return actions

    async def keep(self) -> None:
        """Compare now and every minute, until cancelled."""
        while True:
            try:
                await self.run()
            except Exception:  # whatever it was: in a minute it may work
                log.exception("the comparison failed")
            await asyncio.sleep(INTERVAL)

    async def close(self) -> None:
        """Compare no more: what ends now is not missing. Waits for a comparison under way."""
        async with self._one_at_a_time:
            self._closed = True

    # -- looking -------------------------------------------------------------------------------

    def _known(self) -> Known:
        house = self._house
        guests = {}
        for guest in house.guests.guests():
            alive = guest.state not in (*_NOT_THERE_YET, *_NOT_THERE_ANY_MORE)
            guests[guest.name] = KnownGuest(guest.index, guest.uuid, alive)
        established, flows = {}, {}
        table = house.connections
        for connection in table:
            if connection.state is not State.ESTABLISHED or connection.guest is None:
                continue
            established[connection.id] = connection.guest.index
            flow = connection.local_flow
            # Of two connections with one flow only the newer is found by it.
            if flow is not None and table.by_flow(flow) is connection:
                flows[flow] = connection.id
        live = frozenset(connection.id for connection in table)
        return Known(guests, established, flows, house.kernel.attached(), live)

    def _look(self, elsewhere: Observed) -> Observed:
        house = self._house
        try:
            entries, neighbours = house.kernel.entries(), house.kernel.neighbours()
        except FabricError as exc:
            # The wiring itself is damaged: that is for `fabric up` to mend.
            log.warning("the kernel's state cannot be compared: %s", exc)
            entries, neighbours = Entries({}, {}), house.kernel.attached()
        return replace(
            elsewhere,
            flows=entries.flows if entries else None,
            connections=entries.connections if entries else {},
            neighbours=neighbours,
            records=house.records.ids(),
        )

    def _look_elsewhere(self) -> Observed:
        """In a thread."""
        house, config = self._house, self._house.config
        try:
            owned = house.hypervisor.list_owned(config.lab, config.host)
            domains = {domain.name: domain.uuid for domain in owned}
        except HypervisorDown:
            domains = None
        prefix = domain_name(config.lab, config.host, 0)[:-1]
        processes = qemus(prefix) if config.libvirt_uri.startswith("qemu:") else {}
        entries = house.journal.open_entries()
        return Observed(
            domains=domains,
            processes=frozenset(processes),
            journal=frozenset(entry.name for entry in entries if entry.kind == GUEST_KIND),
            channels=frozenset(_channels(config)),
            drafts=frozenset(template.abandoned(Path(config.template_dir))),
        )

    # -- doing ---------------------------------------------------------------------------------

    async def _do(self, action: Action) -> None:
        fields = {"verb": action.verb.value, "what": action.what, "why": action.why}
        try:
            doing = self._doers[action.verb](action.target)
            if doing is not None:
                await doing
        except (FabricError, OSError) as exc:
            self._house.events.emit("reap-failed", **fields, reason=str(exc))
        else:
            self._house.events.emit("reaped", **fields)

    async def _destroy(self, name: str) -> None:
        if (ending := self._house.guests.reclaim(name)) is not None:
            await asyncio.shield(ending)

    def _lose(self, who: tuple[str, str]) -> None:
        for guest in self._house.guests.guests():
            if (guest.name, guest.uuid) == who:
                self._house.guests.lose(guest, "libvirt does not know its domain")

    def _steer(self, connection: int) -> None:
        found = self._house.connections.by_id(connection)
        if found is not None and found.guest is not None:
            self._house.kernel.admit(found, found.guest.index)
            self._house.kernel.steer(found, found.guest.index)

    def _record(self, connection: int) -> None:
        if (found := self._house.connections.by_id(connection)) is not None:
            self._house.succession.write_down(found)

    def _unlink(self, slot: int) -> None:
        GuestIdentity.derive(self._house.config, slot).channel.unlink(missing_ok=True)

    async def _abandon(self, draft: str) -> None:
        place = Path(self._house.config.template_dir)
        await asyncio.to_thread(template.remove_abandoned, place, draft)


def _channels(config: HostConfig) -> list[int]:
    """Slots that have a channel socket."""
    found = []
    for path in config.host_dir.glob("g*.channel"):
        digits = path.name.removeprefix("g").removesuffix(".channel")
        if digits.isdecimal():
            found.append(int(digits))
    return found
