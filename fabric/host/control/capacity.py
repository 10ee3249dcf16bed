"""Admission control: whether one more guest may be spawned on this host, and if not, why.

Owns: the token bucket and the limits' arithmetic. May import: errors, host.config. Pure: ``now`` is
passed in.
"""

from __future__ import annotations

from fabric.errors import CapacityExceeded
from fabric.host.config import Limits

# A bucket smaller than this would refuse an ordinary browser's burst of parallel connections.
MINIMUM_BURST = 32.0


class Admission:
    """Counts nothing itself but spawn tokens: guests and memory are told at each question."""

    def __init__(self, limits: Limits, guest_memory_mib: int) -> None:
        self._limits = limits
        self._guest_memory_mib = guest_memory_mib
        self._burst = max(MINIMUM_BURST, limits.spawns_per_second)
        self._tokens = self._burst
        self._refilled_at: float | None = None

    def admit(self, guests: int, available_mib: int, now: float) -> None:
        """Take one spawn token (``available_mib``: memory of the machine; ``now`` in seconds,
        monotonic).

        Raises CapacityExceeded naming the limit; then nothing was taken.
        """
        limits = self._limits
        if guests >= limits.guests:
            raise CapacityExceeded(
                f"{guests} guests are alive, the limit is {limits.guests}",
                limit="guests",
                cure="raise limits.guests or let idle connections end",
            )
        memory = (guests + 1) * self._guest_memory_mib
        if memory > limits.guest_memory_mib:
            raise CapacityExceeded(
                f"one more guest would need {memory} MiB in all, the limit is "
                f"{limits.guest_memory_mib} MiB",
                limit="guest_memory_mib",
                cure="raise limits.guest_memory_mib",
            )
        if available_mib < limits.memory_reserve_mib + self._guest_memory_mib:
            raise CapacityExceeded(
                f"{available_mib} MiB of memory are available; a guest may use "
                f"{self._guest_memory_mib} MiB, and {limits.memory_reserve_mib} MiB are to be left",
                limit="memory_reserve_mib",
                cure="free some memory, or lower limits.memory_reserve_mib",
            )
        if self._refilled_at is not None:
            earned = (now - self._refilled_at) * limits.spawns_per_second
            self._tokens = min(self._burst, self._tokens + earned)
        self._refilled_at = now
        if self._tokens < 1:
            raise CapacityExceeded(
                f"more than {limits.spawns_per_second:g} new guests per second",
                limit="spawns_per_second",
                cure="raise limits.spawns_per_second or slow the application down",
            )
        self._tokens -= 1
