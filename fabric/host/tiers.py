"""Ways to a guest with a listening agent: a boot from the image, or a copy of a booted guest.

Owns: what is done in which order for each tier. May import: errors, wire.control, and its
neighbours in host. All tiers keep one contract: after :meth:`Tier.bring_up` the guest is
CONFIGURING, has its own identity, and its agent waits for Configure.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

from fabric.errors import AgentLost, FabricError, GuestFault
from fabric.host.domain_xml import DomainSpec, MemoryFile
from fabric.host.guest import (
    AGENT_DEADLINES,
    STEP_DEADLINES,
    Guest,
    phase,
    underlay_mtu,
    unless_lost,
)
from fabric.host.lifecycle import GuestEvent
from fabric.host.steps import Change, Steps
from fabric.host.template import Draft, Template, TemplateStore
from fabric.wire.control import Identify, Quiesce

CLONE_DEADLINE = 20.0
"""Seconds a copy may take to identify itself: 0.1 s, some seconds beside dozens of others. What
comes after is a cold boot, so waiting long helps nobody."""

TEMPLATE_MTU = 65521
"""Bytes; the most a tap takes. A guest may lower its interface's MTU but not raise it above what
the device said at boot, and one template serves labs of any MTU."""

MAX_FAILURES = 3
"""Copies in a row that failed before the template is made anew."""

MAX_MAKINGS = 3
"""Times one orchestrator makes a template before it leaves it at cold boots."""

ENTROPY_SIZE = 32
"""Bytes of randomness for each copy: the size of the kernel generator's key."""

BEING_MADE = "the template is being made"

MAKING_PAUSE = 10.0
"""Seconds before a template that could not be made is tried again."""

