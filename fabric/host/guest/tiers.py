"""Ways to a guest with a configured agent, and the slowest of them: a boot from the image.

Owns: the seam between the guests' keeper and the ways guests appear; the cold tier. May import:
errors, wire.control, and its neighbours in host. Copies of booted guests are
:mod:`host.guest.copies`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fabric.host.faults import Step
from fabric.host.guest.guest import AGENT_DEADLINES, STEP_DEADLINES, Guest, phase, unless_lost
from fabric.host.guest.lifecycle import GuestEvent
from fabric.host.guest.steps import Change, Steps
from fabric.host.identity import GuestIdentity
from fabric.wire.control import Configure

Instruct = Callable[[GuestIdentity], Configure]
"""What to tell the agent of the guest with this identity; asked for at the last moment."""

Notice = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and fields."""


class Tier(Protocol):
    """A way to a guest. One contract: after :meth:`bring_up` the guest is CONFIGURING, has its own
    identity, and its agent has said that it is ready for its connection."""

    @property
    def name(self) -> str: ...
    @property
    def at_once(self) -> asyncio.Semaphore:
        """Held during bring_up, in order of arrival."""

    def unavailable(self) -> str:
        """Why this tier cannot be had now; empty when it can."""

    def claim(self) -> Guest | None:
        """A guest that was kept ready, out of its pool; None: bring_up starts from nothing."""

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        """From what :meth:`claim` gave (or REQUESTED) to CONFIGURING and ready. Raises FabricError;
        the caller then ends the guest."""


class ColdTier:
    """Boot from the image, push the agent over SSH."""

    name = "cold"

    def __init__(self, steps: Steps, at_once: asyncio.Semaphore) -> None:
        self.at_once = at_once
        self._steps = steps
        kind = steps.accelerator
        self._step_deadline, self.agent_deadline = STEP_DEADLINES[kind], AGENT_DEADLINES[kind]

    def unavailable(self) -> str:
        return ""

    def claim(self) -> Guest | None:
        return None

    async def bring_up(self, guest: Guest, instruct: Instruct) -> None:
        await self.boot(guest)
        await configured(self._steps, guest, instruct, self.agent_deadline)

    async def boot(self, guest: Guest, change: Change = lambda plan: plan) -> None:
        """As far as the agent's hello."""
        steps, patience = self._steps, self._step_deadline
        with phase(guest, "domain_ms"):
            await steps.create(guest, change)
        with phase(guest, "boot_ms"):
            await steps.join(guest)
            reached = steps.provisioner.reach(guest.identity.address, patience)
            link = await unless_lost(guest, reached)
        guest.advance(GuestEvent.REACHED)
        steps.hooks.step(Step.REACHED)
        with phase(guest, "ssh_ms"):
            await unless_lost(guest, steps.provisioner.push(link, patience))
        guest.advance(GuestEvent.PUSHED)
        steps.hooks.step(Step.PUSHED)
        with phase(guest, "agent_ms"):
            word = steps.word(guest, guest.said_hello, self.agent_deadline)
            guest.hello = await unless_lost(guest, word)
        steps.hooks.step(Step.GREETED)


async def configured(steps: Steps, guest: Guest, instruct: Instruct, deadline: float) -> None:
    """Tell the agent of its connection and wait until it is ready. Raises AgentLost."""
    with phase(guest, "ready_ms"):
        assert guest.channel is not None  # joined before it said anything
        guest.channel.send(instruct(guest.identity))
        steps.hooks.step(Step.CONFIGURED)
        await ready(steps, guest, deadline)


async def ready(steps: Steps, guest: Guest, deadline: float) -> None:
    """Wait until the agent is ready. Raises AgentLost."""
    guest.ready = await unless_lost(guest, steps.word(guest, guest.said_ready, deadline))
