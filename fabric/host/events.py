"""The event log of one host: what happened, in order, for people and for other programs.

Owns: numbering, the bounded in-memory log, the JSON-lines file, followers. May import: nothing of
ours. The clock is passed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Enough for several thousand connections' life stories; a page of memory per dozen events.
CAPACITY = 20_000


@dataclass(frozen=True)
class Event:
    """One thing that happened on one host. ``seq`` has no gaps within one orchestrator's life."""

    seq: int
    at_us: int
    """Unix time, microseconds."""
    host: str
    name: str
    connection: str | None
    fields: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        base = {"seq": self.seq, "at": iso(self.at_us), "at_us": self.at_us, "host": self.host}
        return {**base, "name": self.name, "connection": self.connection, **self.fields}


def iso(at_us: int) -> str:
    """Unix µs as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="microseconds")


class EventLog:
    """Append-only log with followers; old events fall off the far end, ``counts`` never does."""

    def __init__(self, host: str, now_us: Callable[[], int], path: Path | None = None) -> None:
        self._host = host
        self._now_us = now_us
        self._events: deque[Event] = deque(maxlen=CAPACITY)
        self._seq = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644) if path else None
        self._torn = False
        self._wake: set[asyncio.Event] = set()
        self.counts: Counter[str] = Counter()

    def emit(self, name: str, connection: str | None = None, **fields: Any) -> Event:
        """Record an event now and wake the followers."""
        self._seq += 1
        event = Event(self._seq, self._now_us(), self._host, name, connection, fields)
        self._events.append(event)
        self.counts[name] += 1
        self._write(json.dumps(event.to_json()).encode())
        for wake in self._wake:
            wake.set()
        return event

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            return
        # A full disk must not stop forwarding: the memory log goes on, and the file when there is
        # room again. It may have cut the last line short, which then is ended first.
        whole = b"\n" * self._torn + line + b"\n"
        with contextlib.suppress(OSError):
            self._torn = os.write(self._descriptor, whole) < len(whole)

    def since(self, seq: int) -> list[Event]:
        """Events numbered above ``seq``, oldest first."""
        return [event for event in self._events if event.seq > seq]

    async def follow(self, seq: int) -> AsyncIterator[Event]:
        """Events above ``seq`` and then every new one, until the caller stops iterating."""
        wake = asyncio.Event()
        self._wake.add(wake)
        try:
            while True:
                wake.clear()
                for event in self.since(seq):
                    yield event
                    seq = event.seq
                await wake.wait()
        finally:
            self._wake.discard(wake)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
