"""A pool serves requests; making guests for it never comes before one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fabric.host.config import PoolConfig
from fabric.host.guest import pool as pools
from fabric.host.guest.guest import Guest
from fabric.host.guest.pool import Pool


class Machine:
    """Surroundings whose clock the test moves."""

    def __init__(self) -> None:
        self.now, self.memory_mib, self.serving = 0.0, 4096, False
        self.made: list[Guest] = []
        self.ended: list[Guest] = []
        self.notices: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def memory_available_mib(self) -> int:
        return self.memory_mib

    def busy(self) -> bool:
        return self.serving

    def notice(self, name: str, fields: dict[str, Any]) -> None:
        self.notices.append(name)

    def possible(self) -> bool:
        return True

    async def make(self) -> Guest:
        self.made.append(cast(Guest, object()))
        return self.made[-1]

    async def end(self, guest: Guest) -> None:
        self.ended.append(guest)


def run(
    scenario: Callable[[Machine, Pool], Awaitable[None]], busy: bool = False, size: int = 4
) -> None:
    async def within() -> None:
        machine = Machine()
        machine.serving = busy
        pool = Pool(PoolConfig(minimum=size, maximum=16), machine, machine.make, machine.end)
        keeping = asyncio.create_task(pool.keep())
        try:
            async with asyncio.timeout(10):
                await scenario(machine, pool)
        finally:
            keeping.cancel()

    asyncio.run(within())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def a_while() -> None:
    await asyncio.sleep(5 * pools._QUIET_POLL)


def test_nothing_is_made_while_a_request_is_served() -> None:
    async def scenario(machine: Machine, pool: Pool) -> None:
        await a_while()  # it wants one, and waits
        machine.now += 5  # a burst of sixteen takes as long, emulated
        await a_while()
        assert not machine.made
        machine.serving = False
        await until(lambda: pool.ready() == 4)

    run(scenario, busy=True)


def test_requests_without_a_pause_do_not_keep_a_pool_empty_for_ever() -> None:
    async def scenario(machine: Machine, pool: Pool) -> None:
        await a_while()
        machine.now += pools.PATIENCE
        await until(lambda: len(machine.made) == 1)
        await a_while()
        assert len(machine.made) == 1, "and then requests come first again"

    run(scenario, busy=True)


def test_a_pool_drains_on_a_machine_short_of_memory_and_is_filled_when_there_is_some() -> None:
    async def scenario(machine: Machine, pool: Pool) -> None:
        await until(lambda: pool.ready() == 4)
        members = pool.members()
        machine.memory_mib = pool.config.memory_floor_mib - 1
        pool.nudge()
        await until(lambda: pool.ready() == 0)
        assert sorted(map(id, machine.ended)) == sorted(map(id, members))
        assert machine.notices == ["memory-short"]
        machine.memory_mib += 1
        pool.nudge()
        await until(lambda: pool.ready() == 4)
        assert machine.notices == ["memory-short", "memory-back"]

    run(scenario)
