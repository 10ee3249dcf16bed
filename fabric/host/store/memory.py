"""A store in memory, for tests of what stands on one: lost and found at will.

Owns: MemoryStore and the place several of them share. May import: host.store.interface.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fabric.host.store.interface import State, checked


@dataclass
class Place:
    """What sessions have in common."""

    values: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Key → (session, value)."""
    sessions: list[MemoryStore] = field(default_factory=list)
    lost: bool = False

    def lose(self, lost: bool = True) -> None:
        """Take the store away, or bring it back."""
        self.lost = lost
        self.tell()

    def tell(self) -> None:
        for session in self.sessions:
            session.changed.set()

    def expire(self, session: MemoryStore) -> None:
        """Its lease has ended: it died some time ago."""
        self.values = {k: v for k, v in self.values.items() if v[0] != id(session)}
        self.tell()


class MemoryStore:
    """Implements :class:`fabric.host.store.interface.Store`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._waiting: dict[str, bytes] = {}
        self.changed = asyncio.Event()
        place.sessions.append(self)

    async def put(self, key: str, value: bytes) -> None:
        checked(key, value)
        self._waiting[key] = value
        self._flush()

    async def watch(self) -> AsyncIterator[State | None]:
        last: object = self  # equal to no state
        while True:
            self.changed.clear()
            self._flush()
            place = self._place
            state = None if place.lost else {key: value for key, (_, value) in place.values.items()}
            if state != last:
                last = state
                yield state
            else:
                await self.changed.wait()

    async def close(self) -> None:
        self._place.sessions.remove(self)
        self._place.expire(self)

    def _flush(self) -> None:
        if not self._place.lost and self._waiting:
            self._place.values |= {k: (id(self), v) for k, v in self._waiting.items()}
            self._waiting.clear()
            self._place.tell()
