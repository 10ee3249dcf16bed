"""Virtual time: what happens next, and when.

Owns: Clock. May import: stdlib.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

PROGRESS_EVERY = 2000
"""Events between two calls of a progress function."""


class Clock:
    """A queue of events. Those of one moment happen in the order they were asked for."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        """How many have happened."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._ticket = 0

    def at(self, when_us: int, action: Callable[[], None]) -> None:
        """Let something happen; not before now."""
        self._ticket += 1
        heapq.heappush(self._queue, (max(when_us, self.now_us), self._ticket, action))

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        """Let something happen ``delay_us`` from now."""
        self.at(self.now_us + delay_us, action)

    def run(self, progress: Callable[[int], None] = lambda _now: None) -> None:
        """Until nothing is left to happen. ``progress`` hears of the time, now and then."""
        queue = self._queue
        while queue:
            self.now_us, _, action = heapq.heappop(queue)
            action()
            self.events += 1
            if self.events % PROGRESS_EVERY == 0:
                progress(self.now_us)