Notice = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and fields."""

MakerGuest = Callable[[], AbstractAsyncContextManager[Guest]]
"""A slot for the guest a template is made from; at the end of the block the guest is gone."""


class Tier(Protocol):
    """See the module docstring."""

    @property
    def name(self) -> str: ...
    @property
    def at_once(self) -> asyncio.Semaphore:
        """Held from before bring_up until the guest is ready."""

    def unavailable(self) -> str:
        """Why this tier cannot be had now; empty when it can."""

    async def bring_up(self, guest: Guest) -> None:
        """REQUESTED → CONFIGURING. Raises FabricError; the caller then ends the guest."""


class ColdTier:
    """Boot from the image, push the agent over SSH."""

    name = "cold"

    def __init__(self, steps: Steps, at_once: asyncio.Semaphore) -> None:
        self.at_once = at_once
        self._steps = steps
        kind = "kvm" if steps.acceleration.kind == "kvm" else "tcg"
        self._step_deadline, self.agent_deadline = STEP_DEADLINES[kind], AGENT_DEADLINES[kind]

    def unavailable(self) -> str:
        return ""

    async def bring_up(self, guest: Guest, change: Change = lambda plan: plan) -> None:
        steps, patience = self._steps, self._step_deadline
        with phase(guest, "domain_ms"):
            await steps.create(guest, change)
        with phase(guest, "boot_ms"):
            await steps.join(guest)
            reached = steps.provisioner.reach(guest.identity.address, patience)
            link = await unless_lost(guest, reached)
        guest.advance(GuestEvent.REACHED)
        with phase(guest, "ssh_ms"):
            await unless_lost(guest, steps.provisioner.push(link, patience))
        guest.advance(GuestEvent.PUSHED)
        with phase(guest, "agent_ms"):
            word = steps.word(guest, guest.said_hello, self.agent_deadline)
            guest.hello = await unless_lost(guest, word)


class TemplateTier:
    """A copy on write of a guest that was booted once, its agent waiting."""

    name = "template"

    def __init__(
        self, steps: Steps, at_once: asyncio.Semaphore, cold: ColdTier, store: TemplateStore
    ) -> None:
        self.at_once = at_once
        self.spoiled = asyncio.Event()
        """Set when the template must be made anew."""
        self._steps = steps
        self._cold = cold
        self._store = store
        self._template: Template | None = None
        self._why = BEING_MADE
        self._bad: Template | None = None
        self._failures = 0

    def unavailable(self) -> str:
        if self._template is None:
            return self._why
        if problem := self._template.problem():
            self._spoil(problem)
            return problem
        return ""

    # -- a copy --------------------------------------------------------------------------------

    async def bring_up(self, guest: Guest) -> None:
        template = self._template
        if template is None:
            raise AgentLost(f"{guest.name}: {self._why}")
        try:
            await self._wake(guest, template)
        except GuestFault as exc:
            self._failures += 1
            if self._failures >= MAX_FAILURES and self._template is template:
                self._spoil(f"{self._failures} copies in a row failed, the last one: {exc.message}")
            raise
        self._failures = 0

    async def _wake(self, guest: Guest, template: Template) -> None:
        steps, hypervisor = self._steps, self._steps.hypervisor

        def clone(plan: DomainSpec) -> DomainSpec:
            memory = MemoryFile(template.memory, shared=False)
            return replace(plan, kernel=template.kernel, initrd=template.initrd, memory_file=memory)

        with phase(guest, "domain_ms"):
            await steps.create(guest, clone, paused=True)
        with phase(guest, "state_ms"):
            channel = await steps.join(guest)
            await steps.blocking(hypervisor.load_state, guest.name, template.state)
        with phase(guest, "resume_ms"):
            # Said before anybody can hear it: the agent finds it when it wakes up.
            channel.send(self._identify(guest))
            await steps.blocking(hypervisor.resume, guest.name)
        guest.advance(GuestEvent.RESUMED)
        steps.hooks.emit("guest-resumed", guest, resumed_at_us=time.time_ns() // 1000)
        with phase(guest, "identify_ms"):
            word = steps.word(guest, guest.said_identified, CLONE_DEADLINE)
            said = await unless_lost(guest, word)
        wanted = guest.identity
        if (said.mac, said.address) != (wanted.mac, f"{wanted.address}/{wanted.prefix_length}"):
            raise AgentLost(f"{guest.name}: it says it is {said.mac} with {said.address or 'none'}")
        guest.sample = said.sample
        fields = {"mac": said.mac, "address": said.address, "sample": said.sample}
        steps.hooks.emit("guest-identified", guest, **fields)

    def _identify(self, guest: Guest) -> Identify:
        identity = guest.identity
        return Identify(
            mac=identity.mac,
            address=f"{identity.address}/{identity.prefix_length}",
            gateway=identity.gateway,
            mtu=underlay_mtu(self._steps.config),
            entropy=secrets.token_hex(ENTROPY_SIZE),
            host_now_us=time.time_ns() // 1000,
        )

    # -- the template --------------------------------------------------------------------------

    async def keep(self, maker: MakerGuest, notice: Notice) -> None:
        """Have a template, and a new one when it goes bad. Ends when that failed for good; until
        a template is there, guests boot cold."""
        for _ in range(MAX_MAKINGS):
            try:
                phases = await self.ensure(maker)
            except FabricError as exc:
                notice("template-failed", {"reason": str(exc)})
                await asyncio.sleep(MAKING_PAUSE)
                continue
            notice("template-ready", {"found": phases is None, "phases": phases or {}})
            await self.spoiled.wait()

    async def ensure(self, maker: MakerGuest) -> dict[str, float] | None:
        """Have a template: find it, or boot a guest and save it.

        Returns the phases of its making in ms, None when it was there. Raises FabricError.
        """
        phases = None
        self.spoiled.clear()
        try:
            async with self._store.lock():
                found = await self._steps.blocking(self._store.find)
                # Another orchestrator may have made a new one meanwhile: that one is not bad.
                if found is None or found == self._bad:
                    found, phases = await self._make(maker)
        except FabricError as exc:
            self._why = f"the template could not be made: {exc.message}"
            raise
        self._template, self._failures = found, 0
        return phases

    async def _make(self, maker: MakerGuest) -> tuple[Template, dict[str, float]]:
        steps = self._steps
        draft = await steps.blocking(self._store.begin)
        try:
            async with self._cold.at_once, maker() as guest:
                await self._cold.bring_up(guest, lambda plan: _savable(plan, draft))
                with phase(guest, "quiesce_ms"):
                    await self._quiesce(guest)
                with phase(guest, "save_ms"):
                    await steps.blocking(steps.hypervisor.save_state, guest.name, draft.state)
            # Proven gone: nobody writes to the draft's memory any more.
            template = await steps.blocking(self._store.publish, draft, steps.image.kernel)
        finally:
            await steps.blocking(self._store.abandon, draft)
        return template, dict(guest.phases)

    async def _quiesce(self, guest: Guest) -> None:
        assert guest.channel is not None  # bring_up joined it
        guest.channel.send(Quiesce())
        word = self._steps.word(guest, guest.said_quiesced, self._cold.agent_deadline)
        left = (await unless_lost(guest, word)).addresses
        if left:
            raise AgentLost(f"{guest.name}: it kept {', '.join(left)}: no template")

    def _spoil(self, why: str) -> None:
        self._why = f"{why}; it is being made anew"
        self._bad, self._template = self._template, None
        self.spoiled.set()


def _savable(plan: DomainSpec, draft: Draft) -> DomainSpec:
    return replace(plan, memory_file=MemoryFile(draft.memory, shared=True), mtu=TEMPLATE_MTU)
