"""The pure half of the link emulator: when does a frame come out, and which are lost.

Owns: one direction of one impaired link. May import: nothing of ours; time is passed in and
randomness comes from a generator the caller seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

QUEUE_LIMIT_BYTES = 16 << 20
"""Bytes on the wire of one direction at once: 1 Gb/s for 130 ms. A bound, so that a fast sender on
a long link costs loss (as a full buffer would) and not this machine's memory."""


@dataclass
class DelayLine:
    """Holds frames for a time, in order, and loses some. Delay, jitter and loss may be set while
    frames are in it: those keep their time, and later ones come out behind them."""

    delay_ns: int
    loss: float
    """Probability of losing a frame, 0 … 1. A GSO super-frame is lost as one."""
    rng: Random
    jitter_ns: int = 0
    """How far the delay strays to either side, evenly spread; never below 0."""
    limit_bytes: int = QUEUE_LIMIT_BYTES
    lost: int = 0
    overflowed: int = 0
    queued_bytes: int = 0
    _frames: deque[tuple[int, bytes]] = field(default_factory=deque)

    def push(self, frame: bytes, now_ns: int) -> None:
        """A frame enters the link at ``now_ns``."""
        if self.loss and self.rng.random() < self.loss:
            self.lost += 1
        elif self.queued_bytes + len(frame) > self.limit_bytes:
            self.overflowed += 1
        else:
            due = now_ns + self.delay_ns
            if self.jitter_ns:
                due = max(now_ns, due + self.rng.randint(-self.jitter_ns, self.jitter_ns))
            # A wire does not let frames overtake each other; and a sorted deque needs no heap.
            if self._frames:
                due = max(due, self._frames[-1][0])
            self._frames.append((due, frame))
            self.queued_bytes += len(frame)

    def pop_due(self, now_ns: int) -> Iterator[bytes]:
        """Frames whose time has come, oldest first; they leave the line as they are taken."""
        while self._frames and self._frames[0][0] <= now_ns:
            frame = self._frames.popleft()[1]
            self.queued_bytes -= len(frame)
            yield frame

    def next_due(self) -> int | None:
        """Time in ns at which the next frame comes out; None while the line is empty."""
        return self._frames[0][0] if self._frames else None
