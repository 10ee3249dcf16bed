"""The end of a guest, until its absence is proven.

Owns: the steps of a destruction, and trying again what could not be proven. May import: errors, and
its neighbours in host. A slot is free only when :class:`Endings` has said that its guest is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fabric.errors import Conflict, EnvironmentFault, FabricError
from fabric.host.faults import Step
from fabric.host.guest.guest import Guest
from fabric.host.guest.lifecycle import GuestEvent, GuestState
from fabric.host.guest.steps import Steps
from fabric.host.journal import GUEST_KIND

AT_ONCE = 4
"""Destructions at once. libvirt serves about five slow calls at a time, see max_workers."""

RETRY = 5.0
"""Seconds before an unproven destruction is tried again."""


class Endings:
    """``gone(guest)`` is called on the event loop when nothing is left of a guest."""

    def __init__(self, steps: Steps, gone: Callable[[Guest], None]) -> None:
        self._steps = steps
        self._gone = gone
        self._pool = ThreadPoolExecutor(AT_ONCE, "fabric-destroy")
        self._closing = False

    def begin(self, guest: Guest) -> asyncio.Task[None]:
        """End the guest; the task is done when that is proven, or could not be. Idempotent."""
        if guest.ending is None:
            guest.advance(GuestEvent.DESTROY)
            if not guest.fault.done():
                guest.fault.set_result("it is being destroyed")
            guest.ending = asyncio.get_running_loop().create_task(self._tear_down(guest))
        return guest.ending

    async def close(self, guests: Sequence[Guest]) -> None:
        """End all of them, and try nothing again."""
        self._closing = True
        ends = []
        for guest in guests:
            if guest.quarantined:
                continue
            if guest.ending is not None and guest.ending.done():
                guest.ending = None  # a stuck one gets a last try
            ends.append(self.begin(guest))
        if ends:
            await asyncio.wait(ends)
        self._pool.shutdown(wait=False)

    async def _tear_down(self, guest: Guest) -> None:
        hooks = self._steps.hooks
        hooks.step(Step.ENDING)
        if guest.creation is not None:
            await asyncio.wait({guest.creation})
            if isinstance(guest.creation.exception(), Conflict):
                guest.quarantined = True  # what holds the name is not this guest
                return
        try:
            await self._blocking(self._steps.hypervisor.destroy, guest.name)
        except FabricError as exc:
            guest.advance(GuestEvent.FAULT)
            hooks.emit("guest-stuck", guest, reason=str(exc))
            if not self._closing:
                asyncio.get_running_loop().call_later(RETRY, self._retry, guest)
            return
        hooks.step(Step.DESTROYED)
        if guest.listening is not None:
            guest.listening.cancel()
        if guest.channel is not None:
            await guest.channel.close()
        await self._blocking(self._forget, guest)
        hooks.step(Step.DISOWNED)
        self._gone(guest)

    def _retry(self, guest: Guest) -> None:
        if not self._closing and guest.state is GuestState.DESTROYING:
            guest.ending = asyncio.get_running_loop().create_task(self._tear_down(guest))

    def _forget(self, guest: Guest) -> None:
        """In a thread: absence is proven, so ownership ends."""
        guest.identity.channel.unlink(missing_ok=True)
        with contextlib.suppress(EnvironmentFault):  # a full disk: then it is looked for once more
            self._steps.journal.done(GUEST_KIND, guest.name)

    async def _blocking(self, call: Callable[..., object], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, functools.partial(call, *arguments))
