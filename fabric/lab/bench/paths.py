"""One way to send packets through the bed, and how it is measured.

Owns: Path. May import: host, lab.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.lab.bench.bed import Program, Seat, guest_cpu
from fabric.lab.bench.measure import (
    Figure,
    Trial,
    stream_figure,
    sustained_rate,
    udp_figure,
)

_runs = itertools.count(1)
"""Numbers the trials of a process: a late packet must not count for the next one."""


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 1)


@dataclass
class Path:
    """From a sender through some guests to a receiver."""

    kind: str
    """fabric, kernel or loop."""
    hops: int
    sender: Program
    receiver: Program
    source: tuple[str, int]
    target: tuple[str, int]
    seats: Sequence[Seat]
    guess: float
    """Packets/s to try first."""

    def trial(self, size: int, rate: float, seconds: float) -> Trial:
        """Offer a rate and see what arrives."""
        domains = [seat.domain for seat in self.seats]
        number = next(_runs)
        before = guest_cpu(domains)
        sent = self.send(size, rate, seconds, number)
        got = self.receiver.ask(do="run", run=number)
        after = guest_cpu(domains)
        cpu = after - before if before is not None and after is not None else None
        return Trial.of(size, sent, got, cpu, max(1, len(domains)))

    def send(self, size: int, rate: float, seconds: float, number: int = 0) -> dict[str, Any]:
        """Only the sending part; ``number`` marks the packets as a trial's."""
        return self.sender.ask(
            do="udp", source=self.source, target=self.target, size=size, rate=rate,
            seconds=seconds, run=number,
        )  # fmt: skip

    def rate(self, size: int, seconds: float) -> Figure:
        """The highest rate of packets of a size; each trial takes ``seconds``."""
        best, trials = sustained_rate(lambda rate: self.trial(size, rate, seconds), self.guess)
        # Bigger packets are hardly more work here: the next size starts near this one's answer.
        self.guess = best.delivered
        return udp_figure(self.hops, self.kind, size, best, trials, load_average())

    def stream(self, seconds: float) -> Figure:
        """One TCP stream."""
        self.receiver.ask(do="stream")  # forget what an earlier one left
        self.send_stream(seconds)
        return stream_figure(self.hops, self.kind, self.receiver.ask(do="stream"), load_average())

    def send_stream(self, seconds: float) -> dict[str, Any]:
        """Only the sending part; 0 seconds: only connect."""
        return self.sender.ask(do="tcp", source=self.source, target=self.target, seconds=seconds)
