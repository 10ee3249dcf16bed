"""Where the guests of one host come from: its tiers in their order, its template, its pools.

Owns: assembling the tiers, which of them a request tries in turn, and the tasks behind them. May
import: errors, and its neighbours in host. Slots and the life of a guest are
:mod:`host.guest.guests`'.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fabric.host.guest.copies import Copier, PooledTier, PreparedTier, TemplateTier, WarmTier
from fabric.host.guest.guest import Guest
from fabric.host.guest.pool import Pool
from fabric.host.guest.steps import Steps
from fabric.host.guest.template import TemplateStore
from fabric.host.guest.template_keeper import MakerGuest, TemplateKeeper
from fabric.host.guest.tiers import ColdTier, Notice, Tier
from fabric.host.memory import Memory

log = logging.getLogger(__name__)

COLD_ATTEMPTS = 2
"""Cold boots before a request is given up: the first may have hit a leftover or a passing fault."""

BOOTS_PER_CPU = 2
"""Boots at once per processor. Emulated guests are processor bound, so more at once only makes the
first one later; twice the processors fills the gaps in which a guest waits."""

COPIES_PER_CPU = 4
"""Copies being made at once per processor: half of the time they wait for libvirt."""

WAKES_PER_CPU = 1
"""Copies waking up at once per processor. They do nothing but compute: more at once would only make
those that came first wait for those that came last."""

CLAIMS_PER_CPU = 8
"""Running copies being configured at once per processor: a few ms of work each, then they wait for
the host."""


@dataclass(frozen=True)
class Slots:
    """What the keeper of the guests does for the supply."""

    maker: MakerGuest
    make: Callable[[PooledTier], Awaitable[Guest]]
    """A guest of the tier's pool, in a slot of its own. Raises FabricError."""
    end: Callable[[Guest], Awaitable[None]]
    busy: Callable[[], bool]
    """Whether a request is being served."""
    notice: Notice
    memory: Memory


class _Surroundings:
    """What the pools know of the world."""

    def __init__(self, slots: Slots, keeper: TemplateKeeper) -> None:
        self.busy = slots.busy
        self.memory_available_mib = slots.memory
        self.notice = slots.notice
        self._keeper = keeper

    def monotonic(self) -> float:
        return time.monotonic()

    def possible(self) -> bool:
        return not self._keeper.unavailable()


class Supply:
    """The constructor makes nothing; :meth:`start` begins to keep template and pools."""

    def __init__(
        self,
        steps: Steps,
        slots: Slots,
        store: TemplateStore | None,
        pooled: tuple[str, ...] = (),
        boots: int | None = None,
    ) -> None:
        """``store``: where templates are, None: guests only boot; ``pooled``: the tiers to keep
        guests ready for; ``boots``: at once, instead of what the processors suggest."""
        cpus = os.cpu_count() or 1
        self.cold = ColdTier(steps, asyncio.Semaphore(boots or BOOTS_PER_CPU * cpus))
        self._slots = slots
        self._keeper: TemplateKeeper | None = None
        self._tiers: dict[str, Tier] = {}
        self._pooled: list[PooledTier] = []
        self._tasks: list[asyncio.Task[None]] = []
        if store is not None:
            self._keeper = keeper = TemplateKeeper(steps, self.cold, store)
            keeper.on_change = self._purge
            copier = Copier(steps, keeper)
            wakes = asyncio.Semaphore(WAKES_PER_CPU * cpus)
            around = _Surroundings(slots, keeper)
            claims = asyncio.Semaphore(CLAIMS_PER_CPU * cpus)
            kinds: dict[type[PooledTier], asyncio.Semaphore] = {
                WarmTier: claims,
                PreparedTier: wakes,
            }
            for kind, at_once in kinds.items():
                if kind.name in pooled:
                    self._add_pooled(kind, copier, at_once, around)
            copies = asyncio.Semaphore(COPIES_PER_CPU * cpus)
            self._tiers[TemplateTier.name] = TemplateTier(copier, copies, wakes)
        self._tiers[ColdTier.name] = self.cold

    def _add_pooled(
        self,
        kind: type[PooledTier],
        copier: Copier,
        at_once: asyncio.Semaphore,
        around: _Surroundings,
    ) -> None:
        async def make() -> Guest:
            return await self._slots.make(tier)

        pool = Pool(copier.steps.config.pool, around, make, self._slots.end)
        tier = kind(copier, at_once, pool)
        self._tiers[kind.name] = tier
        self._pooled.append(tier)

    def start(self) -> None:
        """Have a template, and guests ready, from now on."""
        if self._keeper is None:
            return
        self._run(self._keeper.keep(self._slots.maker, self._slots.notice))
        for tier in self._pooled:
            self._run(tier.pool.keep())

    def plan(self, first: str) -> list[Tier]:
        """What a request tries in turn: the tier named, then the slower ones, a boot last."""
        names = list(self._tiers)
        tiers = [self._tiers[n] for n in names[names.index(first) if first in names else 0 :]]
        for tier in self._pooled:
            if tier in tiers[:1]:
                tier.pool.requested()
        return tiers + [self.cold] * (COLD_ATTEMPTS - 1)

    def discard(self, guest: Guest) -> bool:
        """Forget a guest that was kept ready and is lost; whether it was one."""
        return any([tier.pool.discard(guest) for tier in self._pooled])

    def blame(self, guest: Guest, why: str) -> None:
        """A copy turned out to be a bad one: its template may be."""
        if self._keeper is not None and guest.template is not None:
            self._keeper.failed(guest.template, why)

    def preparing(self, tier: str) -> str:
        """What is being done before the tier can be had, in words; empty when it can, or cannot be
        helped at the moment."""
        found = self._tiers.get(tier)
        if self._keeper is None or found is None or found is self.cold:
            return ""
        if self._keeper.making:
            return found.unavailable()
        if self._keeper.unavailable():
            return ""  # it failed, and is tried again some day
        pools = [t.pool for t in self._pooled if t is found]
        hopeful = any(pool.wanted() and not pool.failures for pool in pools)
        return found.unavailable() if hopeful else ""

    def kept_ready(self) -> dict[str, int]:
        """How many guests wait, by tier."""
        return {tier.name: tier.pool.ready() for tier in self._pooled}

    async def close(self) -> None:
        """Stop keeping anything; guests that were kept ready are the caller's to end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _purge(self) -> None:
        """Copies of another template than today's serve nobody."""
        assert self._keeper is not None  # it calls this
        for tier in self._pooled:
            for guest in tier.pool.members():
                if guest.template is None or not self._keeper.is_current(guest.template):
                    tier.pool.discard(guest)
                    self._run(self._ended(guest))
            tier.pool.nudge()

    async def _ended(self, guest: Guest) -> None:
        await self._slots.end(guest)

    def _run(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        task.add_done_callback(self._finished)
        self._tasks = [*(t for t in self._tasks if not t.done()), task]

    def _finished(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a supply of guests ended", exc_info=exc)
            self._slots.notice("internal-error", {"error": repr(exc)})
