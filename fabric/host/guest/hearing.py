"""What guests do by themselves: agents speak, channels end, domains stop.

Owns: listening, and what follows from a word or an end. May import: errors, wire.control, and its
neighbours in host. Ending a guest is :mod:`fabric.host.guest.guests`'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from fabric.errors import AgentLost
from fabric.host.guest.channel import Channel
from fabric.host.guest.copies import impostor
from fabric.host.guest.guest import Guest
from fabric.host.guest.steps import Emit
from fabric.host.vmm.domains import DomainEvent, Watcher
from fabric.wire.control import AgentEvent, Identified, Message

AGENT_ERROR = "agent-error"
"""Name of the event by which an agent says that it could not do what it was told."""


class Keeper(Protocol):
    """The keeper of the guests."""

    on_message: Callable[[Guest, Message], None]
    on_notice: Callable[[str, dict[str, Any]], None]

    def guests(self) -> list[Guest]: ...
    def lose(self, guest: Guest, reason: str) -> None: ...


class Hearing:
    """``blame(guest, why)``: the copy is a bad one, and so its template may be."""

    def __init__(self, keeper: Keeper, emit: Emit, blame: Callable[[Guest, str], None]) -> None:
        self._keeper, self._emit, self._blame = keeper, emit, blame

    def watcher(self) -> Watcher:
        """What to tell of domains, from any thread. Call it on the event loop."""
        loop = asyncio.get_running_loop()

        def on_domain_event(event: DomainEvent, name: str, uuid: str) -> None:
            if event is not DomainEvent.STARTED:
                with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                    loop.call_soon_threadsafe(self._on_stopped, event, name, uuid)

        return on_domain_event

    async def listen(self, guest: Guest, channel: Channel) -> None:
        """To the guest's agent, until its channel ends; then the guest is lost."""
        reason = "its control channel ended"
        try:
            async for message in channel.messages():
                self._hear(guest, message)
        except AgentLost as exc:
            reason = exc.message
        self._keeper.lose(guest, reason)

    def _hear(self, guest: Guest, message: Message) -> None:
        if isinstance(message, Identified):
            self._identified(guest, message)
        if not guest.hear(message):
            if isinstance(message, AgentEvent) and message.name == AGENT_ERROR:
                self._refused(guest, message)
            self._keeper.on_message(guest, message)

    def _identified(self, guest: Guest, said: Identified) -> None:
        """A copy shows who it became, behind its first packet."""
        if why := impostor(guest, said):
            self._blame(guest, why)
            self._keeper.lose(guest, why)
            return
        guest.sample = said.sample
        fields = {"mac": said.mac, "address": said.address, "sample": said.sample}
        self._emit("guest-identified", guest, **fields, host_key=said.host_key)

    def _refused(self, guest: Guest, error: AgentEvent) -> None:
        """An agent that cannot use its configuration will never be ready: do not wait for it."""
        if not guest.said_ready.done():
            self._keeper.lose(guest, f"its agent refused the configuration: {error.fields}")

    def _on_stopped(self, event: DomainEvent, name: str, uuid: str) -> None:
        if event is DomainEvent.RECONNECTED:
            # Stops in between went unseen, but their channels ended: nothing to do.
            self._keeper.on_notice("libvirt-reconnected", {})
            return
        for guest in self._keeper.guests():
            # The news may be of the domain that had this slot before.
            if guest.name == name and guest.uuid == uuid:
                self._keeper.lose(guest, "its domain stopped")
            elif guest.name == name and not guest.uuid:
                guest.stops.add(uuid)
