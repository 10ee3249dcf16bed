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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fabric.errors import AgentLost, CapacityExceeded, Conflict, FabricError, SpawnFailed
from fabric.host.bundle import Bundle
from fabric.host.channel import Channel
from fabric.host.config import HostConfig
from fabric.host.domain_xml import render
from fabric.host.guest import (
    AGENT_DEADLINES,
    STEP_DEADLINES,
    Accelerator,
    Guest,
    Image,
    blueprint,
    milliseconds_since,
    phase,
    unless_lost,
)
from fabric.host.hypervisor import DomainEvent, Hypervisor
from fabric.host.identity import GuestIdentity
from fabric.host.journal import Journal
from fabric.host.leftovers import GUEST_KIND, clear_leftovers
from fabric.host.lifecycle import GuestEvent, GuestState, advance
from fabric.host.provision import Provisioner, SshKeys, SshProvisioner
from fabric.wire.control import AgentEvent, Configure, Hello, Message, Ready

_T = TypeVar("_T")

SPAWN_ATTEMPTS = 2
"""One retry in another slot: the first may have hit a leftover or a passing fault."""

CHANNEL_DEADLINE = 10.0
"""Seconds until the channel's socket must exist: libvirt makes it before it reports the domain."""

BOOTS_PER_CPU = 2
"""Boots at once per processor. Emulated guests are processor bound, so more at once only makes the
first one later; twice the processors fills the gaps in which a guest waits."""

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

    ``on_event(name, guest, fields)``, ``on_message(guest, message)`` and ``on_lost(guest)`` are
    called on the event loop. ``on_attach(identity)`` runs just before a domain is created and
    ``on_detach(identity)`` when it is gone: the place for static neighbour entries.
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
        provisioner: Provisioner | None = None,
        journal: Journal | None = None,
        boots: int | None = None,
    ) -> None:
        self.on_event: Callable[[str, Guest, dict[str, Any]], None] = _ignore
        self.on_message: Callable[[Guest, Message], None] = _ignore
        self.on_lost: Callable[[Guest], None] = _ignore
        self.on_attach: Callable[[GuestIdentity], None] = _ignore
        self.on_detach: Callable[[GuestIdentity], None] = _ignore
        self._config = config
        self._image = image
        self._acceleration = acceleration
        self._hypervisor = hypervisor
        self._journal = journal or Journal(config.host_dir / "journal.jsonl")
        at_once = boots or BOOTS_PER_CPU * (os.cpu_count() or 1)
        self._boots = asyncio.Semaphore(at_once)
        self._makers = ThreadPoolExecutor(2 * at_once, "fabric-spawn")
        self._destroyers = ThreadPoolExecutor(DESTROYERS, "fabric-destroy")
        keys = SshKeys(image.host_public_key, image.client_key)
        self._provisioner = provisioner or SshProvisioner(keys, bundle.data, self._makers)
        kind = "kvm" if acceleration.kind == "kvm" else "tcg"
        self._step_deadline, self._agent_deadline = STEP_DEADLINES[kind], AGENT_DEADLINES[kind]
        self._guests: dict[int, Guest] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._started = False
        self._closing = False

    # -- what there is -------------------------------------------------------------------------

    def alive(self) -> int:
        """Slots that are not free: guests of any state but gone."""
        return len(self._guests)

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
            return leftovers

    async def spawn(
        self, connection: int, configure: Callable[[GuestIdentity], Configure]
    ) -> Guest:
        """A running, configured guest for ``connection`` (64-bit id).

        ``configure`` is called once the agent said hello. Raises SpawnFailed when two attempts in
        two slots failed or no slot is left. Cancelling it destroys what was begun.
        """
        reasons: list[str] = []
        for _ in range(SPAWN_ATTEMPTS):
            if self._closing:
                break
            try:
                await self.start()
                guest = self._claim(connection)
            except FabricError as exc:
                raise SpawnFailed(exc.message, cure=exc.cure) from exc
            try:
                await self._bring_up(guest, configure)
            except FabricError as exc:
                reasons.append(str(exc))
                self._fail(guest, str(exc), quarantine=isinstance(exc, Conflict))
            except BaseException:
                # Cancelled, or a defect: nothing may stay behind either way.
                self._fail(guest, "the spawn was abandoned")
                raise
            else:
                return guest
        raise SpawnFailed(
            f"no guest for connection {connection:016x}: {'; then '.join(reasons) or 'closing'}"
        )

    def _claim(self, connection: int) -> Guest:
        index = next(i for i in range(1, len(self._guests) + 2) if i not in self._guests)
        if len(self._guests) >= self._config.limits.guests:
            raise CapacityExceeded(
                f"all {self._config.limits.guests} guest slots are taken",
                limit="guests",
                cure="raise limits.guests or let idle connections end",
            )
        guest = Guest(GuestIdentity.derive(self._config, index), connection)
        self._guests[index] = guest
        return guest

    async def _bring_up(
        self, guest: Guest, configure: Callable[[GuestIdentity], Configure]
    ) -> None:
        async with self._boots:
            begun = time.perf_counter()
            self._expect(guest, GuestState.REQUESTED)
            with phase(guest, "domain_ms"):
                await self._create(guest)
            with phase(guest, "boot_ms"):
                guest.channel = await Channel.connect(guest.identity.channel, CHANNEL_DEADLINE)
                guest.listening = asyncio.create_task(self._listen(guest, guest.channel))
                link = await unless_lost(
                    guest, self._provisioner.reach(guest.identity.address, self._step_deadline)
                )
            self._advance(guest, GuestEvent.REACHED)
            with phase(guest, "ssh_ms"):
                await unless_lost(guest, self._provisioner.push(link, self._step_deadline))
            self._advance(guest, GuestEvent.PUSHED)
            with phase(guest, "agent_ms"):
                guest.hello = await unless_lost(guest, self._word(guest, guest.said_hello))
            with phase(guest, "ready_ms"):
                guest.channel.send(configure(guest.identity))
                guest.ready = await unless_lost(guest, self._word(guest, guest.said_ready))
            if guest.ready.connection != guest.connection:
                raise AgentLost(f"{guest.name}: ready for connection {guest.ready.connection:016x}")
            guest.phases["total_ms"] = milliseconds_since(begun)
            self._advance(guest, GuestEvent.READY)
            self._emit("guest-ready", guest, phases=dict(guest.phases))

    async def _create(self, guest: Guest) -> None:
        self._advance(guest, GuestEvent.CREATE)
        self._emit("guest-spawning", guest, index=guest.index, address=guest.identity.address)
        self.on_attach(guest.identity)
        guest.creation = asyncio.ensure_future(self._blocking(self._create_domain, guest))
        # Shielded: a creation under way cannot be taken back, so destruction waits for its end.
        handle = await asyncio.shield(guest.creation)
        self._expect(guest, GuestState.CREATING)
        self._advance(guest, GuestEvent.CREATED)
        identity, started_at_us = guest.identity, round(handle.started_at * 1e6)
        facts = {"tap": identity.tap, "mac": identity.mac, "uuid": handle.uuid, "pid": handle.pid}
        self._emit("guest-started", guest, **facts, started_at_us=started_at_us)

    def _create_domain(self, guest: Guest) -> Any:
        """In a thread. Ownership is written first, then comes what is owned."""
        identity = guest.identity
        self._journal.intend(GUEST_KIND, guest.name, connection=f"{guest.connection:016x}")
        identity.channel.unlink(missing_ok=True)
        plan = blueprint(guest, self._config, self._image, self._acceleration)
        return self._hypervisor.create(render(plan))

    async def _word(self, guest: Guest, said: asyncio.Future[_T]) -> _T:
        """Wait for the agent to speak. Raises AgentLost, with its last words if it does not."""
        try:
            async with asyncio.timeout(self._agent_deadline):
                return await said
        except TimeoutError as exc:
            words = await self._provisioner.explain(guest.identity.address)
            raise AgentLost(
                f"{guest.name}: no word from the agent within {self._agent_deadline:g} s; "
                f"its log ends: {words or '(nothing)'}"
            ) from exc

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
        if isinstance(message, Hello) and not guest.said_hello.done():
            guest.said_hello.set_result(message)
        elif isinstance(message, Ready) and not guest.said_ready.done():
            guest.said_ready.set_result(message)
        else:
            if isinstance(message, AgentEvent) and message.name == AGENT_ERROR:
                self._refused(guest, message)
            self.on_message(guest, message)

    def _refused(self, guest: Guest, error: AgentEvent) -> None:
        """An agent that cannot use its configuration will never be ready: do not wait for it."""
        if not guest.said_ready.done():
            self._lost(guest, f"its agent refused the configuration: {error.fields}")

    def _on_domain_event(self, event: DomainEvent, name: str) -> None:
        """On a thread of the hypervisor's."""
        if event is not DomainEvent.STARTED and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                self._loop.call_soon_threadsafe(self._on_stopped, event, name)

    def _on_stopped(self, event: DomainEvent, name: str) -> None:
        if event is DomainEvent.RECONNECTED:
            # Stops in between went unseen, but their channels ended: nothing to do.
            return
        for guest in self.guests():
            if guest.name == name and guest.state is not GuestState.REQUESTED:
                self._lost(guest, "its domain stopped")

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
        self._advance(guest, GuestEvent.FAULT)
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
            self._advance(guest, GuestEvent.DESTROY)
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
            self._advance(guest, GuestEvent.FAULT)
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
        self._advance(guest, GuestEvent.ABSENT)
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

    @staticmethod
    def _expect(guest: Guest, state: GuestState) -> None:
        """After a wait: the guest may have been destroyed on purpose meanwhile."""
        if guest.state is not state:
            raise AgentLost(f"{guest.name}: destroyed while it was coming up")

    # -- small things --------------------------------------------------------------------------

    async def _blocking(
        self, call: Callable[..., _T], *arguments: Any, pool: ThreadPoolExecutor | None = None
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool or self._makers, functools.partial(call, *arguments))

    def _advance(self, guest: Guest, event: GuestEvent) -> None:
        guest.state = advance(guest.state, event)

    def _emit(self, name: str, guest: Guest, **fields: Any) -> None:
        self.on_event(name, guest, fields)
