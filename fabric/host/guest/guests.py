"""Guests of one host, from a free slot to proven absence.

Owns: slots, the steps of a spawn and of a destruction, and the agents' channels. May import:
errors, wire.control, and its neighbours in host. States are
:mod:`fabric.host.guest.lifecycle`'s.

Everything runs on the event loop's thread, but for the hypervisor and SSH, which block and have
threads of their own. A guest exists in the journal before it exists anywhere else, and its slot is
free again only when the hypervisor has proven that nothing is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from fabric.errors import (
    AgentLost,
    CapacityExceeded,
    Conflict,
    FabricError,
    SpawnFailed,
)
from fabric.host.config import HostConfig
from fabric.host.faults import OnStep, Step, pass_by
from fabric.host.guest.adoption import Adopter, Inheritance
from fabric.host.guest.bundle import Bundle
from fabric.host.guest.copies import PooledTier
from fabric.host.guest.endings import Endings
from fabric.host.guest.guest import (
    NO_CONNECTION,
    Accelerator,
    Guest,
    Image,
    milliseconds_since,
    phase,
)
from fabric.host.guest.hearing import Hearing
from fabric.host.guest.lifecycle import GuestEvent, GuestState
from fabric.host.guest.provision import Provisioner, SshKeys, SshProvisioner
from fabric.host.guest.steps import Hooks, Steps
from fabric.host.guest.supply import Slots, Supply
from fabric.host.guest.template import TemplateStore
from fabric.host.guest.tiers import Instruct, Tier
from fabric.host.identity import GuestIdentity, slot_of
from fabric.host.journal import Journal
from fabric.host.memory import Memory, available_mib
from fabric.host.network.bridge_ports import BridgePorts
from fabric.host.network.ping import Ping, ping
from fabric.host.vmm.domains import Hypervisor
from fabric.wire.control import Message

if TYPE_CHECKING:
    from fabric.host.control.records import SavedConnection

_T = TypeVar("_T")

THREADS_PER_CPU = 8
"""Threads for what blocks: boots, copies and wakes at once, and some."""

__all__ = ["Guest", "GuestManager"]


def _ignore(*_: Any) -> None:
    return None


class GuestManager:
    """Spawns and destroys the guests of one host; the constructor acquires nothing.

    ``on_event(name, guest, fields)``, ``on_message(guest, message)``, ``on_lost(guest)`` and
    ``on_notice(name, fields)`` (of no guest) are called on the event loop. ``on_attach(identity)``
    runs just before a domain is created and ``on_detach(identity)`` when it is gone: the place for
    static neighbour entries. ``on_step(step)`` is called at each :class:`Step`, on any thread.
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
        pooled: tuple[str, ...] = (),
        ping: Ping = ping,
        memory: Memory = available_mib,
    ) -> None:
        """``templates``: None means that guests only boot; ``pooled``: the tiers guests are kept
        ready for."""
        self.on_event: Callable[[str, Guest, dict[str, Any]], None] = _ignore
        self.on_message: Callable[[Guest, Message], None] = _ignore
        self.on_lost: Callable[[Guest], None] = _ignore
        self.on_notice: Callable[[str, dict[str, Any]], None] = _ignore
        self.on_attach: Callable[[GuestIdentity], None] = _ignore
        self.on_detach: Callable[[GuestIdentity], None] = _ignore
        self.on_step: OnStep = pass_by
        self._config = config
        self._hypervisor = hypervisor
        self._ping = ping
        self._journal = journal or Journal(config.host_dir / "journal.jsonl")
        threads = THREADS_PER_CPU * (os.cpu_count() or 1)
        self._makers = ThreadPoolExecutor(threads, "fabric-spawn")
        self._hearing = Hearing(self, self._emit, self._blame)
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
            Hooks(self._emit, self._attach, self._hearing.listen, self.lose, self._step),
        )
        self._memory = memory
        slots = Slots(self._maker, self._make, self.destroy, self._busy, self._notice, memory)
        self._supply = Supply(steps, slots, templates, pooled, boots)
        self._endings = Endings(steps, self._gone)
        self._serving = 0
        self._marking: set[asyncio.Task[None]] = set()
        self._guests: dict[int, Guest] = {}
        self._starting = asyncio.Lock()
        self._started = False
        self._closing = False

    # -- what there is -------------------------------------------------------------------------

    def alive(self) -> int:
        """Slots connections hold: guests of any state but gone. One that is kept ready, or that a
        template is being made from, does not count: it must not cost a connection its place."""
        return sum(g.connection != NO_CONNECTION for g in self._guests.values())

    def memory_available_mib(self) -> int:
        """Of the machine, for guests and everything else."""
        return self._memory()

    def kept_ready(self) -> dict[str, int]:
        """Guests that wait for a connection, by tier."""
        return self._supply.kept_ready()

    def preparing(self) -> str:
        """What is being done before guests of the host's tier can be had; empty: nothing."""
        return self._supply.preparing(self._config.tier)

    def guests(self) -> list[Guest]:
        """All guests that hold a slot, by index."""
        return [self._guests[index] for index in sorted(self._guests)]

    # -- spawn ---------------------------------------------------------------------------------

    async def start(self, saved: Sequence[SavedConnection] = ()) -> Inheritance:
        """Open the journal, watch the hypervisor, see what an earlier life left behind: adopt the
        guests of ``saved`` that live, begin to destroy all others.

        Called by the first spawn if not before. Raises HypervisorDown, EnvironmentFault (journal).
        """
        async with self._starting:
            if self._started:
                return Inheritance()
            self._journal.open()
            await self._blocking(self._hypervisor.watch, self._hearing.watcher())
            inheritance = await Adopter(self._steps, self, self._ping).take_over(saved)
            self._started = True
            self._supply.start()
            return inheritance

    async def spawn(self, connection: int, instruct: Instruct, tier: str = "") -> Guest:
        """A running, configured guest for ``connection`` (64-bit id).

        ``instruct`` is called when its agent is about to be told. ``tier`` names another tier than
        the host's to begin with; one that cannot be had, or fails, is followed by the next slower
        one. Raises SpawnFailed when all of them failed or no slot is left. Cancelling it destroys
        what was begun.
        """
        reasons: list[str] = []
        self._serving += 1
        try:
            tiers = self._supply.plan(tier or self._config.tier)
            while tiers and not self._closing:
                guest, chosen = await self._take(connection, tiers)
                try:
                    await self._bring_up(guest, chosen, instruct)
                except FabricError as exc:
                    reasons.append(str(exc))
                    self.fail(guest, str(exc), quarantine=isinstance(exc, Conflict))
                    if tiers and not self._closing:
                        self._fall_back(guest, chosen, tiers[0], str(exc))
                except BaseException:
                    # Cancelled, or a defect: nothing may stay behind either way.
                    self.fail(guest, "the spawn was abandoned")
                    raise
                else:
                    return guest
        finally:
            self._serving -= 1
        raise SpawnFailed(
            f"no guest for connection {connection:016x}: {'; then '.join(reasons) or 'closing'}"
        )

    async def _take(self, connection: int, tiers: list[Tier]) -> tuple[Guest, Tier]:
        """Take the first tier that can be had off the list, and a guest of it."""
        try:
            await self.start()
            passed: list[tuple[Tier, str]] = []
            tier = tiers.pop(0)
            while tiers and (why := tier.unavailable()):
                passed.append((tier, why))
                tier = tiers.pop(0)
            guest = self._claim(connection, tier)
        except FabricError as exc:
            raise SpawnFailed(exc.message, cure=exc.cure) from exc
        passed.append((tier, ""))
        for (old, why), (new, _) in itertools.pairwise(passed):
            self._fall_back(guest, old, new, why)
        return guest, tier

    def _claim(self, connection: int, tier: Tier) -> Guest:
        if self.alive() >= self._config.limits.guests:
            raise CapacityExceeded(
                f"all {self._config.limits.guests} guest slots are taken",
                limit="guests",
                cure="raise limits.guests or let idle connections end",
            )
        guest = tier.claim()
        if guest is None:
            return self._slot(connection, tier.name)
        guest.connection = connection
        self._emit("guest-claimed", guest, tier=tier.name, uuid=guest.uuid)
        self._background(self._steps.remark(guest))
        return guest

    def _slot(self, connection: int, tier: str) -> Guest:
        """A guest in the first free slot, nothing of it made yet. Raises CapacityExceeded."""
        index = next(i for i in range(1, len(self._guests) + 2) if i not in self._guests)
        return self.take(index, connection, tier)

    def take(self, index: int, connection: int, tier: str = "") -> Guest:
        """A guest in this very slot, which must be free. Raises CapacityExceeded: no such slot."""
        guest = Guest(GuestIdentity.derive(self._config, index), connection)
        guest.tier = tier
        self._guests[index] = guest
        self.on_step(Step.CLAIMED)
        return guest

    def _fall_back(self, guest: Guest, old: Tier, new: Tier, reason: str) -> None:
        if old.name != new.name:
            fields = {"from": old.name, "to": new.name, "reason": reason}
            self._emit("tier-fallback", guest, **fields)

    async def _bring_up(self, guest: Guest, tier: Tier, instruct: Instruct) -> None:
        begun = time.perf_counter()
        with phase(guest, "queue_ms"):
            await tier.at_once.acquire()
        try:
            await tier.bring_up(guest, instruct)
        finally:
            tier.at_once.release()
        assert guest.ready is not None  # bring_up waited for it
        if guest.ready.connection != guest.connection:
            raise AgentLost(f"{guest.name}: ready for connection {guest.ready.connection:016x}")
        guest.phases["total_ms"] = milliseconds_since(begun)
        guest.advance(GuestEvent.READY)
        self._emit("guest-ready", guest, tier=tier.name, phases=dict(guest.phases))
        self.on_step(Step.READY)

    # -- guests of no connection ---------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _maker(self) -> AsyncIterator[Guest]:
        """A slot for the guest a template is made from."""
        guest = self._slot(NO_CONNECTION, self._supply.cold.name)
        try:
            yield guest
        finally:
            await self.destroy(guest)
            if guest.state is not GuestState.GONE:
                raise SpawnFailed(f"{guest.name}, a template's guest, cannot be ended")

    async def _make(self, tier: PooledTier) -> Guest:
        """A guest for the tier's pool. Raises FabricError."""
        guest = self._slot(NO_CONNECTION, tier.name)
        try:
            await tier.make(guest)
        except BaseException as exc:
            why = str(exc) if isinstance(exc, FabricError) else "the host is closing"
            self.fail(guest, why, quarantine=isinstance(exc, Conflict))
            raise
        self._emit("guest-kept-ready", guest, tier=tier.name, phases=dict(guest.phases))
        return guest

    def _busy(self) -> bool:
        return self._serving > 0

    def _blame(self, guest: Guest, why: str) -> None:
        self._supply.blame(guest, why)

    def _notice(self, name: str, fields: dict[str, Any]) -> None:
        self.on_notice(name, fields)

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._marking.add(task)
        task.add_done_callback(self._marking.discard)

    # -- loss -------------------------------------------------------------------------------------

    def lose(self, guest: Guest, reason: str) -> None:
        """It died, or is as good as dead: end it, and tell whom it serves. Late news is fine."""
        if guest.state in (GuestState.DESTROYING, GuestState.GONE):
            return
        if self._supply.discard(guest):
            self.fail(guest, reason)
            return
        if guest.state not in (GuestState.RUNNING, GuestState.DRAINING):
            if not guest.fault.done():
                guest.fault.set_result(reason)
            return
        self.fail(guest, reason)
        self.on_lost(guest)

    def fail(self, guest: Guest, reason: str, *, quarantine: bool = False) -> None:
        """It is broken: end it, unless something that may not be this guest has its name."""
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
        return self._endings.begin(guest)

    def reclaim(self, name: str) -> asyncio.Task[None] | None:
        """End whatever has a guest's name while no guest has; None when one does."""
        index = slot_of(self._config.lab, self._config.host, name)
        if index is None or index in self._guests:
            return None
        return self._end(self.take(index, NO_CONNECTION))

    async def close(self) -> None:
        """Destroy every guest and release everything. Idempotent."""
        self._closing = True
        await self._supply.close()
        if self._marking:
            await asyncio.wait(self._marking)
        await self._endings.close(self.guests())
        self._makers.shutdown(wait=False)
        self._journal.close()

    # -- small things --------------------------------------------------------------------------

    async def _blocking(self, call: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._makers, functools.partial(call, *arguments))

    def _gone(self, guest: Guest) -> None:
        """Its absence is proven: the slot is free."""
        self.on_detach(guest.identity)
        self.on_step(Step.DETACHED)
        guest.advance(GuestEvent.ABSENT)
        self._guests.pop(guest.index, None)
        self._emit("guest-destroyed", guest)

    def _attach(self, identity: GuestIdentity) -> None:
        self.on_attach(identity)

    def _step(self, step: Step) -> None:
        self.on_step(step)

    def _emit(self, name: str, guest: Guest, /, **fields: Any) -> None:
        self.on_event(name, guest, fields)
