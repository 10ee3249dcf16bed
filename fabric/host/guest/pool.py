"""Guests kept ready for requests to come.

Owns: how many there should be, and having that many. May import: errors, host.config,
host.guest.guest. Making and ending a guest is passed in, and so are the clock and the memory that
is left.

One is made at a time, and not while a request is being served: a pool must never cost a request
the processor. After :data:`PATIENCE` seconds of requests without a pause one is made all the same,
because an empty pool serves nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fabric.errors import FabricError
from fabric.host.config import PoolConfig
from fabric.host.guest.guest import Guest

DEMAND_WINDOW = 30.0
"""Seconds of requests the pool is sized by."""

PATIENCE = 15.0
"""Seconds a guest for the pool waits for a moment without requests."""

RETRY = 5.0
"""Seconds after a failure before the next try."""

LOOK_AGAIN = 10.0
"""Seconds after which demand and memory are looked at even when nothing happened."""

_QUIET_POLL = 0.02


def wanted(config: PoolConfig, demand: int, memory_mib: int) -> int:
    """How many guests to keep ready: as many as were asked for lately, within the limits; none when
    memory is short. ``demand``: requests in DEMAND_WINDOW; ``memory_mib``: available."""
    if memory_mib < config.memory_floor_mib:
        return 0
    return min(max(config.minimum, demand), config.maximum)


class Surroundings(Protocol):
    """What a pool asks of its host."""

    def monotonic(self) -> float: ...

    def memory_available_mib(self) -> int: ...

    def notice(self, name: str, fields: dict[str, Any]) -> None: ...

    def busy(self) -> bool:
        """Whether a request is being served at the moment."""

    def possible(self) -> bool:
        """Whether a guest can be made at all now."""


class Pool:
    """Guests of one kind. ``make`` returns a new one, ``end`` destroys one."""

    def __init__(
        self,
        config: PoolConfig,
        around: Surroundings,
        make: Callable[[], Awaitable[Guest]],
        end: Callable[[Guest], Awaitable[None]],
    ) -> None:
        self.config = config
        self.failures = 0
        """Failures to make one in a row."""
        self._short = False
        self._around = around
        self._make = make
        self._end = end
        self._members: deque[Guest] = deque()
        self._requests: deque[float] = deque()
        self._changed = asyncio.Event()

    def ready(self) -> int:
        """How many there are."""
        return len(self._members)

    def members(self) -> list[Guest]:
        return list(self._members)

    def requested(self) -> None:
        """A request came, whether or not the pool can serve it."""
        self._requests.append(self._around.monotonic())
        self._changed.set()

    def take(self) -> Guest | None:
        """The one that waited longest; None when there is none."""
        self._changed.set()
        return self._members.popleft() if self._members else None

    def discard(self, guest: Guest) -> bool:
        """Forget a member that was lost; whether it was one."""
        self._changed.set()
        with contextlib.suppress(ValueError):
            self._members.remove(guest)
            return True
        return False

    def nudge(self) -> None:
        """Something changed that the pool may want to know."""
        self._changed.set()

    def wanted(self) -> int:
        """How many there should be now."""
        horizon = self._around.monotonic() - DEMAND_WINDOW
        while self._requests and self._requests[0] < horizon:
            self._requests.popleft()
        return wanted(self.config, len(self._requests), self._around.memory_available_mib())

    async def keep(self) -> None:
        """Have as many as are wanted. Runs until cancelled."""
        while True:
            self._changed.clear()
            self._look_at_memory()
            target = self.wanted()
            while self.ready() > target:
                await self._end(self._members.pop())
            if self.ready() < target and self._around.possible():
                await self._grow()
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_AGAIN)

    def _look_at_memory(self) -> None:
        available, floor = self._around.memory_available_mib(), self.config.memory_floor_mib
        if (short := available < floor) is not self._short:
            self._short = short
            fields = {"available_mib": available, "floor_mib": floor, "kept_ready": self.ready()}
            self._around.notice("memory-short" if short else "memory-back", fields)

    async def _grow(self) -> None:
        await self._quiet()
        try:
            self._members.append(await self._make())
            self.failures = 0
        except FabricError:
            # Whoever made it has reported it. A template that is bad is made anew meanwhile.
            self.failures += 1
            await asyncio.sleep(RETRY)

    async def _quiet(self) -> None:
        deadline = self._around.monotonic() + PATIENCE
        while self._around.busy() and self._around.monotonic() < deadline:
            await asyncio.sleep(_QUIET_POLL)
