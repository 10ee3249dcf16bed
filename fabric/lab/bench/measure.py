"""From trials to figures: the search for the highest sustained rate, and ratios.

Owns: Trial, Figure, sustained_rate, add_ratios. May import: nothing. Pure. The method is that of
RFC 2544 section 26.1 (raise the rate until packets are lost, then close in), with a tolerance that
a machine shared with other work needs, and with queues counted: see :attr:`Trial.sustained`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_LOSS = 0.01
"""Loss a sustained rate may have. RFC 2544 says none; here a pause of the scheduler costs some."""
MIN_PACE = 0.95
"""Share of the offered rate that must come out while it is offered. Less, and a queue grows: with
the agent's 4 MiB of receive buffer, seconds of overload would pass without any loss."""
LOWEST, HIGHEST = 20.0, 400_000.0
"""Packets/s between which a rate is looked for."""
CLOSING_STEPS = 3
"""Bisections of a factor of two: the answer is good to 2^(1/8), 9 %."""


@dataclass(frozen=True)
class Trial:
    """One rate, offered for some seconds."""

    offered: float
    """Packets/s really sent."""
    delivered: float
    """Packets/s between the first and the last arrival."""
    loss: float
    """0 … 1."""
    mbit_s: float
    """Of inner packets, headers included."""
    delay_us: dict[str, int | None] = field(default_factory=dict)
    guest_cpu_us: float | None = None
    """CPU time of this machine that one packet cost in one guest, µs. Depends less than a rate on
    what else runs here; but the lower the rate, the smaller the bursts, the dearer the packet."""

    @property
    def sustained(self) -> bool:
        """Nothing to speak of was lost, and no queue grew."""
        return self.loss <= MAX_LOSS and self.delivered >= MIN_PACE * self.offered

    @classmethod
    def of(
        cls, size: int, sent: dict[str, Any], got: dict[str, Any], cpu: float | None, guests: int
    ) -> Trial:
        """From what sender and receiver say; ``cpu``: seconds all guests used together."""
        packets = got["packets"]
        span = got["seconds"]
        delivered = (packets - 1) / span if packets > 1 and span > 0 else 0.0
        per_packet = cpu * 1e6 / packets / guests if cpu is not None and packets else None
        return cls(
            offered=round(sent["sent"] / sent["seconds"], 1),
            delivered=round(delivered, 1),
            loss=round(1 - packets / sent["sent"], 5) if sent["sent"] else 1.0,
            mbit_s=round(delivered * size * 8 / 1e6, 2),
            delay_us=got["delay_us"],
            guest_cpu_us=round(per_packet, 1) if per_packet is not None else None,
        )


@dataclass
class Figure:
    """One line of the result."""

    hops: int
    kind: str
    """fabric, kernel, loop."""
    transport: str
    """udp, tcp."""
    size: int | None
    """Bytes of an inner packet; None for a stream."""
    packets_per_s: float | None
    mbit_s: float
    loss: float | None
    series: list[Any]
    """The trials of a rate search, or Mb/s of each quarter second of a stream, in order."""
    delay_us: dict[str, int | None] | None = None
    guest_cpu_us_per_packet: float | None = None
    ratio_to_kernel: float | None = None
    ratio_to_loop: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sustained_rate(trial: Callable[[float], Trial], start: float) -> tuple[Trial, list[Trial]]:
    """The best sustained trial (or the best of all if none was) and all trials in order.

    ``trial`` offers a rate in packets/s; ``start`` is a guess, as of the last size.
    """
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        # Twice: once may be somebody else's burst of work on this machine.
        for _ in range(2):
            trials.append(trial(rate))
            if trials[-1].sustained:
                return True
            if trials[-1].offered < 0.7 * rate:
                return False  # the sender is at its end: no use to ask again
        return False

    rate = min(max(start, LOWEST), HIGHEST)
    if holds(rate):
        low = rate
        while (rate := low * 2) <= HIGHEST and holds(rate):
            low = rate
    else:
        low = 0.0
        while rate > LOWEST and not low:
            rate = max(rate / 2, LOWEST)
            low = rate if holds(rate) else 0.0
    for step in range(1, CLOSING_STEPS + 1):
        rate = low * 2 ** (0.5**step)
        if low and holds(rate):
            low = rate
    good = [each for each in trials if each.sustained] or trials
    return max(good, key=lambda each: each.delivered), trials


def udp_figure(hops: int, kind: str, size: int, best: Trial, trials: Iterable[Trial]) -> Figure:
    """A figure of a rate search."""
    return Figure(
        hops, kind, "udp", size, best.delivered, best.mbit_s, best.loss,
        [asdict(each) for each in trials], best.delay_us, best.guest_cpu_us,
    )  # fmt: skip


def stream_figure(hops: int, kind: str, report: dict[str, Any]) -> Figure:
    """A figure of a TCP stream: mean of the series without its first and last quarter second, which
    are not whole."""
    series = [round(octets * 8 / report["bin"] / 1e6, 2) for octets in report["bytes"]]
    whole = series[1:-1] or series
    mean = round(sum(whole) / len(whole), 2) if whole else 0.0
    return Figure(hops, kind, "tcp", None, None, mean, None, series)


def add_ratios(figures: list[Figure]) -> None:
    """Fill in what share of the references each fabric figure reaches: kernel forwarding of the
    same hops, and the bare loop of the same size in one guest."""
    for figure in figures:
        if figure.kind == "kernel":
            continue
        kernel = _find(figures, "kernel", figure.transport, figure.size, figure.hops)
        loop = _find(figures, "loop", figure.transport, figure.size, None)
        if kernel and kernel.mbit_s:
            figure.ratio_to_kernel = round(figure.mbit_s / kernel.mbit_s, 3)
        if loop and loop.mbit_s and figure is not loop:
            figure.ratio_to_loop = round(figure.mbit_s / loop.mbit_s, 3)


def _find(
    figures: list[Figure], kind: str, transport: str, size: int | None, hops: int | None
) -> Figure | None:
    for each in figures:
        same = (each.kind, each.transport, each.size) == (kind, transport, size)
        if same and hops in (None, each.hops):
            return each
    return None
