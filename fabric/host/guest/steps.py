"""The steps every way of bringing up a guest is made of.

Owns: creating a domain (journal first), joining its agent's channel, waiting for the agent's word.
May import: errors, wire.control, and its neighbours in host. Which steps in which order is
:mod:`fabric.host.guest.tiers`'; slots and ends are :mod:`fabric.host.guest.guests`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fabric.errors import AgentLost, FabricError
from fabric.host.config import HostConfig
from fabric.host.faults import OnStep, Step
from fabric.host.guest.channel import Channel
from fabric.host.guest.guest import Accelerator, Guest, Image, blueprint, phase, unless_lost
from fabric.host.guest.lifecycle import GuestEvent, GuestState
from fabric.host.guest.provision import Provisioner
from fabric.host.identity import GuestIdentity
from fabric.host.journal import GUEST_KIND, Journal
from fabric.host.network.bridge_ports import BridgePorts
from fabric.host.vmm.domain_xml import DomainSpec, OwnerMark, mark_element, render
from fabric.host.vmm.domains import DomainHandle, Hypervisor

_T = TypeVar("_T")

CHANNEL_DEADLINE = 10.0
"""Seconds until the channel's socket must exist: libvirt makes it before it reports the domain."""

OLD_KERNEL = "Linux 5.18 or newer: this one cannot keep a guest from sending with another's MAC"

Change = Callable[[DomainSpec], DomainSpec]
"""What a tier wants different from the plain blueprint."""


class Emit(Protocol):
    def __call__(self, name: str, guest: Guest, /, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Hooks:
    """What the guests' keeper does while steps are taken."""

    emit: Emit
    attach: Callable[[GuestIdentity], None]
    listen: Callable[[Guest, Channel], Coroutine[Any, Any, None]]
    lost: Callable[[Guest, str], None]
    step: OnStep


@dataclass(frozen=True)
class Steps:
    """Shared by the tiers of one host."""

    config: HostConfig
    image: Image
    acceleration: Accelerator
    hypervisor: Hypervisor
    ports: BridgePorts
    journal: Journal
    provisioner: Provisioner
    pool: ThreadPoolExecutor
    """For what blocks."""
    hooks: Hooks

    @property
    def accelerator(self) -> str:
        """kvm or tcg: what deadlines go by."""
        return "kvm" if self.acceleration.kind == "kvm" else "tcg"

    async def create(
        self, guest: Guest, change: Change = lambda plan: plan, *, paused: bool = False
    ) -> None:
        """REQUESTED → BOOTING: the domain exists, and its port is secured. Raises what
        Hypervisor.create, BridgePorts.secure and Journal do."""
        guest.expect(GuestState.REQUESTED)
        guest.advance(GuestEvent.CREATE)
        identity = guest.identity
        self.hooks.emit("guest-spawning", guest, index=guest.index, address=identity.address)
        self.hooks.attach(identity)
        self.hooks.step(Step.ATTACHED)
        work = self.blocking(self._create_domain, guest, change, paused)
        guest.creation = asyncio.ensure_future(work)
        # Shielded: a creation under way cannot be taken back, so destruction waits for its end.
        handle, locked = await asyncio.shield(guest.creation)
        guest.expect(GuestState.CREATING)
        guest.advance(GuestEvent.CREATED)
        guest.uuid = handle.uuid
        if guest.uuid in guest.stops:
            raise AgentLost(f"{guest.name}: its domain stopped")
        self.hooks.emit(
            "guest-started",
            guest,
            tap=identity.tap,
            mac=identity.mac,
            uuid=handle.uuid,
            pid=handle.pid,
            started_at_us=round(handle.started_at * 1e6),
        )
        self.hooks.step(Step.STARTED)
        if not locked:
            self.hooks.emit("port-unlocked", guest, tap=identity.tap, cure=OLD_KERNEL)

    def _create_domain(
        self, guest: Guest, change: Change, paused: bool
    ) -> tuple[DomainHandle, bool]:
        """In a thread. Ownership is written first, then comes what is owned; and it does not run
        before its port lets it send as nobody but itself."""
        identity = guest.identity
        self.journal.intend(GUEST_KIND, guest.name, connection=f"{guest.connection:016x}")
        self.hooks.step(Step.INTENDED)
        identity.channel.unlink(missing_ok=True)
        plan = change(blueprint(guest, self.config, self.image, self.acceleration))
        handle = self.hypervisor.create(render(plan), paused=True)
        self.hooks.step(Step.CREATED)
        with phase(guest, "port_ms"):
            locked = self.ports.secure(identity.tap, identity.mac)
        self.hooks.step(Step.SECURED)
        if not paused:
            self.hypervisor.resume(guest.name)
        return handle, locked

    async def join(self, guest: Guest) -> Channel:
        """Connect to the agent's channel and listen from now on. Raises AgentLost."""
        connecting = Channel.connect(guest.identity.channel, CHANNEL_DEADLINE)
        channel = await unless_lost(guest, connecting)
        guest.channel = channel
        guest.listening = asyncio.create_task(self.hooks.listen(guest, channel))
        self.hooks.step(Step.JOINED)
        return channel

    async def word(self, guest: Guest, said: asyncio.Future[_T], deadline: float) -> _T:
        """Wait for the agent to speak. Raises AgentLost, with its last words if it does not within
        ``deadline`` seconds."""
        try:
            async with asyncio.timeout(deadline):
                return await said
        except TimeoutError as exc:
            key = guest.host_key.line if guest.host_key else ""
            words = await self.provisioner.explain(guest.identity.address, key)
            raise AgentLost(
                f"{guest.name}: no word from the agent within {deadline:g} s; "
                f"its log ends: {words or '(nothing)'}"
            ) from exc

    async def remark(self, guest: Guest) -> None:
        """Behind the request: journal and domain of a claimed guest name the connection, too."""
        identity = guest.identity
        mark = OwnerMark(
            identity.lab, identity.host, guest.index, guest.connection, time.time_ns() // 1000
        )
        label = f"{guest.connection:016x}"
        with contextlib.suppress(FabricError):  # it ended meanwhile
            note = functools.partial(self.journal.intend, connection=label)
            await self.blocking(note, GUEST_KIND, guest.name)
            await self.blocking(self.hypervisor.assign, guest.name, mark_element(mark))

    async def blocking(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Run ``call`` in a thread of the pool."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, functools.partial(call, *arguments))
