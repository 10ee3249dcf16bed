"""A guest manager among fakes, for the tests of the guest life cycle and of the spawn tiers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fabric.host.guest.bundle import Bundle
from fabric.host.guest.guests import Guest, GuestManager
from fabric.host.network.bridge_ports_fake import FakeBridgePorts
from tests.unit.guest_samples import (
    CONFIG,
    FakeAgents,
    SampleAccelerator,
    SampleImage,
    ServingHypervisor,
    configure,
)

BUNDLE = Bundle(b"", "digest", True, ())
CONNECTION = 0x1_0000_0001


@dataclass
class World:
    manager: GuestManager
    hypervisor: ServingHypervisor
    ports: FakeBridgePorts
    agents: FakeAgents
    events: list[tuple[str, str, dict[str, Any]]]
    messages: list[object]
    lost: list[Guest]
    notices: list[tuple[str, dict[str, Any]]]
    journal: Path

    async def spawn(self, connection: int = CONNECTION) -> Guest:
        return await self.manager.spawn(connection, partial(configure, connection))

    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]


@asynccontextmanager
async def world(
    directory: Path, config: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[World]:
    """``config``: what differs from the sample's."""
    host = replace(CONFIG, run_dir=str(directory), **(config or {}))
    kernel = directory / "vmlinuz"
    kernel.write_bytes(bytes(1000))
    agents = FakeAgents()
    hypervisor = ServingHypervisor(agents, host)
    ports = FakeBridgePorts(hypervisor.log)
    manager = GuestManager(
        host,
        SampleImage(kernel=kernel),
        SampleAccelerator(),
        hypervisor,
        BUNDLE,
        ports=ports,
        provisioner=agents,
        **options,
    )
    journal = host.host_dir / "journal.jsonl"
    made = World(manager, hypervisor, ports, agents, [], [], [], [], journal)
    manager.on_event = lambda name, guest, fields: made.events.append((name, guest.name, fields))
    manager.on_message = lambda guest, message: made.messages.append(message)
    manager.on_lost = made.lost.append
    manager.on_notice = lambda name, fields: made.notices.append((name, fields))
    try:
        yield made
    finally:
        await manager.close()
        await agents.close()


def run(directory: Path, scenario: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def within() -> None:
        async with asyncio.timeout(20), world(directory, **options) as made:
            await scenario(made)

    asyncio.run(within())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
