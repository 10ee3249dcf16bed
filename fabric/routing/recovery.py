"""What an egress does about packets that came over several paths: eliminate, put in order.

Owns: Seen (sequence recovery in the manner of IEEE 802.1CB) and Order. May import: fabric.wire.
Pure: times are passed in; travels into guests.
"""

from __future__ import annotations

from heapq import heappop, heappush

from fabric.wire.packet import SEQUENCES_PER_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 4096
"""Sequence numbers remembered: what two disjoint paths may lag behind each other at 50 ms and 80
kpps, far beyond what a guest forwards. Older packets are taken for copies."""
RESET_US = 1_000_000
"""µs without an accepted packet after which any sequence number is accepted again (802.1CB calls it
frerSeqRcvyResetMSec): a sender that was replaced may begin anew, and no copy is that late."""
HELD_PACKETS = 1024
"""Packets that wait for an earlier one; beyond it, what is missing counts as lost."""
HELD_BYTES = 4 * 1024 * 1024
"""Bytes of them: a guest has 128 MiB for everything."""


class Seen:
    """Which sequence numbers of one direction were there before."""

    __slots__ = ("_accepted_at", "_highest", "_history")

    def __init__(self) -> None:
        self._highest = -1
        self._history = 0
        """Bit n: number ``_highest - n`` was there."""
        self._accepted_at = 0

    def fresh(self, sequence: int, now_us: int) -> bool:
        """True for the first packet with that number: 802.1CB's vector recovery algorithm, except
        that a leap forward is believed, as numbers are 64 bits long and never come round."""
        ahead = sequence - self._highest
        if ahead > 0 or now_us - self._accepted_at > RESET_US:
            near = 0 < ahead < WINDOW
            kept = self._history << ahead & (1 << WINDOW) - 1 if near else 0
            self._history, self._highest = kept | 1, sequence
        else:
            bit = 1 << -ahead
            if -ahead >= WINDOW or self._history & bit:
                return False
            self._history |= bit
        self._accepted_at = now_us
        return True


class Order:
    """Packets of one direction in the order of their sequence numbers, as far as patience goes.

    Nobody waits longer than ``hold_us``, and no more packets or bytes wait than a guest can hold.
    What comes after its turn was given up is passed on at once: late is better than never.
    """

    __slots__ = (
        *("_bytes", "_hold_us", "_newest_at", "_next", "_turns", "_waiting", "late", "waited"),
    )

    def __init__(self, hold_us: int) -> None:
        self._hold_us = hold_us
        self._next = 1
        self._newest_at = 0
        """When the last packet came that was not late, µs."""
        self._waiting: dict[int, tuple[int, bytes]] = {}
        """Sequence → (arrival µs, packet), in order of arrival."""
        self._turns: list[int] = []
        self._bytes = 0
        self.late = 0
        self.waited = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: int, packet: bytes, now_us: int) -> Iterator[bytes]:
        """Packets whose turn it is now. Exhaust the iterator before the next call."""
        if sequence - self._next > HELD_PACKETS:
            # Nobody is that far ahead: this is another sender, or the middle of a flow.
            yield from self._release(sequence - 1)
            begun = sequence - (sequence - 1) % SEQUENCES_PER_MS
            self._next = begun if sequence - begun < HELD_PACKETS else sequence
        if sequence < self._next:
            self.late += 1
            if self._next - sequence > WINDOW and now_us - self._newest_at > RESET_US:
                self._next = sequence + 1  # the sender was replaced, and its clock set back
            yield packet
            return
        self._newest_at = now_us
        if sequence == self._next:
            yield packet
            self._next += 1
            yield from self._release(self._next)
        elif sequence not in self._waiting:
            self._waiting[sequence] = (now_us, packet)
            self._bytes += len(packet)
            self.waited += 1
            heappush(self._turns, sequence)
            while len(self._waiting) > HELD_PACKETS or self._bytes > HELD_BYTES:
                yield from self._release(self._turns[0])

    def deadline(self) -> int | None:
        """When the longest-waiting packet has waited enough, µs; None: nobody waits."""
        for arrived, _ in self._waiting.values():
            return arrived + self._hold_us
        return None

    def overdue(self, now_us: int) -> Iterator[bytes]:
        """Packets that have waited enough, and those before them."""
        while self._waiting:
            sequence, (arrived, _) = next(iter(self._waiting.items()))
            if arrived + self._hold_us > now_us:
                return
            yield from self._release(sequence)

    def _release(self, at_least: int) -> Iterator[bytes]:
        """Waiting packets up to ``at_least``, and those that follow without a gap."""
        while self._turns and (self._turns[0] <= at_least or self._turns[0] == self._next):
            sequence = heappop(self._turns)
            _, packet = self._waiting.pop(sequence)
            self._bytes -= len(packet)
            self._next = sequence + 1
            yield packet
