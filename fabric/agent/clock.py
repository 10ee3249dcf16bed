"""The host's time, kept by the guest's own clock.

Owns: Clock. May import: the standard library.
"""

from __future__ import annotations

import time


class Clock:
    """Unix µs of the host: the guest's own monotonic clock, set by the host's word."""

    def __init__(self) -> None:
        self.offset_us = time.time_ns() // 1000 - self.monotonic_us()

    @staticmethod
    def monotonic_us() -> int:
        """The guest's own clock."""
        return time.monotonic_ns() // 1000

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000 + self.offset_us

    def set(self, host_now_us: int, read_at_us: int) -> None:
        """The host's clock showed ``host_now_us`` when ours showed ``read_at_us`` (monotonic): when
        the message came in, since understanding it takes longer than its way through the
        channel."""
        self.offset_us = host_now_us - read_at_us
