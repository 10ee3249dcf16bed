"""Taking over what an earlier life of this host's orchestrator left running.

Owns: which guests may be taken over (:func:`choose`, pure), and the proof that one still carries
its connection (:class:`Adopter`). May import: errors, wire.control, and its neighbours in host.

A guest is adopted when the record of its connection is whole, libvirt runs that very domain, its
agent says on the control channel that it serves that connection, and its kernel answers over the
network. Anything less and it is destroyed; its connection then gets another guest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fabric.errors import AgentLost, FabricError
from fabric.host.guest.guest import Guest, unless_lost
from fabric.host.guest.lifecycle import GuestEvent, GuestState
from fabric.host.guest.steps import Steps
from fabric.host.identity import domain_name
from fabric.host.journal import GUEST_KIND
from fabric.host.network.ping import Ping
from fabric.host.vmm.domains import OwnedDomain
from fabric.wire.control import Identity, Query

if TYPE_CHECKING:
    from fabric.host.control.records import SavedConnection

ADOPTION_DEADLINES = {"kvm": 5.0, "tcg": 20.0}
"""Seconds an agent has for its answer. All are asked at once, on a machine on which a whole lab may
be coming back; meanwhile their connections work."""

PING_DEADLINES = {"kvm": 2.0, "tcg": 5.0}
"""Seconds its kernel has, which answers for itself."""


@dataclass(frozen=True)
class Adopted:
    """A guest that goes on, and the connection it carries."""

    saved: SavedConnection
    guest: Guest
    table_version: int
    """Of the table its agent uses."""


@dataclass(frozen=True)
class Inheritance:
    """What came of an earlier life."""

    adopted: Sequence[Adopted] = ()
    refused: Sequence[tuple[SavedConnection, str]] = ()
    """Connections whose guests could not be adopted, and why."""
    ended: int = 0
    """Guests that are being destroyed."""


@dataclass(frozen=True)
class Choice:
    """What the records and libvirt's list say; the guests themselves were not asked yet."""

    adoptable: Sequence[SavedConnection]
    refused: Mapping[int, str] = field(default_factory=dict)
    """Connection id → why."""


def choose(saved: Iterable[SavedConnection], domains: Iterable[OwnedDomain]) -> Choice:
    """Whose guests may be adopted. ``domains``: all with this host's mark."""
    running = {domain.index: domain for domain in domains if _is_regular(domain)}
    adoptable: dict[int, SavedConnection] = {}
    refused: dict[int, str] = {}
    # The newest first: if two say they have a slot, the older one was not cleaned up after.
    for record in sorted(saved, key=lambda each: each.requested_at_us, reverse=True):
        domain = running.get(record.guest.index)
        if domain is None or not domain.active:
            refused[record.id] = "its guest is gone"
        elif domain.uuid != record.guest.uuid:
            refused[record.id] = "its guest's slot has another guest"
        elif record.guest.index in adoptable:
            refused[record.id] = "another connection has its guest"
        else:
            adoptable[record.guest.index] = record
    return Choice(list(adoptable.values()), refused)


def _is_regular(domain: OwnedDomain) -> bool:
    return domain.name == domain_name(domain.lab, domain.host, domain.index)


class Slots(Protocol):
    """What of the guests' keeper is needed here."""

    def take(self, index: int, connection: int) -> Guest:
        """A guest in this very slot, which is free. Raises CapacityExceeded: there is none."""

    def fail(self, guest: Guest, reason: str) -> None:
        """It is broken: end it."""

    def reclaim(self, name: str) -> object:
        """Begin to end whatever has this name, unless a guest has; None then."""


class Adopter:
    """Finds out which guests live and takes them over."""

    def __init__(self, steps: Steps, slots: Slots, ping: Ping) -> None:
        self._ping = ping
        self._steps = steps
        self._slots = slots
        kind = steps.accelerator
        self._deadline, self._patience = ADOPTION_DEADLINES[kind], PING_DEADLINES[kind]

    async def take_over(self, saved: Sequence[SavedConnection]) -> Inheritance:
        """Adopt whom one may; begin to end all other guests of this host that libvirt or the
        journal knows of. Raises HypervisorDown, nothing for a guest."""
        steps = self._steps
        owner = (steps.config.lab, steps.config.host)
        domains = await steps.blocking(steps.hypervisor.list_owned, *owner)
        choice = choose(saved, domains)
        answers = await asyncio.gather(*(self._try(record) for record in choice.adoptable))
        refused = [(record, why) for record in saved if (why := choice.refused.get(record.id))]
        adopted: list[Adopted] = []
        for record, answer in zip(choice.adoptable, answers, strict=True):
            if isinstance(answer, Adopted):
                adopted.append(answer)
            else:
                refused.append((record, answer))
        noted = [entry.name for entry in steps.journal.open_entries() if entry.kind == GUEST_KIND]
        names = sorted({*noted, *(domain.name for domain in domains)})
        ended = sum(self._slots.reclaim(name) is not None for name in names)
        return Inheritance(adopted, refused, ended)

    async def _try(self, saved: SavedConnection) -> Adopted | str:
        try:
            guest = self._slots.take(saved.guest.index, saved.id)
        except FabricError as exc:
            return exc.message
        try:
            said = await self._prove(guest, saved)
        except FabricError as exc:
            self._slots.fail(guest, f"not adopted: {exc.message}")
            return exc.message
        guest.advance(GuestEvent.ADOPT)
        self._steps.hooks.emit(
            "guest-adopted", guest, tier=guest.tier, uuid=guest.uuid, digest=said.digest
        )
        return Adopted(saved, guest, said.table_version)

    async def _prove(self, guest: Guest, saved: SavedConnection) -> Identity:
        """Raises AgentLost."""
        steps = self._steps
        guest.uuid, guest.tier = saved.guest.uuid, saved.guest.tier
        guest.phases = dict(saved.guest.phases)
        guest.host_key = saved.guest.key()
        steps.hooks.attach(guest.identity)
        if not guest.identity.channel.exists():
            raise AgentLost(f"{guest.name}: its control channel is gone")
        said_identity = guest.expect_identity()
        channel = await steps.join(guest)
        channel.resynchronise()
        channel.send(Query(what="identity"))
        word = steps.word(guest, said_identity, self._deadline)
        said = await unless_lost(guest, word)
        if said.connection != saved.id or saved.protocol not in (None, said.protocol):
            raise AgentLost(
                f"{guest.name}: its agent serves {said.connection:016x} by protocol {said.protocol}"
            )
        # The channel goes through QEMU alone. Packets take the bridge, which may be a new one.
        await unless_lost(guest, self._ping(guest.identity.address, self._patience))
        guest.expect(GuestState.REQUESTED)
        return said
