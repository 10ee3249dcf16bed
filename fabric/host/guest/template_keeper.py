"""Having a template: booting a guest, saving it, and making a new one when it goes bad.

Owns: which template copies are made from, and why there is none. May import: errors, wire.control,
and its neighbours in host. The files are :mod:`host.guest.template`'s, the copies
:mod:`host.guest.copies`'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from fabric.errors import AgentLost, FabricError, NoSpace
from fabric.host.guest.guest import Guest, phase, unless_lost
from fabric.host.guest.steps import Steps
from fabric.host.guest.template import Draft, Template, TemplateStore, translated
from fabric.host.guest.tiers import ColdTier, Notice
from fabric.host.vmm.domain_xml import DomainSpec, MemoryFile
from fabric.wire.control import Quiesce

TEMPLATE_MTU = 65521
"""Bytes; the most a tap takes. A guest may lower its interface's MTU but not raise it above what
the device said at boot, and one template serves labs of any MTU."""

MAX_FAILURES = 3
"""Copies in a row that failed before the template is made anew."""

MAX_MAKINGS = 3
"""Times one orchestrator makes a template before it leaves it at cold boots."""

BEING_MADE = "the template is being made"

MAKING_PAUSE = 10.0
"""Seconds before a template that could not be made is tried again."""

COPY_DELAY = 5.0
"""Seconds from a template to its copy on disk: pools are filled meanwhile."""

MakerGuest = Callable[[], AbstractAsyncContextManager[Guest]]
"""A slot for the guest a template is made from; at the end of the block the guest is gone."""


class TemplateKeeper:
    """The template of one host; the constructor makes nothing."""

    def __init__(self, steps: Steps, cold: ColdTier, store: TemplateStore) -> None:
        self.spoiled = asyncio.Event()
        """Set when the template must be made anew."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is a template, or another one, or none any more."""
        self.making = True
        """Whether one is looked for or made; a keeper begins with that."""
        self._steps = steps
        self._cold = cold
        self._store = store
        self._template: Template | None = None
        self._why = BEING_MADE
        self._bad: Template | None = None
        self._failures = 0
        self._notice: Notice = lambda _name, _fields: None

    def unavailable(self) -> str:
        """Why there is none now; empty when there is one. Costs one system call."""
        if self._template is None:
            return self._why
        if problem := self._template.problem():
            self._spoil(problem)
            return problem
        return ""

    def template(self) -> Template:
        """The template. Raises AgentLost when there is none."""
        if why := self.unavailable():
            raise AgentLost(f"no copy of a guest: {why}")
        assert self._template is not None  # unavailable() says so
        return self._template

    def is_current(self, template: Template) -> bool:
        """Whether new copies are made of this one."""
        return template == self._template

    def failed(self, template: Template, why: str) -> None:
        """A copy of it did not work."""
        self._failures += 1
        if self._failures >= MAX_FAILURES and self.is_current(template):
            self._spoil(f"{self._failures} copies in a row failed, the last one: {why}")

    def worked(self) -> None:
        """A copy did work."""
        self._failures = 0

    async def keep(self, maker: MakerGuest, notice: Notice) -> None:
        """Have a template, and a new one when it goes bad. Ends when that failed for good; until
        a template is there, guests boot cold."""
        async with asyncio.TaskGroup() as behind:
            await self._keep(maker, notice, behind)

    async def _keep(self, maker: MakerGuest, notice: Notice, behind: asyncio.TaskGroup) -> None:
        tried, said = 0, ""
        self._notice = notice
        while tried < MAX_MAKINGS:
            self.making = True
            try:
                phases = await self.ensure(maker)
            except FabricError as exc:
                self.making = False
                # A full disk says nothing about the template, and ends some day.
                tried += not isinstance(exc, NoSpace)
                if str(exc) != said:
                    notice("template-failed", {"reason": str(exc)})
                said = str(exc)
                await asyncio.sleep(MAKING_PAUSE)
                continue
            tried, said = tried + 1, ""
            self.making = False
            notice("template-ready", {"found": phases is None, "phases": phases or {}})
            self.on_change()
            if phases is not None:
                behind.create_task(self._keep_copy())
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
                if found is None and self._bad is None:
                    found = await self._restored()
                # Another orchestrator may have made a new one meanwhile: that one is not bad.
                if found is None or found == self._bad:
                    found, phases = await self._make(maker)
        except FabricError as exc:
            self._why = f"the template could not be made: {exc.message}"
            raise
        self._template, self._failures = found, 0
        return phases

    async def _restored(self) -> Template | None:
        began = time.perf_counter()
        found = await self._steps.blocking(self._store.restore)
        if found is not None:
            took = round((time.perf_counter() - began) * 1e3, 1)
            self._notice("template-restored", {"took_ms": took})
        return found

    async def _keep_copy(self) -> None:
        """Behind everything that waits for the template: it is for after the next reboot."""
        await asyncio.sleep(COPY_DELAY)
        template = self._template
        if template is None:
            return
        try:
            async with self._store.lock():
                await self._steps.blocking(self._store.keep_copy, template)
        except (FabricError, OSError) as exc:
            self._notice("template-not-kept", {"reason": str(exc)})

    async def _make(self, maker: MakerGuest) -> tuple[Template, dict[str, float]]:
        steps = self._steps
        draft = await steps.blocking(self._store.begin)
        try:
            async with self._cold.at_once, maker() as guest:
                await self._cold.boot(guest, lambda plan: _savable(plan, draft))
                with phase(guest, "quiesce_ms"):
                    await self._quiesce(guest)
                with phase(guest, "save_ms"):
                    await steps.blocking(steps.hypervisor.save_state, guest.name, draft.state)
            # Proven gone: nobody writes to the draft's memory any more.
            template = await steps.blocking(self._store.publish, draft, steps.image.kernel)
        except OSError as exc:
            raise translated(exc, self._store.directory) from exc
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
        self.on_change()


def _savable(plan: DomainSpec, draft: Draft) -> DomainSpec:
    return replace(plan, memory_file=MemoryFile(draft.memory, shared=True), mtu=TEMPLATE_MTU)
