"""What a link is worth, from the probes that came over it.

Owns: LinkMeter and Quality. May import: fabric.wire.probe. Pure: times are passed in; stays on the
host.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.wire.probe import LinkProbe

SMOOTHING = 1 / 8
"""Weight of a new round-trip time (RFC 6298, section 2: alpha)."""
VARIATION = 1 / 16
"""Weight of a new difference of delays (RFC 3550, section 6.4.1: the noise reduction factor)."""
LOSS_WINDOW = 512
"""Probes over which loss is counted: 25 s at 50 ms; one lost probe is 0.2 %."""
LOSS_MINIMUM = 64
"""Probes below which nothing is said of loss."""


MINIMUM_US = 2_000_000
"""µs over which the least delay is looked for; it is told for two such times at most."""


@dataclass(frozen=True)
class Quality:
    """What is known of a link. µs; None: not known."""

    rtt_us: int | None = None
    """Round trip, smoothed."""
    delay_us: int | None = None
    """One way, from the neighbour to here, smoothed; only where both ends read one clock."""
    least_us: int | None = None
    """One way, the least of late: what the link is worth without the queues and schedulers of the
    moment. Min Unidirectional Link Delay of RFC 8570, which RFC 9350 has for a metric. Where clocks
    differ, half the least round trip."""
    jitter_us: int | None = None
    """Variation of the one-way delay, which needs no common clock (RFC 3550)."""
    loss: float | None = None
    """Part of the neighbour's probes that did not arrive, 0 … 1."""


class LinkMeter:
    """Measures one link in the direction from the neighbour to here."""

    def __init__(self, clock: int) -> None:
        """``clock``: the name of the clock that receive times are read from."""
        self._clock = clock
        self._rtt: float | None = None
        self._delay: float | None = None
        self._least: list[tuple[int, float]] = []
        """(period, least one-way delay in it), the last two periods."""
        self._jitter = 0.0
        self._transit: int | None = None
        self._session = 0
        self._highest = 0
        self._expected = 0
        self._history = 0
        """Bit n: the probe ``_highest - n`` came."""

    def on_probe(self, probe: LinkProbe, received_at_us: int, *, echoed: bool) -> None:
        """A probe came in at ``received_at_us`` of our clock. ``echoed``: it answers one of this
        session."""
        one_way: float | None = None
        if echoed and probe.echo_sent_at_us:
            sample = received_at_us - probe.echo_sent_at_us - probe.echo_held_us
            if sample >= 0:
                self._rtt = _smoothed(self._rtt, sample)
                one_way = sample / 2
        transit = received_at_us - probe.sent_at_us
        same_clock = probe.clock == self._clock and transit >= 0
        self._delay = _smoothed(self._delay, transit) if same_clock else None
        self._note_least(transit if same_clock else one_way, received_at_us)
        if self._transit is not None and probe.my_discriminator == self._session:
            difference = abs(transit - self._transit)
            self._jitter += VARIATION * (difference - self._jitter)
        self._transit = transit
        self._count(probe)

    def forget(self) -> None:
        """The session went down: what is missing since was not lost one by one."""
        self._session = 0

    def quality(self) -> Quality:
        """As it stands."""
        known = min(self._expected, LOSS_WINDOW)
        loss = None
        if known >= LOSS_MINIMUM:
            here = (self._history & (1 << known) - 1).bit_count()
            loss = 1 - here / known
        return Quality(
            rtt_us=_rounded(self._rtt),
            delay_us=_rounded(self._delay),
            least_us=_rounded(min((delay for _, delay in self._least), default=None)),
            jitter_us=round(self._jitter) if self._transit is not None else None,
            loss=loss,
        )

    def _note_least(self, one_way: float | None, at_us: int) -> None:
        if one_way is None:
            return
        period = at_us // MINIMUM_US
        if self._least and self._least[-1][0] == period:
            one_way = min(one_way, self._least.pop()[1])
        self._least = [*self._least, (period, one_way)][-2:]

    def _count(self, probe: LinkProbe) -> None:
        if probe.my_discriminator != self._session:
            self._session, self._highest = probe.my_discriminator, probe.sequence
            self._expected, self._history = 1, 1
            return
        ahead = probe.sequence - self._highest
        if ahead > 0:
            kept = self._history << ahead if ahead < LOSS_WINDOW else 0
            self._history = (kept | 1) & (1 << LOSS_WINDOW) - 1
            self._highest, self._expected = probe.sequence, self._expected + ahead
        elif -ahead < LOSS_WINDOW:
            self._history |= 1 << -ahead


def _smoothed(average: float | None, sample: int) -> float:
    return sample if average is None else average + SMOOTHING * (sample - average)


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
