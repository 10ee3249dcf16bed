"""Guests that are copies of a booted one: made at once, prepared ahead, or running already.

Owns: the steps from a template to a guest that is somebody. May import: errors, wire.control, and
its neighbours in host.

    template   create, arm ─────────► wake ─► ready          all of it at the request
    prepared   create, arm ─ (pool) ─► wake ─► ready          the request begins at wake
    warm       create, arm, wake, identified ─ (pool) ─► ready    the request only configures

The copy finds its identity and its instructions in its channel when it wakes up. Its proof that it
became who it should be comes after its first packet, see :mod:`fabric.agent.identity`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace

from fabric.errors import GuestFault, SpawnFailed
from fabric.host.faults import Step
from fabric.host.guest.guest import Guest, phase, underlay_mtu, unless_lost
from fabric.host.guest.host_key import HostKey
from fabric.host.guest.lifecycle import GuestEvent
from fabric.host.guest.pool import Pool
from fabric.host.guest.steps import Steps
from fabric.host.guest.template import Template
from fabric.host.guest.template_keeper import TemplateKeeper
from fabric.host.guest.tiers import Instruct, configured, ready
from fabric.host.vmm.domain_xml import DomainSpec, MemoryFile
from fabric.wire.control import Identified, Identify

COPY_DEADLINES = {"kvm": 20.0, "tcg": 60.0}
"""Seconds a copy may take to be ready: 0.1 s, some seconds beside dozens of others. What comes
after is a cold boot, forty times as much work: on a machine that is so busy that copies are late,
it would come later still, and make the others late."""

ENTROPY_SIZE = 32
"""Bytes of randomness for each copy: the size of the kernel generator's key."""

EMPTY_POOL = "none is kept ready at the moment"


class Copier:
    """The steps of a copy's way; every tier takes some of them at the request."""

    def __init__(self, steps: Steps, keeper: TemplateKeeper) -> None:
        self.keeper = keeper
        self.steps = steps
        self.deadline = COPY_DEADLINES[steps.accelerator]

    async def prepare(self, guest: Guest) -> None:
        """REQUESTED → PREPARED. Raises FabricError."""
        steps, template = self.steps, self.keeper.template()

        def clone(plan: DomainSpec) -> DomainSpec:
            memory = MemoryFile(template.memory, shared=False)
            return replace(plan, kernel=template.kernel, initrd=template.initrd, memory_file=memory)

        guest.template = template
        guest.host_key = HostKey.generate()
        try:
            with phase(guest, "domain_ms"):
                await steps.create(guest, clone, paused=True)
            with phase(guest, "arm_ms"):
                await steps.join(guest)
                await self._arm(guest, template)
        except GuestFault as exc:
            self.keeper.failed(template, exc.message)
            raise
        guest.advance(GuestEvent.ARMED)
        self.steps.hooks.step(Step.ARMED)

    async def _arm(self, guest: Guest, template: Template) -> None:
        try:
            await self.steps.blocking(self.steps.hypervisor.arm, guest.name, template.state)
        except OSError as exc:
            raise SpawnFailed(f"{guest.name}: {template.state}: {exc.strerror}") from exc

    async def wake(self, guest: Guest, instruct: Instruct | None = None) -> None:
        """PREPARED → CONFIGURING; with instructions, ready for its connection. Raises
        FabricError."""
        assert guest.template is not None and guest.channel is not None  # prepared
        try:
            await self._wake(guest, instruct)
        except GuestFault as exc:
            self.keeper.failed(guest.template, exc.message)
            raise
        self.keeper.worked()

    async def _wake(self, guest: Guest, instruct: Instruct | None) -> None:
        steps, channel = self.steps, guest.channel
        assert channel is not None
        with phase(guest, "state_ms"):
            # Said before anybody can hear it: the agent finds it when it wakes up.
            channel.send(self._identify(guest))
            if instruct is not None:
                channel.send(instruct(guest.identity))
                steps.hooks.step(Step.CONFIGURED)
            await steps.blocking(steps.hypervisor.wake, guest.name)
        guest.advance(GuestEvent.RESUMED)
        steps.hooks.step(Step.RESUMED)
        steps.hooks.emit("guest-resumed", guest, resumed_at_us=time.time_ns() // 1000)
        asyncio.get_running_loop().call_later(self.deadline, self._miss, guest)
        if instruct is None:
            with phase(guest, "identify_ms"):
                await unless_lost(guest, steps.word(guest, guest.said_identified, self.deadline))
        else:
            with phase(guest, "ready_ms"):
                await ready(steps, guest, self.deadline)

    def _identify(self, guest: Guest) -> Identify:
        identity, key = guest.identity, guest.host_key
        assert key is not None  # prepared
        return Identify(
            mac=identity.mac,
            address=identity.address,
            mtu=underlay_mtu(self.steps.config),
            overlay_mtu=self.steps.config.overlay_mtu,
            entropy=secrets.token_hex(ENTROPY_SIZE),
            host_key=key.secret.hex(),
            host_now_us=time.time_ns() // 1000,
        )

    def _miss(self, guest: Guest) -> None:
        if not guest.said_identified.done():
            self.steps.hooks.lost(guest, "it never said who it is")


def impostor(guest: Guest, said: Identified) -> str:
    """Why a copy is not who it should be, in words; empty when it is."""
    wanted, key = guest.identity, guest.host_key
    if (said.mac, said.address) != (wanted.mac, wanted.address):
        return f"it says it is {said.mac} with {said.address or 'no address'}"
    if key is None or said.host_key != key.public.hex():
        return "it has another SSH host key than it was given"
    return ""


class TemplateTier:
    """A copy made when it is asked for."""

    name = "template"

    def __init__(
        self, copier: Copier, at_once: asyncio.Semaphore, wakes: asyncio.Semaphore
    ) -> None:
        """``wakes``: held by copies of any tier while they wake up, in order of arrival."""
        self.at_once = at_once
        self._wakes = wakes
        self._copier = copier

    def unavailable(self) -> str:
        return self._copier.keeper.unavailable()

    def claim(self) -> Guest | None:
        return None

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        # Making a copy takes longer than waking one: those that came before, and whose copies wait
        # ready-made, must not share the processors with it.
        async with self._wakes:
            pass
        await self._copier.prepare(guest)
        async with self._wakes:
            await self._copier.wake(guest, instruct)


class PooledTier:
    """What the tiers have in common whose guests are kept ready."""

    name = ""

    def __init__(self, copier: Copier, at_once: asyncio.Semaphore, pool: Pool) -> None:
        self.at_once = at_once
        self.pool = pool
        self._copier = copier

    def unavailable(self) -> str:
        return self._copier.keeper.unavailable() or ("" if self.pool.ready() else EMPTY_POOL)

    def claim(self) -> Guest | None:
        return self.pool.take()

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        raise NotImplementedError

    async def make(self, guest: Guest) -> None:
        """Make ``guest`` one of the pool's. Raises FabricError."""
        raise NotImplementedError


class PreparedTier(PooledTier):
    """A copy whose domain waits, paused, for its state."""

    name = "prepared"

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        await self._copier.wake(guest, instruct)

    async def make(self, guest: Guest) -> None:
        await self._copier.prepare(guest)


class WarmTier(PooledTier):
    """A copy that runs, is somebody, and is idle. Its guest came before the request."""

    name = "warm"

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        guest.advance(GuestEvent.CLAIMED)
        await configured(self._copier.steps, guest, instruct, self._copier.deadline)

    async def make(self, guest: Guest) -> None:
        await self._copier.prepare(guest)
        await self._copier.wake(guest)
        guest.advance(GuestEvent.PARKED)
