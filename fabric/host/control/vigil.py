"""Agents that fell silent: asking quiet ones for a sign of life, giving up those that show none.

Owns: when to ask and how long to wait (:class:`Vigil`, pure), and doing so (:class:`AgentWatch`).
May import: errors, wire.control, host.guest.guest, host.guest.lifecycle, host.control.ports.

A guest whose agent died looks healthy from outside: QEMU runs, the channel stays open, its kernel
answers pings. Only the agent itself can say that it lives. One that forwards says so by the
counters it sends each second, so only quiet ones are asked.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fabric.errors import AgentLost, FabricError
from fabric.host.control.ports import Clock
from fabric.host.guest.guest import NO_CONNECTION, Guest
from fabric.host.guest.lifecycle import GuestState
from fabric.wire.control import Identity, Message, Query

QUIET = 5.0
"""Seconds without a word after which an agent is asked."""

QUESTIONS_PER_SECOND = 5.0
"""To all agents of a host together: an answer costs an emulated guest some ms of processor time, so
a hundred idle guests are asked less often."""

PATIENCE = {"kvm": 3.0, "tcg": 10.0}
"""Seconds an agent has for its answer at least; it takes a few ms on a quiet machine."""

SLOWNESS = 8.0
"""How many times the slowest recent answer of this host's agents a silent one may take: where
dozens of emulated guests boot at once, all are slow together."""

FADING = 0.9
"""What is left of the slowest answer with each later one."""

PATIENCE_LIMIT = 60.0
"""Seconds after which no slowness of others is an excuse."""

HELD_UP = 3.0
"""Seconds between two ticks (one a second) from which on it was this process that did not run: the
time in between says nothing about the agents."""

_AWAKE = (GuestState.RUNNING, GuestState.WARM)

K = TypeVar("K", bound=Hashable)


@dataclass
class _Watched:
    heard_at: float
    asked_at: float | None = None


class Vigil(Generic[K]):
    """Whom to ask and whom to give up. Times are monotonic seconds."""

    def __init__(self, patience: float) -> None:
        self._least = patience
        self._slowest = 0.0
        self._watched: dict[K, _Watched] = {}
        self._ticked_at: float | None = None

    @property
    def patience(self) -> float:
        """Seconds an agent has for its answer now."""
        return min(PATIENCE_LIMIT, max(self._least, SLOWNESS * self._slowest))

    def heard(self, who: K, now: float) -> None:
        """It said something."""
        watched = self._watched.setdefault(who, _Watched(now))
        watched.heard_at = now
        if watched.asked_at is not None:
            self.answered(now - watched.asked_at)
            watched.asked_at = None

    def answered(self, seconds: float) -> None:
        """Some agent of this host took that long to answer something."""
        self._slowest = max(seconds, self._slowest * FADING)

    def tick(self, present: Collection[K], now: float) -> tuple[list[K], list[tuple[K, float]]]:
        """Called once a second with all there are; (to be asked now, silent for so many seconds).

        The latter are reported once, and are then as if never seen.
        """
        gap = 0.0 if self._ticked_at is None else now - self._ticked_at
        self._ticked_at = now
        if gap > HELD_UP:
            self._excuse(gap)
        known = self._watched
        self._watched = {who: known.get(who) or _Watched(now) for who in present}
        quiet = max(QUIET, len(present) / QUESTIONS_PER_SECOND)
        asked, silent = [], []
        for who, watched in list(self._watched.items()):
            if watched.asked_at is None:
                if now - watched.heard_at >= quiet:
                    watched.asked_at = now
                    asked.append(who)
            elif now - watched.asked_at >= self.patience:
                silent.append((who, now - watched.heard_at))
                del self._watched[who]
        return asked, silent

    def _excuse(self, gap: float) -> None:
        for watched in self._watched.values():
            watched.heard_at += gap
            if watched.asked_at is not None:
                watched.asked_at += gap


class WatchedGuests(Protocol):
    """What of the guests' keeper is needed here."""

    def guests(self) -> list[Guest]: ...

    def lose(self, guest: Guest, reason: str) -> None:
        """The guest is of no use any more: end it, and tell whom it served."""


class AgentWatch:
    """Keeps the vigil over the running guests of one host."""

    def __init__(self, guests: WatchedGuests, accelerator: str, clock: Clock) -> None:
        """``accelerator``: kvm or tcg."""
        self._guests = guests
        self._clock = clock
        self._vigil: Vigil[Guest] = Vigil(PATIENCE.get(accelerator, PATIENCE["tcg"]))

    def on_message(self, guest: Guest, message: Message) -> None:
        """Any word of an agent after it was ready."""
        self._vigil.heard(guest, self._clock.monotonic())
        # "Nobody" may be the answer of a guest that was warm when it was asked.
        whose = (guest.connection, NO_CONNECTION)
        if isinstance(message, Identity):
            guest.key_digest = message.key
        if isinstance(message, Identity) and message.connection not in whose:
            self._guests.lose(guest, f"its agent says that it serves {message.connection:016x}")

    def on_ready(self, guest: Guest) -> None:
        """How long it took to understand its configuration tells how slow agents are now."""
        self._vigil.answered(guest.phases.get("ready_ms", 0.0) / 1e3)

    def tick(self) -> None:
        """Call once a second."""
        running = [g for g in self._guests.guests() if g.state in _AWAKE]
        ask, silent = self._vigil.tick(running, self._clock.monotonic())
        for guest in ask:
            try:
                if guest.channel is not None:
                    guest.channel.send(Query(what="identity"))
            except (AgentLost, OSError) as exc:
                why = exc.message if isinstance(exc, FabricError) else str(exc)
                self._guests.lose(guest, why)
        for guest, seconds in silent:
            self._guests.lose(guest, f"its agent has been silent for {seconds:.0f} s")
