"""Guests of one host, from a free slot to proven absence.

Owns: slots, the steps of a spawn and of a destruction, and the agents' channels. May import:
errors, wire.control, and its neighbours in host. States are :mod:`fabric.host.lifecycle`'s.

Everything runs on the event loop's thread, but for the hypervisor and SSH, which block and have
threads of their own. A guest exists in the journal before it exists anywhere else, and its slot is
free again only when the hypervisor has proven that nothing is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fabric.errors import AgentLost, CapacityExceeded, Conflict, FabricError, SpawnFailed
from fabric.host.bridge_ports import BridgePorts
from fabric.host.bundle import Bundle
from fabric.host.channel import Channel
from fabric.host.config import HostConfig
from fabric.host.domains import DomainEvent, Hypervisor
from fabric.host.guest import Accelerator, Guest, Image, milliseconds_since, phase, unless_lost
from fabric.host.identity import GuestIdentity
from fabric.host.journal import Journal
from fabric.host.leftovers import GUEST_KIND, clear_leftovers
from fabric.host.lifecycle import GuestEvent, GuestState
from fabric.host.provision import Provisioner, SshKeys, SshProvisioner
from fabric.host.steps import Hooks, Steps
from fabric.host.template import TemplateStore
from fabric.host.tiers import ColdTier, TemplateTier, Tier
from fabric.wire.control import AgentEvent, Configure, Message

_T = TypeVar("_T")

SPAWN_ATTEMPTS = 2
"""One retry in another slot: the first may have hit a leftover or a passing fault."""

BOOTS_PER_CPU = 2
"""Boots at once per processor. Emulated guests are processor bound, so more at once only makes the
first one later; twice the processors fills the gaps in which a guest waits."""

CLONES_PER_CPU = 4
"""Copies of templates coming up at once per processor: half of the time they wait for libvirt."""

TEMPLATE_CONNECTION = 0
"""The "connection" of a guest a template is made from; a real one has a node id in it, never 0."""

DESTROYERS = 4
"""Destructions at once. libvirt serves about five slow calls at a time, see max_workers."""

AGENT_ERROR = "agent-error"
"""Name of the event by which an agent says that it could not do what it was told."""

RETRY_DESTROY = 5.0
"""Seconds before an unproven destruction is tried again."""

__all__ = ["Guest", "GuestManager"]


def _ignore(*_: Any) -> None:
    return None


class GuestManager:
    """Spawns and destroys the guests of one host; the constructor acquires nothing.

    ``on_event(name, guest, fields)``, ``on_message(guest, message)``, ``on_lost(guest)`` and
    ``on_notice(name, fields)`` (of no guest) are called on the event loop. ``on_attach(identity)``
    runs just before a domain is created and ``on_detach(identity)`` when it is gone: the place for
    static neighbour entries.
    A lost guest is destroyed by the manager itself.
    """

    def __init__(
        self,
        config: HostConfig,
        image: Image,
        acceleration: Accelerator,
        hypervisor: Hypervisor,
        bundle: Bundle,
        *,
        ports: BridgePorts,
        provisioner: Provisioner | None = None,
        journal: Journal | None = None,
        boots: int | None = None,
        templates: TemplateStore | None = None,
    ) -> None:
        self.on_event: Callable[[str, Guest, dict[str, Any]], None] = _ignore
        self.on_message: Callable[[Guest, Message], None] = _ignore
        self.on_lost: Callable[[Guest], None] = _ignore
        self.on_notice: Callable[[str, dict[str, Any]], None] = _ignore
        self.on_attach: Callable[[GuestIdentity], None] = _ignore
        self.on_detach: Callable[[GuestIdentity], None] = _ignore
        self._config = config
        self._hypervisor = hypervisor
        self._journal = journal or Journal(config.host_dir / "journal.jsonl")
        cold_boots = boots or BOOTS_PER_CPU * (os.cpu_count() or 1)
        clones = CLONES_PER_CPU * (os.cpu_count() or 1)
        self._makers = ThreadPoolExecutor(2 * cold_boots + clones, "fabric-spawn")
        self._destroyers = ThreadPoolExecutor(DESTROYERS, "fabric-destroy")
        keys = SshKeys(image.host_public_key, image.client_key)
        self._steps = steps = Steps(
            config,
            image,
            acceleration,
            hypervisor,
            ports,
            self._journal,
            provisioner or SshProvisioner(keys, bundle.data, self._makers),
            self._makers,
            Hooks(self._emit, self._attach, self._listen),
        )
        self._cold = ColdTier(steps, asyncio.Semaphore(cold_boots))
        self._template: TemplateTier | None = None
        if templates is not None:
            self._template = TemplateTier(steps, asyncio.Semaphore(clones), self._cold, templates)
        self._tiers: list[Tier] = [self._cold] * SPAWN_ATTEMPTS
        if self._template is not None:
            self._tiers.insert(0, self._template)
        self._preparing: asyncio.Task[None] | None = None
        self._guests: dict[int, Guest] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._started = False
        self._closing = False

    # -- what there is -------------------------------------------------------------------------

    def alive(self) -> int:
        """Slots that are not free: guests of any state but gone. One a template is being made from
        does not count: it must not cost a connection its place."""
        return sum(g.connection != TEMPLATE_CONNECTION for g in self._guests.values())

    def guests(self) -> list[Guest]:
        """All guests that hold a slot, by index."""
        return [self._guests[index] for index in sorted(self._guests)]

    # -- spawn ---------------------------------------------------------------------------------

    async def start(self) -> int:
        """Open the journal, watch the hypervisor, destroy what a former life left behind.

        Returns how many leftovers there were. Called by the first spawn if not before. Raises
        HypervisorDown, EnvironmentFault (journal), SpawnFailed (a leftover that cannot be ended).
        """
        async with self._starting:
            if self._started:
                return 0
            self._loop = asyncio.get_running_loop()
            self._journal.open()
            await self._blocking(self._hypervisor.watch, self._on_domain_event)
            owner = (self._hypervisor, self._journal, self._config.lab, self._config.host)
            leftovers = await self._blocking(clear_leftovers, *owner)
            self._started = True
            if self._template is not None:
                keeping = self._template.keep(self._maker, self.on_notice)
                self._preparing = asyncio.create_task(keeping)
            return leftovers

    async def spawn(
        self, connection: int, configure: Callable[[GuestIdentity], Configure]
    ) -> Guest:
        """A running, configured guest for ``connection`` (64-bit id).

        ``configure`` is called once the agent said hello. A tier that cannot be had, or fails, is
        followed by a cold boot. Raises SpawnFailed when those failed twice, in two slots, or no
        slot is left. Cancelling it destroys what was begun.
        """
        reasons: list[str] = []
        tiers = list(self._tiers)
        while tiers and not self._closing:
            try:
                await self.start()
                guest = self._claim(connection)
            except FabricError as exc:
                raise SpawnFailed(exc.message, cure=exc.cure) from exc
            tier = self._choose(guest, tiers)
            try:
                await self._bring_up(guest, tier, configure)
            except FabricError as exc:
                reasons.append(str(exc))
                self._fail(guest, str(exc), quarantine=isinstance(exc, Conflict))
                if tiers and not self._closing:
                    self._fall_back(guest, tier, tiers[0], str(exc))
            except BaseException:
                # Cancelled, or a defect: nothing may stay behind either way.
                self._fail(guest, "the spawn was abandoned")
                raise
            else:
                return guest
        raise SpawnFailed(
            f"no guest for connection {connection:016x}: {'; then '.join(reasons) or 'closing'}"
        )

    def _choose(self, guest: Guest, tiers: list[Tier]) -> Tier:
        """Take the first tier that can be had off the list."""
        tier = tiers.pop(0)
        while tiers and (why := tier.unavailable()):
            self._fall_back(guest, tier, tiers[0], why)
            tier = tiers.pop(0)
        guest.tier = tier.name
        return tier

    def _fall_back(self, guest: Guest, old: Tier, new: Tier, reason: str) -> None:
        if old.name != new.name:
            fields = {"from": old.name, "to": new.name, "reason": reason}
            self._emit("tier-fallback", guest, **fields)

    def _claim(self, connection: int) -> Guest:
        index = next(i for i in range(1, len(self._guests) + 2) if i not in self._guests)
        if self.alive() >= self._config.limits.guests:
            raise CapacityExceeded(
                f"all {self._config.limits.guests} guest slots are taken",
                limit="guests",
                cure="raise limits.guests or let idle connections end",
            )
        guest = Guest(GuestIdentity.derive(self._config, index), connection)
        self._guests[index] = guest
        return guest

    async def _bring_up(
        self, guest: Guest, tier: Tier, configure: Callable[[GuestIdentity], Configure]
    ) -> None:
        async with tier.at_once:
            begun = time.perf_counter()
            await tier.bring_up(guest)
            with phase(guest, "ready_ms"):
                assert guest.channel is not None  # bring_up joined it
                guest.channel.send(configure(guest.identity))
                word = self._steps.word(guest, guest.said_ready, self._cold.agent_deadline)
                guest.ready = await unless_lost(guest, word)
            if guest.ready.connection != guest.connection:
                raise AgentLost(f"{guest.name}: ready for connection {guest.ready.connection:016x}")
            guest.phases["total_ms"] = milliseconds_since(begun)
            guest.advance(GuestEvent.READY)
            self._emit("guest-ready", guest, tier=tier.name, phases=dict(guest.phases))

    @contextlib.asynccontextmanager
    async def _maker(self) -> AsyncIterator[Guest]:
        """A slot for the guest a template is made from: no connection's, and not counted."""
        await self.start()
        guest = self._claim(TEMPLATE_CONNECTION)
        guest.tier = self._cold.name
        try:
            yield guest
        finally:
            await self.destroy(guest)
            if guest.state is not GuestState.GONE:
                raise SpawnFailed(f"{guest.name}, a template's guest, cannot be ended")

    # -- what guests do by themselves --------------------------------------------------------------

    async def _listen(self, guest: Guest, channel: Channel) -> None:
        reason = "its control channel ended"
        try:
            async for message in channel.messages():
                self._hear(guest, message)
        except AgentLost as exc:
            reason = exc.message
        self._lost(guest, reason)

    def _hear(self, guest: Guest, message: Message) -> None:
        if not guest.hear(message):
            if isinstance(message, AgentEvent) and message.name == AGENT_ERROR:
                self._refused(guest, message)
            self.on_message(guest, message)

    def _refused(self, guest: Guest, error: AgentEvent) -> None:
        """An agent that cannot use its configuration will never be ready: do not wait for it."""
        if not guest.said_ready.done():
            self._lost(guest, f"its agent refused the configuration: {error.fields}")

    def _on_domain_event(self, event: DomainEvent, name: str, uuid: str) -> None:
        """On a thread of the hypervisor's."""
        if event is not DomainEvent.STARTED and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                self._loop.call_soon_threadsafe(self._on_stopped, event, name, uuid)

    def _on_stopped(self, event: DomainEvent, name: str, uuid: str) -> None:
        if event is DomainEvent.RECONNECTED:
            # Stops in between went unseen, but their channels ended: nothing to do.
            return
        for guest in self.guests():
            # The news may be of the domain that had this slot before.
            if guest.name == name and guest.uuid == uuid:
                self._lost(guest, "its domain stopped")
            elif guest.name == name and not guest.uuid:
                guest.stops.add(uuid)

    def _lost(self, guest: Guest, reason: str) -> None:
        working = guest.state in (GuestState.RUNNING, GuestState.DRAINING)
        if guest.state in (GuestState.DESTROYING, GuestState.GONE):
            return
        if not working:
            if not guest.fault.done():
                guest.fault.set_result(reason)
            return
        self._fail(guest, reason)
        self.on_lost(guest)

    def _fail(self, guest: Guest, reason: str, *, quarantine: bool = False) -> None:
        if guest.state in (GuestState.DESTROYING, GuestState.GONE):
            return  # destroyed on purpose while it was coming up
        during = guest.state.value
        guest.advance(GuestEvent.FAULT)
        self._emit("guest-failed", guest, during=during, reason=reason)
        guest.quarantined = quarantine
        if not quarantine:
            self._end(guest)

    # -- destroy -------------------------------------------------------------------------------

    async def destroy(self, guest: Guest) -> None:
        """End the guest and wait until that is proven. Idempotent; never raises for a guest.

        A destruction that cannot be proven keeps the slot and is tried again in the background.
        """
        await asyncio.shield(self._end(guest))

    def _end(self, guest: Guest) -> asyncio.Task[None]:
        if guest.ending is None:
            guest.advance(GuestEvent.DESTROY)
            if not guest.fault.done():
                guest.fault.set_result("it is being destroyed")
            guest.ending = asyncio.get_running_loop().create_task(self._tear_down(guest))
        return guest.ending

    async def _tear_down(self, guest: Guest) -> None:
        if guest.creation is not None:
            await asyncio.wait({guest.creation})
            if isinstance(guest.creation.exception(), Conflict):
                guest.quarantined = True  # what holds the name is not this guest
                return
        try:
            await self._blocking(self._hypervisor.destroy, guest.name, pool=self._destroyers)
        except FabricError as exc:
            guest.advance(GuestEvent.FAULT)
            self._emit("guest-stuck", guest, reason=str(exc))
            if not self._closing and self._loop is not None:
                self._loop.call_later(RETRY_DESTROY, self._retry, guest)
            return
        if guest.listening is not None:
            guest.listening.cancel()
        if guest.channel is not None:
            await guest.channel.close()
        await self._blocking(self._forget, guest, pool=self._destroyers)
        self.on_detach(guest.identity)
        guest.advance(GuestEvent.ABSENT)
        self._guests.pop(guest.index, None)
        self._emit("guest-destroyed", guest)

    def _retry(self, guest: Guest) -> None:
        if not self._closing and guest.state is GuestState.DESTROYING:
            guest.ending = asyncio.get_running_loop().create_task(self._tear_down(guest))

    def _forget(self, guest: Guest) -> None:
        """In a thread: absence is proven, so ownership ends."""
        guest.identity.channel.unlink(missing_ok=True)
        self._journal.done(GUEST_KIND, guest.name)

    async def close(self) -> None:
        """Destroy every guest and release everything. Idempotent."""
        self._closing = True
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})
        ends = []
        for guest in self.guests():
            if guest.quarantined:
                continue
            if guest.ending is not None and guest.ending.done():
                guest.ending = None  # a stuck one gets a last try
            ends.append(self._end(guest))
        if ends:
            await asyncio.wait(ends)
        self._makers.shutdown(wait=False)
        self._destroyers.shutdown(wait=False)
        self._journal.close()

    # -- small things --------------------------------------------------------------------------

    async def _blocking(
        self, call: Callable[..., _T], *arguments: Any, pool: ThreadPoolExecutor | None = None
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool or self._makers, functools.partial(call, *arguments))

    def _attach(self, identity: GuestIdentity) -> None:
        self.on_attach(identity)

    def _emit(self, name: str, guest: Guest, /, **fields: Any) -> None:
        self.on_event(name, guest, fields)
